"""Holds of jobs, in words."""

from __future__ import annotations

from hpcmesos.model import JobId
from hpcmesos.queue.records import JobRecord

DEPENDENCY_HOLD = "d"
_HOLDERS = {"u": "its user", "o": "an operator", "s": "the system"}


def held_text(job: JobRecord) -> str:
    """Who holds a job, why, and the command that lets it go; operators alone release what is not the user's."""
    holders = " and ".join(_HOLDERS[letter] for letter in job.holds if letter in _HOLDERS)
    why = f" ({job.comment})" if job.comment else ""
    release = f"qrls -h {job.holds} {JobId(job.seq, job.server, job.index)}"
    whose = "" if job.holds == "u" else ", by an operator"
    return f"held by {holders}{why}; released by: {release}{whose}"
