"""Users' schedules: what is due becomes a job, once, whoever leads. A thread of the leader, beside the planner.

The row of the run, the job and the schedule's next due time are written in one transaction: a leader that dies before
the commit leaves a due time to the next one, one that dies after it leaves a job.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import msgspec
from msgspec import structs

from hpcmesos.errors import DatabaseUnavailable, InvalidValue
from hpcmesos.master.bounds import Bound, of_queue, of_server
from hpcmesos.master.services import wishes
from hpcmesos.model import Cause
from hpcmesos.queue import rules
from hpcmesos.queue.leader_store import LeaderStore, LeaderTransaction
from hpcmesos.queue.records import NewJob, QueueRecord
from hpcmesos.queue.room import Kind
from hpcmesos.queue.schedule_rows import EndedRun, Schedule
from hpcmesos.queue.timetable import Timetable

log = logging.getLogger(__name__)

_LONGEST = 1.0  # seconds between two looks; ends of jobs are seen by them
_AT_ONCE = 50  # schedules, or runs, of one kind that one transaction looks at
_MOST = 100  # due times of one schedule that one transaction looks at


@dataclass(frozen=True, slots=True)
class Decision:
    """``run``: due times that fire; ``missed``: that do not."""

    run: Sequence[datetime]
    missed: Sequence[datetime]


def decide(due: Sequence[datetime], now: datetime, schedule: Schedule, *, more: bool = False) -> Decision:
    """What becomes of due times. ``more``: there are later ones, so none of these is the last that was missed."""
    deadline = timedelta(seconds=schedule.deadline)
    late = [at for at in due if now - at > deadline]
    timely = list(due[len(late) :])
    if schedule.missed == "all":
        return Decision(due, [])
    if schedule.missed == "skip" or (more and not timely) or not late:
        return Decision(timely, late)
    return Decision([late[-1], *timely], late[:-1])


class TimetableThread:
    """Fires what is due. ``poke``: wakes the planner when there are new jobs."""

    def __init__(self, store: LeaderStore, poke: Callable[[], None]) -> None:
        self._store = store
        self._poke = poke

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set. Raises what ends leadership."""
        pause = 0.0
        while not stop.wait(pause):
            try:
                pause = self.look()
            except DatabaseUnavailable as error:
                log.warning("schedules are looked at later: %s", error)
                pause = _LONGEST

    def look(self) -> float:
        """One transaction; answers after how many seconds to look again."""
        with self._store.transaction() as transaction:
            table = transaction.timetable()
            firing = Firing(table)
            upcoming = table.next_look()
            more = firing.all_due() if upcoming is not None and upcoming <= transaction.now else False
            more |= firing.all_ended()
            upcoming = table.next_look()
        if firing.submitted:
            self._poke()
        if more:
            return 0.0
        wait = _LONGEST if upcoming is None else (upcoming - transaction.now).total_seconds()
        return min(_LONGEST, max(0.01, wait))


