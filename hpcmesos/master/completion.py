"""An attempt is over: what becomes of its job, which is complete or waits again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from msgspec import structs

from hpcmesos.gang.feasible import can_ever_fit
from hpcmesos.master import cycle, gang_clock
from hpcmesos.master.arrays import Arrays
from hpcmesos.master.billing import Billing
from hpcmesos.master.cluster import Attempt, Phase
from hpcmesos.master.effects import Desk
from hpcmesos.model import Cause, JobState
from hpcmesos.queue import accounting
from hpcmesos.queue.records import AttemptRecord, JobKey, JobRecord
from hpcmesos.queue.states import exit_status

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_FAILED_STARTS = 5
"""After so many a job is held (system)."""
LOSSES = frozenset({Cause.NODE_LOST, Cause.GPU_LOST})
"""Ends by which a job uses up one of its attempts (``max_attempts``)."""
UNHARMED = frozenset({Cause.START_FAILED, Cause.PREEMPTED})
"""Ends that cost a job nothing: it waits again."""
_SAID_SO = frozenset({Cause.APP, Cause.SIGNAL})
"""How a job ends that was told to save its work and did not end with 0; with 0 it is complete."""
_BY_ITS_NODE = frozenset({Cause.DELETED, Cause.APP, Cause.OK, Cause.SIGNAL})
"""Ends of which a node may have to tell something: nobody at a terminal, a prologue's refusal, files not staged out."""
TROUBLE = LOSSES | {Cause.START_FAILED, Cause.OOM}
"""Ends of one member with which the whole attempt ends."""


