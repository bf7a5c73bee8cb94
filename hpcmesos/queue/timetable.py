"""Rows of users' schedules and of what they fired. ``schedule_runs`` has one row for each due time and try: whoever
inserts it submits the job, in the same transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import structs
from sqlalchemy import Connection, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from hpcmesos.model import JobState
from hpcmesos.queue import documents
from hpcmesos.queue import tables as t
from hpcmesos.queue.reads import read_documents, read_queues
from hpcmesos.queue.records import NewJob, QueueRecord
from hpcmesos.queue.room import Kind, count_live
from hpcmesos.queue.schedule_rows import PLAIN, EndedRun, Run, Schedule, run_record, schedule_record
from hpcmesos.queue.store import SUBMIT, insert_jobs

_RUNS = t.schedule_runs.c
_SCHEDULES = t.schedules.c


class Timetable:
    """On a leader's transaction. ``now``: the database's clock."""

    def __init__(self, connection: Connection, now: datetime) -> None:
        self._connection = connection
        self.now = now

    # schedules

    def put(self, schedule: Schedule) -> bool:
        """Stores a new one; False: its owner has one of that name."""
        assert schedule.job is not None
        row = {name: getattr(schedule, name) for name in PLAIN}
        row["job"] = msgspec.to_builtins(structs.replace(schedule.job, script=None))
        row["script"] = schedule.job.script
        row["parents"], row["fed"] = list(schedule.parents), dict(schedule.fed)
        new = insert(t.schedules).values(row).on_conflict_do_nothing().returning(_SCHEDULES.name)
        return self._connection.execute(new).first() is not None

    def get(self, owner: str, name: str) -> Schedule | None:
        """Locked until the transaction ends."""
        wanted = select(t.schedules).where(_SCHEDULES.owner == owner, _SCHEDULES.name == name)
        row = self._connection.execute(wanted.with_for_update()).first()
        return None if row is None else schedule_record(row)

    def remove(self, owner: str, name: str) -> None:
        """With all that is known of its runs; jobs stay."""
        gone = delete(t.schedules).where(_SCHEDULES.owner == owner, _SCHEDULES.name == name)
        self._connection.execute(gone)

    def change(self, schedule: Schedule, **values: Any) -> None:
        """Sets columns."""
        mine = (_SCHEDULES.owner == schedule.owner, _SCHEDULES.name == schedule.name)
        self._connection.execute(update(t.schedules).where(*mine).values(**values))

    def due(self, most: int) -> list[Schedule]:
        """Those that are due, the longest due first; locked."""
        wanted = select(t.schedules).where(_SCHEDULES.next_due <= self.now).order_by(_SCHEDULES.next_due)
        rows = self._connection.execute(wanted.limit(most).with_for_update())
        return [schedule_record(row) for row in rows]

    def children(self, owner: str, parent: str) -> list[Schedule]:
        """Those that follow it; locked."""
        mine = (_SCHEDULES.owner == owner, _SCHEDULES.parents.contains([parent]))
        rows = self._connection.execute(select(t.schedules).where(*mine).with_for_update())
        return [schedule_record(row) for row in rows]

    def queues(self) -> list[QueueRecord]:
        """All queues."""
        return read_queues(self._connection)

    def server(self) -> dict[str, str]:
        """The server's attributes that are set."""
        return dict(read_documents(self._connection).get(documents.SERVER) or {})

    def live_count(self, kind: Kind, among: Sequence[int] | None = None) -> int:
        """How many jobs of the kind are not over; ``among``: of these."""
        return count_live(self._connection, kind, among)

    def next_look(self) -> datetime | None:
        """When the next thing is due."""
        dues = select(func.min(_SCHEDULES.next_due)).scalar_subquery()
        retries = select(func.min(_RUNS.retry_at)).scalar_subquery()
        found: datetime | None = self._connection.scalar(select(func.least(dues, retries)))
        return found

    # runs

    def claim(self, schedule: Schedule, due: datetime, number: int, outcome: str = "") -> bool:
        """Whether this due time, and this try of it, is still free; then it is taken."""
        row = {"owner": schedule.owner, "schedule": schedule.name, "due": due, "try": number}
        new = insert(t.schedule_runs).values(**row, outcome=outcome).on_conflict_do_nothing()
        return self._connection.execute(new.returning(_RUNS.due)).first() is not None

    def submit(self, schedule: Schedule, due: datetime, number: int, job: NewJob) -> int:
        """Inserts the job of a claimed run; its id."""
        seq = int(self._connection.scalar(select(t.job_ids.next_value())) or 0)
        insert_jobs(self._connection, {seq: job})
        told = {"kind": SUBMIT, "seq": seq, "user": job.owner}
        self._connection.execute(insert(t.inbox).values(told))
        mine = (_RUNS.owner == schedule.owner, _RUNS.schedule == schedule.name, _RUNS.due == due)
        taken = update(t.schedule_runs).where(*mine, _RUNS["try"] == number)
        self._connection.execute(taken.values(seq=seq))
        return seq

    def wish(self, kind: str, seq: int, user: str, payload: Mapping[str, Any]) -> None:
        """A wish about a job, as if its owner had made it."""
        row = {"kind": kind, "seq": seq, "user": user, "payload": dict(payload)}
        self._connection.execute(insert(t.inbox).values(row))

    def live_jobs(self, schedule: Schedule) -> list[int]:
        """Jobs of its runs that have not ended."""
        mine = (_RUNS.owner == schedule.owner, _RUNS.schedule == schedule.name, _RUNS.outcome == "")
        joined = t.schedule_runs.join(t.jobs, _PARENT)
        wanted = select(_RUNS.seq).select_from(joined).where(*mine, t.jobs.c.state != JobState.COMPLETE.value)
        return list(self._connection.scalars(wanted.order_by(_RUNS.seq)))

    def ended(self, most: int) -> list[EndedRun]:
        """Runs whose jobs have ended, and nobody has looked at them since."""
        joined = t.schedule_runs.outerjoin(t.jobs, _PARENT)
        over = or_(t.jobs.c.seq.is_(None), t.jobs.c.state == JobState.COMPLETE.value)
        history = t.jobs_history.c

        def of(name: str) -> Any:
            kept = select(history[name]).where(history.seq == _RUNS.seq, history.element == t.WHOLE_JOB)
            return func.coalesce(t.jobs.c[name], kept.scalar_subquery()).label(name)

        wanted = select(*t.schedule_runs.c, of("exit_status"), of("cause")).select_from(joined)
        rows = self._connection.execute(
            wanted.where(_RUNS.seq.is_not(None), _RUNS.outcome == "", over).limit(most)
        )
        return [EndedRun(run_record(row), row.exit_status, row.cause) for row in rows]

    def settle(self, run: Run, outcome: str, retry_at: datetime | None = None) -> None:
        """What became of it."""
        self._connection.execute(_this(run).values(outcome=outcome, retry_at=retry_at))

    def retries(self, most: int) -> list[Run]:
        """Runs that are to be tried again now; each is answered once."""
        wanted = select(t.schedule_runs).where(_RUNS.retry_at <= self.now).order_by(_RUNS.retry_at)
        found = [run_record(row) for row in self._connection.execute(wanted.limit(most))]
        for run in found:
            self._connection.execute(_this(run).values(retry_at=None))
        return found


_PARENT = (t.jobs.c.seq == _RUNS.seq) & (t.jobs.c.element == t.WHOLE_JOB)


def _this(run: Run) -> Any:
    mine = (_RUNS.owner == run.owner, _RUNS.schedule == run.schedule, _RUNS.due == run.due)
    return update(t.schedule_runs).where(*mine, _RUNS["try"] == run.number)
