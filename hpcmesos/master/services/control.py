"""qdel, qhold, qrls: wishes for the leader, once it is clear that the caller may have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpcmesos.api_schema import CommandReply, CommandRequest
from hpcmesos.errors import HpcmesosError, InvalidValue, JobFinished, Unauthorized, WrongState
from hpcmesos.master import auth
from hpcmesos.master.auth import Caller
from hpcmesos.master.services import wishes
from hpcmesos.master.services.lookup import find_own, full_id, id_of, parse_elements, split_elements
from hpcmesos.master.services.replies import Refusals, information
from hpcmesos.master.services.site import Site
from hpcmesos.model import JobId, JobState
from hpcmesos.pbs.personalities import Personality
from hpcmesos.pbs.status import DeleteQuery, parse_hold, parse_qdel
from hpcmesos.queue.records import JobFilter, JobRecord

_OPERATOR_HOLDS = frozenset("os")


def qdel(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """Deletes jobs; every id that cannot be deleted is named, the others go."""
    personality = Personality(request.personality)
    if told := information("qdel", request.argv, personality):
        return told
    query = parse_qdel(request.argv)
    if query.purge:
        auth.check_operator(caller, "purge jobs")
    ids = _all_ids(site, caller) if query.all else query.ids
    payload = _delete_payload(query, privileged=caller.privileged)
    command = Command(site, caller, "qdel", personality, query.array_range, listed=query.all)
    return command.each(ids, lambda job: (wishes.DELETE, payload))


def delete(site: Site, caller: Caller, text: str) -> None:
    """Wishes the end of one job and waits a moment for the leader to take the wish.

    Raises:
        UnknownJob, Unauthorized, JobFinished: nothing was wished.
    """
    try:
        job = _unfinished(site, caller, text)
    except JobFinished:
        if site.wished(caller, text) is None:
            raise
        return
    _send(site, [site.wish(caller, wishes.DELETE, job.seq, {"index": job.index, "purge": False}, text)])


def qhold(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """Adds holds; a job that runs cannot be held."""
    return _hold("qhold", wishes.HOLD, site, caller, request)


def qrls(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """Takes holds away."""
    return _hold("qrls", wishes.RELEASE, site, caller, request)


def _hold(command: str, kind: str, site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    personality = Personality(request.personality)
    if told := information(command, request.argv, personality):
        return told
    query = parse_hold(command, request.argv)
    kinds = "" if query.kinds == "n" else query.kinds
    if _OPERATOR_HOLDS & set(kinds):
        auth.check_operator(caller, "set or release operator and system holds")

    def wanted(job: JobRecord) -> tuple[str, Mapping[str, Any]]:
        if job.state in (JobState.RUNNING, JobState.EXITING) and job.array_spec is None:
            raise WrongState("invalid state for job - RUNNING")
        return kind, {"kinds": kinds}

    return Command(site, caller, command, personality, query.array_range, whole=True).each(query.ids, wanted)


@dataclass(frozen=True, slots=True)
class Command:
    """A command over several ids. ``elements``: of its -t, which every id of an array means then. ``whole``: it is
    for whole arrays; elements that have not started wait as one row, and share its holds. ``listed``: the ids are
    those of jobs that were not over; what has ended since is no refusal.
    """

    site: Site
    caller: Caller
    name: str
    personality: Personality
    elements: str | None = None
    whole: bool = False
    listed: bool = False

    def each(
        self, ids: Sequence[str], wanted: Callable[[JobRecord], tuple[str, Mapping[str, Any]]]
    ) -> CommandReply:
        """Sends the wish for every id that passes; the refusals of the others are the reply."""
        refusals = Refusals(self.name, self.personality)
        sent: list[int] = []
        for text in dict.fromkeys(ids):
            try:
                job, which = self._named(text)
                kind, payload = wanted(job)
            except HpcmesosError as error:
                # What the first try did is no reason to refuse the second.
                over = self.listed and isinstance(error, JobFinished)
                if not over and self.site.wished(self.caller, text) is None:
                    refusals.add(full_id(self.site, text), error)
                continue
            sent.append(self.site.wish(self.caller, kind, job.seq, {**which, **payload}, text))
        _send(self.site, sent)
        return refusals.reply()

    def _named(self, text: str) -> tuple[JobRecord, Mapping[str, Any]]:
        """The job that ``text`` names, and which of its elements as wishes name them."""
        plain, elements = split_elements(text)
        job = _unfinished(self.site, self.caller, plain)
        elements = elements or (self.elements if job.array_spec is not None else None)
        if self.whole and (elements is not None or job.index is not None):
            whole = JobId(job.seq, job.server, array=True)
            raise InvalidValue(f"elements of an array wait together; for all of them: {self.name} {whole}")
        if elements is None:
            return job, {"index": job.index}
        return job, {"elements": parse_elements(job, elements)}


def _send(site: Site, sent: Sequence[int]) -> None:
    if sent:
        site.notifier.poke()
        wishes.await_taken(site.store, sent)


def _unfinished(site: Site, caller: Caller, text: str) -> JobRecord:
    job = find_own(site, caller, text)
    if job.state is JobState.COMPLETE:
        raise JobFinished(f"job {id_of(job)} has finished")
    return job


def _all_ids(site: Site, caller: Caller) -> list[str]:
    """``qdel all``: the caller's own jobs; an operator's: everybody's."""
    if not caller.user and not caller.privileged:
        raise Unauthorized("only users have jobs")
    live = frozenset(JobState) - {JobState.COMPLETE}
    owners = None if caller.privileged else (caller.user,)
    found = site.store.jobs(JobFilter(owners=owners, states=live, brief=True, elements=False))
    return [str(id_of(job)) for job in found]


def _delete_payload(query: DeleteQuery, *, privileged: bool) -> Mapping[str, Any]:
    """``-W force`` kills at once (OpenPBS); an operator's does not even wait for the node, as ``-p``."""
    given = {
        "kill_delay": 0.0 if query.force else query.delay,
        "message": query.message,
        "purge": privileged and (query.purge or query.force),
    }
    return {name: value for name, value in given.items() if value is not None}
