"""The leader's side of qalter, qmove, qorder, qrerun and qmsg: wishes that change a job, but do not end it.

``fields`` of an ALTER wish, all optional: name, priority, rerunable, not_before (ISO 8601 or None), holds (letters),
dependencies ([kind, seq, ...] each). ``submission``: what is replaced in the job's own. ``resources``: the user's
words; others may have changed what these do not name. ``waits``: only a job that waits can take it. ``privileged``: it
is an operator's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol

import msgspec

from hpcmesos import wire
from hpcmesos.errors import InvalidValue
from hpcmesos.master.cluster import WAITING_STATES
from hpcmesos.master.effects import Desk
from hpcmesos.master.gangs import Gangs
from hpcmesos.master.objects import fenced
from hpcmesos.master.services import wishes
from hpcmesos.model import Cause, JobState
from hpcmesos.pbs.alteration import changed_request, lengthens
from hpcmesos.queue.records import InboxRow, JobKey, JobRecord
from hpcmesos.queue.rows import dependencies_of

_PLAIN_FIELDS = frozenset({"name", "priority", "rerunable", "array_spec", "egroup"})
_DEPENDENCY = "d"


class Resting(Protocol):
    """The inbox, as far as it is needed here."""

    def rest(self, job: JobRecord, event: str, holds: set[str], user: str = "") -> None: ...

    def judge(self, key: JobKey) -> None: ...


class Changes:
    """Handlers of these wishes; they note effects on the desk."""

    def __init__(self, desk: Desk, gangs: Gangs, inbox: Resting) -> None:
        self.desk = desk
        self.gangs = gangs
        self.inbox = inbox
        self._handlers: Mapping[str, Callable[[JobRecord, InboxRow], None]] = {
            wishes.ALTER: self._on_alter,
            wishes.MOVE: self._on_move,
            wishes.ORDER: self._on_order,
            wishes.RERUN: self._on_rerun,
            wishes.MESSAGE: self._on_message,
            wishes.SUSPEND: self._on_suspend,
        }

    def take(self, job: JobRecord, row: InboxRow) -> bool:
        """Does what the wish says, if the job is still as it has to be; False: another kind of wish."""
        handler = self._handlers.get(row.kind)
        if handler is None:
            return False
        handler(job, row)
        return True

    def _on_alter(self, job: JobRecord, row: InboxRow) -> None:
        waits, resources = job.state in WAITING_STATES, row.payload.get("resources")
        request = job.request
        listed: Mapping[str, str] = {}
        if resources:
            now = self.gangs.submissions.current(job.seq)
            request, listed = changed_request(job.request, now, resources)
        longer = lengthens(job.request, request) and not row.payload.get("privileged", True)
        if not waits and (longer or row.payload.get("waits")):
            self.desk.move(job, job.state, "ignored", {"wish": row.kind, "user": row.user})
            return  # as the API would have refused it
        fields = dict(row.payload.get("fields") or {})
        changes = {name: value for name, value in fields.items() if name in _PLAIN_FIELDS}
        if "not_before" in fields:
            changes["not_before"] = _time(fields["not_before"])
        if "dependencies" in fields:
            changes["dependencies"] = dependencies_of(fields["dependencies"])
        if "project" in (given := dict(row.payload.get("submission") or {})):
            changes["project"] = given["project"] or ""
        if resources:
            changes["request"], given["resource_list"] = request, listed
        if (limit := row.payload.get("limit")) is not None and job.array_spec is not None:
            changes["array_spec"] = replace(job.array_spec, limit=int(limit))
        if not waits:
            changes = _while_running(job, changes)
        shown = {name: str(value) for name, value in fields.items()}
        submission = self._merged(job, given)
        stored = {} if submission is None else {"submission": submission}
        altered = self.desk.move(job, job.state, "altered", {"user": row.user, **shown}, **changes, **stored)
        if submission is not None:
            altered = msgspec.structs.replace(altered, submission={})  # the picture has none
            self.desk.cluster.put(altered)
            self.gangs.submissions.change(job.seq, submission)
            if attempt := self.desk.cluster.current(job.key):
                attempt.billing = {}  # read again when it is needed
        self._after(job, altered, fields, row.user)

    def _after(self, before: JobRecord, job: JobRecord, fields: Mapping[str, Any], user: str) -> None:
        """What follows from new holds, times, parents and walltimes."""
        if job.state in WAITING_STATES:
            if "dependencies" in fields or "holds" in fields or "not_before" in fields:
                kept = {_DEPENDENCY} if job.dependencies and _DEPENDENCY in job.holds else set()
                holds = (set(fields["holds"]) | kept) if "holds" in fields else set(job.holds)
                if not job.dependencies:
                    holds.discard(_DEPENDENCY)
                self.inbox.rest(job, "altered", holds, user=user)
            if "dependencies" in fields:
                self.inbox.judge(job.key)
        elif job.request.walltime != before.request.walltime and (
            attempt := self.desk.cluster.current(job.key)
        ):
            self.gangs.tell_walltime(attempt)

    def _merged(self, job: JobRecord, given: Mapping[str, Any]) -> dict[str, Any] | None:
        if not given:
            return None
        return wishes.merged(self.gangs.submissions.current(job.seq), given)

    def _on_move(self, job: JobRecord, row: InboxRow) -> None:
        queue = self.desk.cluster.queues.get(str(row.payload.get("queue")))
        if queue is None:
            raise InvalidValue(f"a move to an unknown queue: {row.payload.get('queue')}")
        outrun = row.payload.get("from") not in (None, job.queue)
        if job.state in WAITING_STATES and not outrun:
            payload = {"user": row.user, "from": job.queue, "to": queue.name}
            request = fenced(job.request, queue)
            self.desk.move(job, job.state, "moved", payload, queue=queue.name, request=request)

    def _on_order(self, job: JobRecord, row: InboxRow) -> None:
        """Places are times of becoming eligible: two jobs that wait exchange theirs."""
        other = self.desk.cluster.jobs.get(JobKey(int(row.payload.get("other") or 0)))
        if other is None or {job.state, other.state} != {JobState.QUEUED}:
            return
        first, second = job.queued_at, other.queued_at
        for one, time, with_ in ((job, second, other), (other, first, job)):
            payload = {"user": row.user, "with": with_.seq}
            self.desk.move(one, one.state, "ordered", payload, queued_at=time)

    def _on_rerun(self, job: JobRecord, row: InboxRow) -> None:
        attempt = self.desk.cluster.current(job.key)
        if attempt is None or job.state is not JobState.RUNNING or not job.rerunable:
            return
        if attempt.end is None:
            self.desk.move(job, job.state, "rerun wished", {"user": row.user})
            delay = row.payload.get("kill_delay")
            message = str(row.payload.get("message") or f"run again at the wish of {row.user}")
            self.gangs.end(attempt, Cause.PREEMPTED, None, message, None if delay is None else float(delay))

    def _on_suspend(self, job: JobRecord, row: InboxRow) -> None:
        attempt, suspended = self.desk.cluster.current(job.key), bool(row.payload.get("suspended"))
        if attempt is None or job.state is not JobState.RUNNING or attempt.end is not None:
            return
        event = "suspended" if suspended else "resumed"
        self.desk.move(job, job.state, event, {"user": row.user}, suspended=suspended)
        self.gangs.tell_suspended(attempt)

    def _on_message(self, job: JobRecord, row: InboxRow) -> None:
        attempt = self.desk.cluster.current(job.key)
        if attempt is None:
            return
        streams, text = str(row.payload.get("streams")), str(row.payload.get("text"))
        self.gangs.tell(attempt, wire.Alter(attempt=attempt.name, streams=streams, text=text))
        self.desk.move(job, job.state, "message", {"user": row.user, "text": text, "streams": streams})


def _while_running(job: JobRecord, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What may change of a job that has begun meanwhile: of its request the walltime."""
    allowed = {name: value for name, value in changes.items() if name in _PLAIN_FIELDS}
    if "request" in changes:
        allowed["request"] = replace(job.request, walltime=changes["request"].walltime)
    return allowed


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
