"""qrun: what an operator starts by hand, and the leader's word whether it could."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from hpcmesos.api_schema import CommandReply, CommandRequest
from hpcmesos.errors import (
    HpcmesosError,
    InvalidValue,
    JobFinished,
    NoRoom,
    Unavailable,
    UnknownNode,
    UsageError,
    WrongState,
)
from hpcmesos.master import auth
from hpcmesos.master.auth import Caller
from hpcmesos.master.runs import REFUSED
from hpcmesos.master.services import wishes
from hpcmesos.master.services.lookup import find, full_id, id_of
from hpcmesos.master.services.replies import Refusals, information
from hpcmesos.master.services.site import Site
from hpcmesos.model import JobState
from hpcmesos.pbs.options import parse
from hpcmesos.pbs.personalities import Personality
from hpcmesos.queue.records import JobRecord

_PATIENCE = 10.0
"""Seconds in which the leader has to start a job or say why it cannot."""
_LOOK = 0.02
_PBSPRO_EXIT = 2
"""OpenPBS' qrun exits with it whatever was wrong (openpbs-live)."""
_WAITING = frozenset({JobState.QUEUED, JobState.HELD, JobState.WAITING})
_VNODE = re.compile(r"\(?([A-Za-z0-9][A-Za-z0-9._-]*)(?:[/:][^+()]*)?\)?", re.ASCII)


class _NoAnswer(Unavailable):
    """The leader has neither started the job nor refused it."""

    code = "no-answer"


@dataclass(frozen=True, slots=True)
class _Asked:
    """A wish (its id) that is under way, and the job before it; ``again``: the first try of the request made it, and
    the job may have run since.
    """

    job: JobRecord
    wish: int
    again: bool


def qrun(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """Starts jobs at once, before all others, with -H on nodes of the operator's choice."""
    personality = Personality(request.personality)
    if told := information("qrun", request.argv, personality):
        return told
    command = parse("qrun", request.argv)
    ids = (*command.operands, *(command.rest or ()))
    if not ids:
        raise UsageError("name at least one job; see qrun --help")
    nodes = parse_hosts(command.last("H"))
    refusals = Refusals("qrun", personality)
    asked: dict[str, _Asked] = {}
    for text in dict.fromkeys(ids):
        try:
            asked[text] = _wish(site, caller, text, nodes)
        except HpcmesosError as error:
            if site.wished(caller, text) is None:  # else the first try has started it
                refusals.add(full_id(site, text), error)
    site.notifier.poke()
    if not command.has("a"):
        for text, one in asked.items():
            try:
                _await(site, one)
            except HpcmesosError as error:
                refusals.add(full_id(site, text), error)
    reply = refusals.reply()
    if reply.code and personality is Personality.PBSPRO:
        return CommandReply(stderr=reply.stderr, code=_PBSPRO_EXIT)
    return reply


def parse_hosts(text: str | None) -> tuple[str, ...]:
    """The nodes of ``a+b``, ``a/0+a/1`` (Torque) or ``(a:ncpus=2)+(b:ncpus=2)`` (OpenPBS); each once.

    Raises:
        InvalidValue: it names none.
    """
    if text is None:
        return ()
    found = [_VNODE.fullmatch(part.strip()) for part in text.split("+")]
    names = [match[1] for match in found if match]
    if len(names) < len(found):
        raise InvalidValue(f"illegal -H value '{text}'; write node1+node2")
    return tuple(dict.fromkeys(names))


def _wish(site: Site, caller: Caller, text: str, nodes: Sequence[str]) -> _Asked:
    auth.check_operator(caller, "run jobs by hand")
    job = find(site, text)
    if job.state is JobState.COMPLETE:
        raise JobFinished(f"job {id_of(job)} has finished")
    if job.array_spec is not None:
        raise InvalidValue(
            f"{id_of(job)} is an array: its elements start in their order; qalter -p puts it first"
        )
    if job.index is not None and not job.attempt:
        raise InvalidValue(
            f"{id_of(job)} has not begun yet: elements begin in their order; qalter -p puts the array first"
        )
    if job.state not in _WAITING:
        raise WrongState(f"invalid state for job - {job.state.name}")
    known = {node.name for node in site.store.nodes()}
    if unknown := [name for name in nodes if name not in known]:
        raise UnknownNode(f"unknown node '{unknown[0]}'; pbsnodes -a lists all")
    payload = {"index": job.index, "nodes": list(nodes)}
    again = site.wished(caller, text) is not None
    return _Asked(job, site.wish(caller, wishes.RUN, job.seq, payload, text), again)


def _await(site: Site, asked: _Asked) -> None:
    """Comes back once the job has started, now or by the first try.

    Raises:
        NoRoom: the leader cannot start it.
        JobFinished: it was deleted meanwhile.
        Unavailable: the leader has said nothing.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        if not site.store.inbox_pending([asked.wish]):
            job = site.store.job(asked.job.seq, asked.job.index)
            if job is None or job.attempt > asked.job.attempt:
                return
            if job.comment.startswith(REFUSED):
                raise NoRoom(job.comment.removeprefix(REFUSED))
            if asked.again:
                return
            if job.state is JobState.COMPLETE:
                raise JobFinished(f"job {id_of(job)} has finished")
        if time.monotonic() > deadline:
            raise _NoAnswer(f"the leader has not started {id_of(asked.job)} yet; qstat shows when it does")
        time.sleep(_LOOK)
