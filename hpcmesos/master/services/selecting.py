"""qselect: the ids of the jobs that its words choose."""

from __future__ import annotations

from datetime import UTC, datetime

from hpcmesos.errors import UnknownQueue
from hpcmesos.master.auth import Caller
from hpcmesos.master.services.facts import Surroundings, job_facts
from hpcmesos.master.services.replies import information
from hpcmesos.master.services.site import Site, client_zone
from hpcmesos.model import JobState
from hpcmesos.pbs.personalities import Personality
from hpcmesos.pbs.selection import Selection, parse_qselect
from hpcmesos.queue.records import JobFilter, JobRecord
from hpcmesos.wire import CommandReply, CommandRequest


def qselect(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """One id a line; no job, no text at all, and still 0."""
    personality = Personality(request.personality)
    if told := information("qselect", request.argv, personality):
        return told
    now = datetime.now(UTC)
    selection = parse_qselect(
        request.argv, personality, now.astimezone(client_zone(request.environ.get("TZ")))
    )
    for name in selection.queues:
        if name not in site.queues.recent() and name not in site.queues.fresh():
            raise UnknownQueue("Unknown queue destination")
    jobs = [job for job in site.store.jobs(_filter(selection)) if _shown(selection, job)]
    nothing = Surroundings()
    facts = (job_facts(job, nothing, now, private=False) for job in jobs)
    return CommandReply(stdout="".join(f"{job.id}\n" for job in facts if selection.chooses(job)))


def _filter(selection: Selection) -> JobFilter:
    live = frozenset(JobState) - {JobState.COMPLETE}
    states = frozenset(JobState) if selection.history else live
    if selection.states:
        asked = frozenset(state for state in JobState if state.value in selection.states)
        states = asked if selection.history else asked | (frozenset() if asked else live)
    return JobFilter(
        owners=selection.users or None,
        queues=selection.queues or None,
        states=states,
        history=selection.history,
    )


def _shown(selection: Selection, job: JobRecord) -> bool:
    """An array shows as itself or as its elements."""
    if selection.states and job.state.value not in selection.states:
        return False
    if selection.arrays_only:
        return job.todo is not None and job.index is None
    return job.index is None or selection.elements
