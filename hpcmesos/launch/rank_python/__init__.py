"""Goes first in PYTHONPATH of ranks; `sitecustomize` is imported by their own interpreters, of whatever version."""
