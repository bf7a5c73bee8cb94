"""tracejob: what happened to a job by its events and accounting records, out of the database, hence on any host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo

from hpcmesos.api_schema import CommandReply, CommandRequest
from hpcmesos.errors import UnknownJob, UsageError
from hpcmesos.master.auth import Caller
from hpcmesos.master.services.lookup import find
from hpcmesos.master.services.replies import information
from hpcmesos.master.services.site import Site, client_zone
from hpcmesos.model import JobState
from hpcmesos.pbs.options import ParsedCommand, help_text, parse
from hpcmesos.pbs.personalities import Personality
from hpcmesos.pbs.trace import Line, event_text, render
from hpcmesos.queue import accounting
from hpcmesos.queue.records import AttemptKey, AttemptRecord, EventRecord, JobKey, JobRecord, ShareRecord

_LARGEST = 100_000
_PREFIX = "/var/spool/torque"
"""What clients look for in the last line of the usage text (BLAH); nothing is read from there."""


def tracejob(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """Lines in the order of time. Accounting records (A) are for the job's owner and operators.

    ``-n``: days to look back; by default all of them.
    """
    personality = Personality(request.personality)
    if told := information("tracejob", request.argv, personality):
        return told
    command = parse("tracejob", request.argv)
    operands = (*command.operands, *(command.rest or ()))
    if not operands:
        usage = f"{help_text('tracejob')}\ndefault prefix path = {_PREFIX}\nfilter_excessive: ON\n"
        return CommandReply(stdout=usage, code=1)
    now = datetime.now(UTC)
    since = now - timedelta(days=_number(command, "n", _LARGEST))
    zone = client_zone(request.environ.get("TZ"))
    texts, missing = [], []
    for operand in operands:
        try:
            job = find(site, operand)
        except UnknownJob:
            missing.append(f"tracejob: {operand}: No matching job records located\n")
            continue
        private = caller.may_touch(job.owner)
        found = [line for line in _lines(site, job, command, private, zone) if line.at >= since]
        texts.append(render(str(job.id), found, zone, _number(command, "w", 0)))
    return CommandReply(stdout="".join(texts), stderr="".join(missing), code=1 if missing else 0)


def _number(command: ParsedCommand, option: str, default: int) -> int:
    text = command.last(option)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 7):
        raise UsageError(f"illegal -{option} value '{text}'; write a whole number")
    return min(int(text), _LARGEST)


def _lines(site: Site, job: JobRecord, command: ParsedCommand, private: bool, zone: tzinfo) -> list[Line]:
    """Of a job, or of an element of an array."""
    lines: list[Line] = []
    attempts = [a for a in site.store.attempts([job.key]) if a.key.job == job.key] if job.attempt else []
    shares = site.store.shares([job.key]) if job.attempt else []
    if not command.has("s"):
        owner = f"{job.owner}@{job.submit_host}"
        lines.append(Line(job.created_at, "S", f"enqueuing into {job.queue}, state Q hop 1"))
        lines.append(
            Line(
                job.created_at,
                "S",
                f"Job Queued at request of {owner}, owner = {owner}, job name = {job.name}, queue = {job.queue}",
            )
        )
        lines += _told(job, site.store.events(seq=job.seq), attempts, shares)
    if not command.has("a") and private:
        lines += _accounted(job, attempts, shares, zone)
    return sorted(lines, key=lambda line: line.at)


def _told(
    job: JobRecord,
    events: Iterable[EventRecord],
    attempts: Iterable[AttemptRecord],
    shares: Iterable[ShareRecord],
) -> Iterator[Line]:
    """The events of this row; of those before the last the nodes are in their own payload."""
    usage = {attempt.key.number: attempt.usage for attempt in attempts}
    for event in events:
        if JobKey(event.seq or 0, event.index) == job.key:
            for text in event_text(event.kind, event.payload, job.server, usage.get(job.attempt, {})):
                yield Line(event.at, "S", text)
            if event.target is JobState.COMPLETE:
                yield Line(event.at, "S", f"dequeuing from {job.queue}, state COMPLETE")


def _accounted(
    job: JobRecord, attempts: Iterable[AttemptRecord], shares: Iterable[ShareRecord], zone: tzinfo
) -> Iterator[Line]:
    """Q, S and E as they are written, made anew."""
    held: dict[AttemptKey, list[ShareRecord]] = {}
    for share in shares:
        held.setdefault(share.attempt, []).append(share)
    entries = [accounting.queued(job, job.created_at)]
    for attempt in attempts:
        mine = held.get(attempt.key, [])
        if attempt.started_at is not None:
            entries.append(accounting.started(job, mine, attempt.started_at))
        if attempt.ended_at is not None and attempt.key == job.attempt_key and job.state is JobState.COMPLETE:
            entries.append(accounting.ended(job, attempt, mine, attempt.ended_at))
    for entry in entries:
        yield Line(entry.at, "A", str(entry).split(";", 3)[3])
