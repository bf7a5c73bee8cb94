"""Where a job's output goes, kept in its submission with the id still open; pure.

``submission["stdout_template"]`` and ``["stderr_template"]`` hold the fields of a :class:`PathTemplate`. The leader
renders them when it builds the spec of an attempt; status commands render them for display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import PurePosixPath
from typing import Any

from hpcmesos.model import JobId
from hpcmesos.pbs.paths import PathTemplate

_FIELDS = tuple(field.name for field in fields(PathTemplate))
STREAMS = {"stdout": "stdout_template", "stderr": "stderr_template"}


def stored(template: PathTemplate) -> dict[str, Any]:
    """The JSON form of a template."""
    return {name: getattr(template, name) for name in _FIELDS}


def in_sight(template: PathTemplate, shared_paths: Sequence[str]) -> bool:
    """Whether nodes see the place as its host does."""
    path = PurePosixPath(template.path or template.directory)
    return any(path.is_relative_to(tree) for tree in shared_paths)


def final_paths(submission: Mapping[str, Any], job: JobId, name: str) -> tuple[str | None, str | None]:
    """Where standard output and error of ``job`` (an element by its index) go; None: spool.

    Absolute, or with ``-k`` the default name, relative to the owner's home.
    """
    out, err = (_kept(submission, stream, job, name) for stream in STREAMS)
    return out, err


def shown_paths(submission: Mapping[str, Any], job: JobId, name: str) -> tuple[str, str]:
    """Both as ``host:/path``, the way that status commands print them; empty when there is none."""
    paths = []
    for stream, key in STREAMS.items():
        path = _render(submission, stream, job, name)
        paths.append(f"{submission[key]['host']}:{path}" if path is not None else "")
    return paths[0], paths[1]


def _kept(submission: Mapping[str, Any], stream: str, job: JobId, name: str) -> str | None:
    """As _render(); ``d`` among the letters of -k means the final place, where we write at once anyway."""
    fields, keep = submission.get(STREAMS[stream]), submission.get("keep", "n")
    if not fields or "d" in keep or fields["letter"] not in keep:
        return _render(submission, stream, job, name)
    in_home = replace(PathTemplate(**fields), directory="", path=None)
    return in_home.render(str(job), job.seq, job.index, name)


def _render(submission: Mapping[str, Any], stream: str, job: JobId, name: str) -> str | None:
    fields = submission.get(STREAMS[stream])
    return PathTemplate(**fields).render(str(job), job.seq, job.index, name) if fields else None
