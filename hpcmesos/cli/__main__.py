"""``python -m hpcmesos.cli``: the same as the console script."""

from hpcmesos.cli.main import main

main()