class Completion:
    """Of every attempt's job; called within a handler, it notes its effects on the desk."""

    def __init__(self, desk: Desk, arrays: Arrays, billing: Billing) -> None:
        self._desk = desk
        self._arrays = arrays
        self._billing = billing

    def finish(self, attempt: Attempt, record: AttemptRecord, grace: float | None = None) -> None:
        """The attempt is over: its job is complete or waits again.

        ``grace``: seconds that parts which are not released may still take, as of `await_parts`.
        """
        desk = self._desk
        attempt.phase, attempt.spec = Phase.OVER, None
        if attempt.preempted_for and record.cause in _SAID_SO:
            text = f"preempted for {attempt.preempted_for}: {record.message}".removesuffix(": ")
            record = structs.replace(record, cause=Cause.PREEMPTED, message=text)
        desk.effects.finished.append(record)
        level = logging.WARNING if record.cause in TROUBLE else logging.DEBUG
        log.log(
            level,
            "attempt over attempt=%s cause=%s culprit=%s message=%r",
            attempt.name,
            record.cause,
            record.culprit,
            record.message,
        )
        job = desk.cluster.jobs[attempt.key.job]
        if self._may_run_again(job, attempt, record):
            self._requeue(job, attempt, record, grace)
        else:
            self._complete(job, attempt, record)
        if not attempt.shares:
            desk.cluster.drop(attempt)

    def _may_run_again(self, job: JobRecord, attempt: Attempt, record: AttemptRecord) -> bool:
        if attempt.final or job.state is not JobState.RUNNING:
            return False
        if record.cause in LOSSES:
            return job.rerunable and job.charged_attempts + 1 < self._desk.settings.max_attempts
        return record.cause in UNHARMED

    def _requeue(self, job: JobRecord, attempt: Attempt, record: AttemptRecord, grace: float | None) -> None:
        """Back to its old place in the queue, away from the culprit; too many failed starts hold it."""
        changes: dict[str, Any] = {
            "comment": f"attempt {job.attempt}: {record.cause}: {record.message}"[:1000]
        }
        if job.suspended:
            changes["suspended"] = False
        excluded = self._excluded(job, record.culprit)
        if excluded != job.excluded:
            changes["excluded"] = excluded
        if record.cause in LOSSES:
            changes["charged_attempts"] = job.charged_attempts + 1
        if attempt.preempted_for:
            self._desk.cluster.preempted.add(job.key)
        if attempt.hold:
            changes["holds"] = "".join(sorted({*job.holds, *attempt.hold}))
        elif record.cause is Cause.START_FAILED and (failed := self._failed_starts(job)) >= MAX_FAILED_STARTS:
            changes["holds"] = "".join(sorted({*job.holds, "s"}))
            text = f"held after {failed} failed starts; the last: {record.message}"
            changes["comment"] = text[:1000]
        target = resting_state(changes.get("holds", job.holds), job.not_before, self._desk.now)
        payload = {"attempt": job.attempt, "cause": record.cause, "culprit": record.culprit}
        if attempt.shares:
            # Set before the move: a job in Q is a candidate at once.
            self._desk.cluster.blocked.add(job.key)
            self.await_parts(attempt, grace)
        waiting = self._desk.move(job, target, "requeued", payload, **changes)
        self._desk.effects.accounting.append(accounting.requeued(waiting, self._desk.now))

    def await_parts(self, attempt: Attempt, grace: float | None = None) -> None:
        """Lets the job of an attempt that is over start when no part of it can run any more, though none says so.

        ``grace``: seconds that a part may take beyond GANG_LOSS; None: as if it had just been told its end.
        """
        cluster, alarms, key = self._desk.cluster, self._desk.alarms, attempt.key.job
        left = gang_clock.GANG_LOSS + (gang_clock.grace(attempt.ending) if grace is None else grace)
        until = max(alarms.clock() + left, cluster.blocked_until.get(key, 0.0))
        cluster.blocked_until[key] = until
        alarms.set(until - alarms.clock(), partial(self._unblock, key, until))

    def _unblock(self, key: JobKey, until: float) -> None:
        """An alarm of an earlier attempt says nothing of a later one."""
        cluster = self._desk.cluster
        if cluster.blocked_until.get(key) == until:
            del cluster.blocked_until[key]
            cluster.unblock(key)

    def _failed_starts(self, job: JobRecord) -> int:
        """Failed starts of a job whose last one has just failed. Attempts that were preempted or rerun do not count."""
        most = job.attempt - job.charged_attempts
        if most < MAX_FAILED_STARTS:
            return most  # too few, whatever they were
        earlier = [
            a for a in self._desk.reader.attempts([job.key], tails=False) if a.key.number < job.attempt
        ]
        return 1 + sum(attempt.cause is Cause.START_FAILED for attempt in earlier)

    def _excluded(self, job: JobRecord, culprit: str | None) -> tuple[str, ...]:
        """Nodes not to use again; none is added without which the job could never run."""
        excluded = job.excluded
        for name in culprit.split("+") if culprit else ():
            if (
                name not in excluded
                and name in self._desk.cluster.nodes
                and self._could_do_without(job, (*excluded, name))
            ):
                excluded = (*excluded, name)
        return excluded

    def _could_do_without(self, job: JobRecord, nodes: tuple[str, ...]) -> bool:
        left = [cycle.node_view(node) for name, node in self._desk.cluster.nodes.items() if name not in nodes]
        return bool(left) and can_ever_fit(job.request, left) is None

    def _complete(self, job: JobRecord, attempt: Attempt, record: AttemptRecord) -> None:
        assert record.cause is not None
        cause = attempt.final if attempt.final and record.cause in TROUBLE else record.cause
        status = exit_status(cause, record.code, record.signal, record.forced)
        if cause is Cause.DELETED:
            status = canceled_status(self._desk.cluster.attributes, status)
        changes: dict[str, Any] = {"exit_status": status, "cause": cause}
        if record.undelivered:
            changes["comment"] = record.undelivered[:1000]
        elif cause is Cause.GPU_IDLE:
            told = attempt.ending.message if attempt.ending else record.message
            changes["comment"] = f"{cause}: {told}"[:1000]
        elif record.cause in TROUBLE:
            changes["comment"] = f"{record.cause}: {record.message}"[:1000]
        elif record.message and record.cause in _BY_ITS_NODE and not attempt.deleted:
            changes["comment"] = record.message[:1000]
        if record.started_at is not None and record.ended_at is not None:
            size = (job.request.gpus, job.request.cpus)
            ran = (record.ended_at - record.started_at).total_seconds()
            self._desk.cluster.history.ended(job.owner, size, ran)
        payload = {"attempt": job.attempt, "exit_status": status, "cause": cause}
        done = self._desk.move(job, JobState.COMPLETE, "ended", payload, **changes)
        entry = accounting.ended(self._billing.of_job(done, attempt), record, attempt.placed, self._desk.now)
        self._desk.effects.accounting.append(entry)
        self._arrays.element_over(done)


def canceled_status(server: Mapping[str, str], otherwise: T) -> int | T:
    """Exit_status of a deleted job: the site's, if it has set one (``exit_code_canceled_job``, Torque)."""
    given = server.get("exit_code_canceled_job")
    return otherwise if given is None else int(given)


def resting_state(holds: str, not_before: datetime | None, now: datetime) -> JobState:
    """Where a job waits that does not run."""
    if holds:
        return JobState.HELD
    return JobState.WAITING if not_before is not None and not_before > now else JobState.QUEUED
