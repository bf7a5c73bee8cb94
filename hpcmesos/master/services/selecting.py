"""qselect: the ids of the jobs that its words choose."""

from __future__ import annotations

from datetime import UTC, datetime

from hpcmesos.api_schema import CommandReply, CommandRequest
from hpcmesos.errors import UnknownQueue
from hpcmesos.master.auth import Caller
from hpcmesos.master.services.facts import Surroundings, job_facts
from hpcmesos.master.services.listing import Listed, expanded
from hpcmesos.master.services.replies import information
from hpcmesos.master.services.site import Site, client_zone
from hpcmesos.model import JobId, JobState
from hpcmesos.pbs.personalities import Personality
from hpcmesos.pbs.selection import Selection, parse_qselect
from hpcmesos.queue.records import JobFilter, JobRecord


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
    found = site.store.jobs(_filter(selection))
    listed = expanded(found) if selection.elements else [Listed(job) for job in found if job.index is None]
    nothing = Surroundings()
    lines = [
        f"{job_id}\n"
        for entry in listed
        if _shown(selection, entry.job)
        and selection.chooses(job_facts(entry.job, nothing, now, private=False))
        for job_id in _ids(entry)
    ]
    return CommandReply(stdout="".join(lines))


def _filter(selection: Selection) -> JobFilter:
    """What has to be read: elements may be in other states than their array."""
    live = frozenset(JobState) - {JobState.COMPLETE}
    asked = frozenset(state for state in JobState if state.value in selection.states)
    return JobFilter(
        owners=selection.users or None,
        queues=selection.queues or None,
        states=frozenset(JobState) if selection.history else live | asked,
        history=selection.history,
    )


def _shown(selection: Selection, job: JobRecord) -> bool:
    """An array shows as itself or as its elements."""
    if selection.states and job.state.value not in selection.states:
        return False
    if selection.arrays_only:
        return job.array_spec is not None
    return job.array_spec is None or not selection.elements


def _ids(entry: Listed) -> list[JobId]:
    job = entry.job
    return [JobId(job.seq, job.server, index) for index in entry.indexes] or [job.id]