class Firing:
    """Turns due times into jobs inside one transaction."""

    def __init__(self, table: Timetable) -> None:
        self._table = table
        self.now = table.now
        self.submitted: list[int] = []
        self._tried = 0  # runs, also those that were refused
        self._there: dict[Kind, int] = {}  # jobs that are not over

    def all_due(self) -> bool:
        """Fires what is due; whether there may be more than this transaction took."""
        due = self._table.due(_AT_ONCE)
        more = []
        for one in due:
            if self._tried >= _MOST:  # after an outage each may have a hundred; the rest is still due
                return True
            more.append(self._on_due(one))
        retries = self._table.retries(_AT_ONCE)
        for run in retries:
            schedule = self._table.get(run.owner, run.schedule)
            if schedule is not None and not schedule.paused:
                self.submit(schedule, run.due, run.number + 1)
        return any(more) or _AT_ONCE in (len(due), len(retries))

    def all_ended(self) -> bool:
        """Looks at runs whose jobs have ended; whether there may be more."""
        ended = self._table.ended(_AT_ONCE)
        for one in ended:
            self._on_end(one)
        return len(ended) == _AT_ONCE

    def _on_due(self, schedule: Schedule) -> bool:
        """Fires one schedule; whether it has more due times."""
        try:
            rule = rules.parse(schedule.rule, schedule.timezone)
        except InvalidValue as error:  # e.g. a time zone that this host does not know
            log.error("schedule %s of %s is paused: %s", schedule.name, schedule.owner, error)
            self._table.change(schedule, paused=True, next_due=None)
            return False
        due = rules.due_times(rule, schedule.since, self.now, _MOST)
        more = len(due) == _MOST
        decision = decide(due, self.now, schedule, more=more)
        if decision.missed:
            self._table.claim(schedule, decision.missed[-1], 0, f"missed, {len(decision.missed)} due times")
        for at in decision.run:
            self.submit(schedule, at, 0)
        last = due[-1] if due else schedule.since
        self._table.change(schedule, since=last, next_due=rule.after(last))
        return more

    def submit(self, schedule: Schedule, due: datetime, number: int) -> bool:
        """A job for this due time, unless its owner does not want one now; False: the due time has had its run."""
        job = schedule.job
        assert job is not None
        self._tried += 1
        live = self._table.live_jobs(schedule) if schedule.overlap != "allow" else []
        if live and schedule.overlap == "skip":
            why_not = f"skipped, job {live[0]} has not ended"
        else:
            why_not = self._why_not(job, live)
        if not self._table.claim(schedule, due, number, why_not):
            return False
        if why_not:
            return True
        for kind in {bound.kind for bound in self._bounds(job)}:
            self._there[kind] += 1
        self.submitted.append(self._table.submit(schedule, due, number, _told(job, schedule, due, number)))
        for seq in live:  # overlap is "replace"
            payload = {"message": f"replaced by the next run of schedule {schedule.name}"}
            self._table.wish(wishes.DELETE, seq, job.owner, payload)
        return True

    @cached_property
    def _queues(self) -> dict[str, QueueRecord]:
        return {queue.name: queue for queue in self._table.queues()}

    @cached_property
    def _server(self) -> dict[str, str]:
        return self._table.server()

    def _why_not(self, job: NewJob, replaced: Sequence[int]) -> str:
        """``replaced``: jobs that go when this one comes."""
        if (queue := self._queues.get(job.queue)) is None:
            return f"refused, there is no queue {job.queue}"
        if not queue.enabled:
            return f"refused, queue {job.queue} is not enabled"
        for bound in self._bounds(job):
            there = self._count(bound.kind)
            if there >= bound.most and there - self._table.live_count(bound.kind, replaced) >= bound.most:
                return f"refused, {bound.told(there)}"
        return ""

    def _bounds(self, job: NewJob) -> Iterator[Bound]:
        """Of its queue, which is there, and of the server."""
        who = job.owner, job.egroup, job.project
        yield from of_queue(self._queues[job.queue], *who)
        yield from of_server(self._server, *who)

    def _count(self, kind: Kind) -> int:
        """Counted once in a transaction, for that may take long; what it submits itself is added."""
        if kind not in self._there:
            self._there[kind] = self._table.live_count(kind)
        return self._there[kind]

    def _on_end(self, one: EndedRun) -> None:
        run, status = one.run, one.exit_status
        schedule = self._table.get(run.owner, run.schedule)
        outcome = "ended, no exit status" if status is None else f"exit {status}"
        again = (
            schedule is not None
            and status not in (0, None)
            and one.cause != Cause.DELETED  # by its owner, or for the next run
            and run.number < schedule.retries
        )
        delay = timedelta(seconds=schedule.retry_delay) if schedule is not None else timedelta()
        self._table.settle(run, outcome, self.now + delay if again else None)
        if status == 0:
            for child in self._table.children(run.owner, run.schedule):
                self._feed(child, run.schedule)

    def _feed(self, child: Schedule, parent: str) -> None:
        """A parent's run has ended well: once all parents have one, the child runs."""
        fed = {name: child.fed.get(name, 0) for name in child.parents}
        if child.paused:
            return
        fed[parent] += 1
        if all(fed.values()):
            fed = {name: count - 1 for name, count in fed.items()}
            due = self.now
            while not self.submit(child, due, 0):  # it may have run at that very time
                due += timedelta(microseconds=1)
        self._table.change(child, fed=fed)


def on_wish(transaction: LeaderTransaction, user: str, payload: Mapping[str, Any]) -> None:
    """What a user wishes of a schedule; rights and values were checked when it was written. See wishes.py.

    Who follows whom is looked at once more: one that follows nobody would never run.
    """
    table = transaction.timetable()
    owner, name = str(payload["owner"]), str(payload["name"])
    schedule = table.get(owner, name)
    match payload["action"]:
        case "add":
            made = msgspec.convert(payload["schedule"], Schedule)
            if gone := [parent for parent in made.parents if table.get(owner, parent) is None]:
                log.info("schedule %s/%s would follow %s, which is gone", owner, name, gone[0])
            elif not table.put(made):
                log.info("schedule %s/%s is there already", owner, name)
        case "remove" if not table.children(owner, name):
            table.remove(owner, name)
        case "pause" if schedule is not None:
            table.change(schedule, paused=True, next_due=None)
        case "resume" if schedule is not None and schedule.paused:
            upcoming = None
            if schedule.rule:
                upcoming = rules.parse(schedule.rule, schedule.timezone).after(transaction.now)
            table.change(schedule, paused=False, since=transaction.now, next_due=upcoming)
        case "run" if schedule is not None:
            Firing(table).submit(schedule, transaction.now, 0)
        case _:
            log.info("wish outrun schedule=%s/%s user=%s %s", owner, name, user, payload["action"])


def _told(job: NewJob, schedule: Schedule, due: datetime, number: int) -> NewJob:
    """The job, which is told what it is a run of."""
    told = {
        "HPCMESOS_SCHEDULE": schedule.name,
        "HPCMESOS_SCHEDULE_DUE": due.isoformat(timespec="microseconds"),
        "HPCMESOS_SCHEDULE_TRY": str(number),
    }
    environment = {**job.submission.get("environment", {}), **told}
    return structs.replace(job, submission={**job.submission, "environment": environment})
