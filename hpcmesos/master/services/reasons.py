"""Why jobs wait: what their own rows say, and for queued jobs the leader's word, computed when it is asked."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import tzinfo

from hpcmesos.errors import HpcmesosError
from hpcmesos.master.holds import DEPENDENCY_HOLD, held_text
from hpcmesos.master.services.facts import depend_text
from hpcmesos.master.services.site import Site
from hpcmesos.model import JobState
from hpcmesos.pbs.attributes import time_text
from hpcmesos.queue.records import JobKey, JobRecord

UNREACHABLE = (
    "the leader cannot be reached now; the job keeps its place and is looked at as soon as there is one"
)

_OWN = frozenset({JobState.HELD, JobState.WAITING})  # their rows say why


def pending_reasons(site: Site, jobs: Iterable[JobRecord], zone: tzinfo) -> dict[JobKey, str]:
    """A sentence for each job that waits."""
    waiting = [job for job in jobs if _waits(job)]
    queued = [job for job in waiting if job.state not in _OWN]
    found = {job.key: _own_reason(job, zone) for job in waiting if job.state in _OWN}
    if queued:
        try:
            told = _ask_leader(site, sorted({job.seq for job in queued}))
        except HpcmesosError:
            return found | {job.key: UNREACHABLE for job in queued}
        found |= {job.key: told.get(job.seq, "is being looked at now") for job in queued}
    return found


def _waits(job: JobRecord) -> bool:
    """Of an array that has begun, the elements that have not."""
    rest = job.state is JobState.RUNNING and job.waiting_elements > 0
    return rest or job.state in (JobState.QUEUED, JobState.HELD, JobState.WAITING)


def _ask_leader(site: Site, seqs: list[int]) -> dict[int, str]:
    leader = site.leader.recent()
    if not leader.live or site.lines is None:
        return dict.fromkeys(seqs, UNREACHABLE)
    answers = site.lines.why(leader.address, seqs)
    return {seq: text for seq, (_, text) in answers.items()}


def _own_reason(job: JobRecord, zone: tzinfo) -> str:
    if DEPENDENCY_HOLD in job.holds:
        parents = ", ".join(depend_text(d, job.server) for d in job.dependencies)
        return f"waits for its dependencies: {parents}"
    if job.holds:
        return held_text(job)
    if job.not_before is not None:
        return f"waits until {time_text(job.not_before, zone)}"
    return job.comment or "held"
