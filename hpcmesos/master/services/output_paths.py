"""Where a job's output goes, kept in its submission with the id still open; pure.

``submission["stdout_template"]`` and ``["stderr_template"]`` hold the fields of a :class:`PathTemplate`. The leader
renders them when it builds the spec of an attempt; status commands render them for display.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from hpcmesos.model import JobId
from hpcmesos.pbs.paths import PathTemplate

STREAMS = {"stdout": "stdout_template", "stderr": "stderr_template"}


def stored(template: PathTemplate) -> dict[str, Any]:
    """The JSON form of a template."""
    return asdict(template)


def final_paths(submission: Mapping[str, Any], job: JobId, name: str) -> tuple[str | None, str | None]:
    """The absolute paths of standard output and error of ``job`` (an element by its index); None: spool."""
    out, err = (_render(submission, stream, job, name) for stream in STREAMS)
    return out, err


def shown_paths(submission: Mapping[str, Any], job: JobId, name: str) -> tuple[str, str]:
    """Both as ``host:/path``, the way that status commands print them; empty when there is none."""
    paths = []
    for stream, key in STREAMS.items():
        path = _render(submission, stream, job, name)
        paths.append(f"{submission[key]['host']}:{path}" if path is not None else "")
    return paths[0], paths[1]


def _render(submission: Mapping[str, Any], stream: str, job: JobId, name: str) -> str | None:
    fields = submission.get(STREAMS[stream])
    return PathTemplate(**fields).render(str(job), job.seq, job.index, name) if fields else None
