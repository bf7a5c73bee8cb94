"""The leader's side of the inbox: new jobs, users' wishes, and jobs that wait for a time or for other jobs.

The rights of who wishes were checked when the row was written. A wish that its job has outrun is dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from msgspec.structs import replace

from hpcmesos import wire
from hpcmesos.errors import InvalidValue
from hpcmesos.master import objects
from hpcmesos.master.arrays import without
from hpcmesos.master.changes import Changes
from hpcmesos.master.completion import canceled_status, resting_state
from hpcmesos.master.effects import Desk
from hpcmesos.master.gangs import Gangs
from hpcmesos.master.holds import DEPENDENCY_HOLD
from hpcmesos.master.reconcile import Nodes
from hpcmesos.master.reports import verdict
from hpcmesos.master.runs import Runs
from hpcmesos.master.services import wishes
from hpcmesos.model import Cause, JobState
from hpcmesos.queue import accounting
from hpcmesos.queue.arrays import Ranges, normal
from hpcmesos.queue.dependencies import (
    Dependency,
    DependencyKind,
    Verdict,
    judge_all,
    preceded,
    why_impossible,
)
from hpcmesos.queue.records import InboxRow, JobFilter, JobKey, JobRecord, Outcome
from hpcmesos.queue.states import exit_status
from hpcmesos.queue.store import SUBMIT

log = logging.getLogger(__name__)

_RUNNING = (JobState.RUNNING, JobState.EXITING)
_EVERY: Ranges = ((0, 2**31),)


class JobReader(Protocol):
    """The store, or the transaction that is open anyway."""

    def jobs(self, wanted: JobFilter) -> list[JobRecord]: ...


class Inbox:
    """Handlers of inbox rows."""

    def __init__(self, desk: Desk, gangs: Gangs, nodes: Nodes, runs: Runs) -> None:
        self.runs = runs
        self.desk = desk
        self.gangs = gangs
        self.nodes = nodes
        self.changes = Changes(desk, gangs, self)
        self.fresh: dict[int, JobRecord] = {}  # new jobs of the rows that are looked at, by ``seq``

    def load_submitted(
        self, rows: Sequence[InboxRow], reader: JobReader, over: Collection[JobKey] = ()
    ) -> None:
        """The new jobs that these rows are about, in one read; ``over``: jobs whose end is not written yet.

        A job that a leader loaded with all the others may end before its row's turn has come.
        """
        seqs = tuple({row.seq for row in rows if row.kind == SUBMIT and row.seq is not None})
        jobs = reader.jobs(JobFilter(seqs=seqs, elements=False)) if seqs else ()
        self.fresh = {}
        for job in jobs:
            ended = job.key in over
            self.fresh[job.seq] = replace(job, state=JobState.COMPLETE) if ended else job
            self.gangs.submissions.put(job.seq, job.submission)

    def on_row(self, row: InboxRow) -> None:
        """One row. Raises InvalidValue for a payload that makes no sense."""
        self.desk.effects.via = row.via
        if row.kind == wishes.NODE:
            words = row.payload
            of, action, gpu = (str(words.get(name) or "") for name in ("node", "action", "gpu"))
            self.nodes.on_wish(of, action, words.get("note"), row.user, gpu)
            return
        if row.kind == wishes.OBJECT:
            objects.on_wish(self.desk, row)
            return
        if row.kind == wishes.SCHEDULE:
            self.desk.effects.schedules.append((row.user, row.payload))
            return
        if row.seq is None:
            raise InvalidValue(f"an inbox row of kind {row.kind} without a job")
        if row.kind == SUBMIT:
            self._on_submit(self.fresh.get(row.seq))
            return
        if self._outrun(row):
            return
        if (parent := self.gangs.arrays.find(row.seq)) is not None:
            self._on_array(parent, row)
            return
        job = self.desk.cluster.jobs.get(JobKey(row.seq, row.payload.get("index")))
        if job is None:
            log.info("wish outrun kind=%s job=%d user=%s", row.kind, row.seq, row.user)
            return
        self._on_job(job, row)

    def _outrun(self, row: InboxRow) -> bool:
        """Whether the router gives up a job that has left its route queue, or begun, meanwhile."""
        job, origin = self.desk.cluster.jobs.get(JobKey(row.seq or 0)), row.payload.get("from")
        if row.kind != wishes.DELETE or origin is None or job is None:
            return False
        return job.queue != origin or job.state in _RUNNING

    def _on_job(self, job: JobRecord, row: InboxRow) -> None:
        match row.kind:
            case wishes.DELETE:
                self._on_delete(job, row)
            case wishes.HOLD:
                self._set_holds(job, "held", row, set(job.holds) | _kinds(row))
            case wishes.RELEASE:
                self._set_holds(job, "released", row, set(job.holds) - _kinds(row))
            case wishes.SIGNAL:
                self._on_signal(job, row)
            case wishes.RUN:
                self.runs.on_wish(job, row)
            case _ if self.changes.take(job, row):
                pass
            case _:
                log.warning("unknown wish kind=%s job=%s user=%s", row.kind, job.id, row.user)
                self.desk.move(job, job.state, "ignored", {"wish": row.kind, "user": row.user})

    def _on_array(self, parent: JobRecord, row: InboxRow) -> None:
        """A wish about an array, or about some of its elements."""
        arrays, wanted = self.gangs.arrays, _elements(row.payload)
        rows = arrays.rows(parent, _EVERY if wanted is None else wanted)
        match row.kind:
            case wishes.DELETE:
                message = str(row.payload.get("message") or "")
                arrays.delete_waiting(parent, _EVERY if wanted is None else wanted, row.user, message)
                for element in rows:
                    self._on_delete(element, row)
                arrays.settle(parent.seq)
            case wishes.SIGNAL | wishes.SUSPEND | wishes.RERUN | wishes.MESSAGE:
                for element in rows:
                    self._on_job(element, row)
            case wishes.MOVE if wanted is None:
                for job in (parent, *rows):  # elements that wait to run again go with it
                    self._on_job(job, row)
            case _:
                for job in [parent] if wanted is None else rows:
                    self._on_job(job, row)

    # --- new jobs, times and dependencies

    def _on_submit(self, job: JobRecord | None) -> None:
        if job is None:
            return
        self.desk.effects.accounting.append(accounting.queued(job, self.desk.now))
        if job.key not in self.desk.cluster.jobs:  # else this leader loaded it with all the others
            self.desk.cluster.put(replace(job, submission={}))
            self.settle(job)
        for kind, seq in job.submission.get("before", ()):
            self._precede(Dependency(DependencyKind(kind), job.seq), JobKey(int(seq)))

    def _precede(self, first: Dependency, key: JobKey) -> None:
        """A new job is to come before one that waits for that."""
        job = self.desk.cluster.jobs.get(key)
        dependencies = None if job is None or job.state in _RUNNING else preceded(job.dependencies, first)
        if job is None or dependencies is None:
            log.info("nobody waits for job=%d to precede job=%d", first.seq, key.seq)
            return
        self.desk.move(job, job.state, "preceded", {"by": first.seq}, dependencies=dependencies)
        self.judge(key)

    def settle(self, job: JobRecord) -> None:
        """A job that waits is put where it belongs: by its dependencies, its holds and its time."""
        if job.dependencies:
            self.judge(job.key)
        if (now := self.desk.cluster.jobs.get(job.key)) and now.state is JobState.WAITING:
            self._watch_time(now)

    def _watch_time(self, job: JobRecord) -> None:
        if job.not_before is not None:
            delay = (job.not_before - self.desk.now).total_seconds()
            self.desk.alarms.set(max(0.0, delay), partial(self._on_time, job.key))

    def _on_time(self, key: JobKey) -> None:
        job = self.desk.cluster.jobs.get(key)
        if job is None or job.state is not JobState.WAITING:
            return
        if job.not_before is not None and job.not_before > self.desk.now:
            self._watch_time(job)
        else:
            self.desk.move(job, JobState.QUEUED, "due", queued_at=self.desk.now)

    def judge(self, key: JobKey) -> None:
        """Looks again whether a job's dependencies let it go."""
        job = self.desk.cluster.jobs.get(key)
        if job is None or job.state in _RUNNING or not job.dependencies:
            return
        if job.array_spec is not None and job.started_at is not None:
            return  # it has begun, and is held now
        held = DEPENDENCY_HOLD in job.holds
        if held and self._still_waits(job):
            return
        outcomes = self._outcomes(job)
        verdict = judge_all(job.dependencies, outcomes)
        if verdict is Verdict.IMPOSSIBLE:
            comment = f"can never start: {why_impossible(job.dependencies, outcomes)}"
            self._complete_unrun(job, "dependency failed", comment)
        elif verdict is Verdict.SATISFIED and held:
            self.rest(job, "dependency satisfied", set(job.holds) - {DEPENDENCY_HOLD})
        elif verdict is Verdict.WAITING and not held:
            self.rest(job, "dependency waits", {*job.holds, DEPENDENCY_HOLD})

    def _still_waits(self, job: JobRecord) -> bool:
        """By the picture alone; False: the database has to be asked. Each turn asks it of an array that runs."""
        live = self.desk.cluster.jobs
        parents = _parents(job)
        if not all(key in live for key in parents):
            return False
        return judge_all(job.dependencies, {key: live[key].outcome for key in parents}) is Verdict.WAITING

    def _outcomes(self, job: JobRecord) -> Mapping[JobKey, Outcome]:
        return self.desk.reader.outcomes(_parents(job))

    def _complete_unrun(self, job: JobRecord, event: str, comment: str, user: str = "") -> None:
        changes: dict[str, object] = {"cause": Cause.DELETED, "comment": comment[:1000]}
        if job.array_spec is not None:
            changes |= without(job, job.todo or ())
        if job.attempt:  # it ran once, and waited to run again
            changes["exit_status"] = exit_status(Cause.DELETED, None, None, False)
        if user and (status := canceled_status(self.desk.cluster.attributes, None)) is not None:
            changes["exit_status"] = status
        done = self.desk.move(job, JobState.COMPLETE, event, {"user": user} if user else {}, **changes)
        now = self.desk.now
        entry = accounting.deleted(done, user, now) if user else accounting.aborted(done, now)
        self.desk.effects.accounting.append(entry)
        self.gangs.arrays.element_over(done)

    # --- wishes

    def _on_delete(self, job: JobRecord, row: InboxRow) -> None:
        message = str(row.payload.get("message") or "")
        if job.state not in _RUNNING:
            self._complete_unrun(job, "deleted", message, row.user)
            return
        attempt = self.desk.cluster.current(job.key)
        text = f"deleted by {row.user}" + (f": {message}" if message else "")  # in the job's own log, too
        if row.payload.get("purge"):
            if attempt is not None:
                self.gangs.end(attempt, Cause.DELETED, None, text, 0.0)
                record = verdict(attempt, self.desk.now, Cause.DELETED, None, text)
                self.gangs.completion.finish(attempt, record)
            else:
                self._complete_unrun(job, "purged", message, row.user)
            return
        if job.state is JobState.RUNNING:
            # E without an end of the attempt is how the next leader knows that it has to go on ending it.
            self.desk.move(job, JobState.EXITING, "deleted", {"user": row.user, "message": message})
            self.desk.effects.accounting.append(accounting.deleted(job, row.user, self.desk.now))
        if attempt is not None:
            delay = row.payload.get("kill_delay")
            self.gangs.end(attempt, Cause.DELETED, None, text, None if delay is None else float(delay))

    def _set_holds(self, job: JobRecord, event: str, row: InboxRow, holds: set[str]) -> None:
        self.rest(job, event, holds, user=row.user)

    def rest(self, job: JobRecord, event: str, holds: set[str], user: str = "") -> None:
        """The job with these holds, in the state that follows from them and from its time."""
        text = "".join(sorted(holds))
        target = resting_state(text, job.not_before, self.desk.now)
        if job.state in _RUNNING and not (text and job.array_spec):
            target = job.state  # of an array that has begun no more elements start, those that run go on
        changes: dict[str, object] = {"holds": text}
        if job.state is JobState.HELD and target is JobState.QUEUED:
            changes["queued_at"] = self.desk.now
        payload = {"holds": text} | ({"user": user} if user else {})
        moved = self.desk.move(job, target, event, payload, **changes)
        if target is JobState.WAITING:
            self._watch_time(moved)

    def _on_signal(self, job: JobRecord, row: InboxRow) -> None:
        number = row.payload.get("signal")
        if not isinstance(number, int):
            raise InvalidValue(f"a signal wish with the signal {number!r}")
        attempt = self.desk.cluster.current(job.key)
        if attempt is not None:
            self.gangs.tell(attempt, wire.Signal(attempt=attempt.name, signal=number))
        self.desk.move(job, job.state, "signalled", {"user": row.user, "signal": number})


def _parents(job: JobRecord) -> list[JobKey]:
    return [JobKey(*one.parent) for one in job.dependencies if one.kind is not DependencyKind.ON]


def _elements(payload: Mapping[str, Any]) -> Ranges | None:
    """The elements that a wish names; None: the whole job."""
    if (index := payload.get("index")) is not None:
        return ((int(index), int(index) + 1),)
    given = payload.get("elements")
    return None if given is None else normal((int(start), int(stop)) for start, stop in given)


def _kinds(row: InboxRow) -> set[str]:
    """The letters of a hold or release wish."""
    kinds = row.payload.get("kinds")
    if not isinstance(kinds, str) or not set(kinds) <= set("uos"):
        raise InvalidValue(f"a {row.kind} wish with the kinds {kinds!r}")
    return set(kinds)
