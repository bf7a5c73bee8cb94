"""Ended jobs into daily partitions, and the partitions themselves. Inside a leader's transaction.

Partitions are made and dropped by functions of the database's owner, for the leader's role may not create tables.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    DateTime,
    Insert,
    Integer,
    Table,
    delete,
    exists,
    func,
    insert,
    select,
)

from hpcmesos.queue import tables as t
from hpcmesos.queue.rows import recordset

_LOCK_TIMEOUT = "200ms"
_MOVED = (  # what refers to another comes first
    (t.steps, t.steps_history),
    (t.shares, t.shares_history),
    (t.attempts, t.attempts_history),
    (t.jobs, t.jobs_history),
)


def sweep(connection: Connection, before: datetime, limit: int) -> int:
    """Moves at most ``limit`` jobs that ended before, oldest first; answers how many."""
    jobs, shares = t.jobs.c, t.shares.c
    held = exists().where(
        shares.seq == jobs.seq, shares.element == jobs.element, shares.released_at.is_(None)
    )
    parts = t.jobs.alias("parts")  # what an array was submitted with stays beside its elements
    whole = exists().where(
        parts.c.seq == jobs.seq, parts.c.element != t.WHOLE_JOB, jobs.element == t.WHOLE_JOB
    )
    wanted = select(jobs.seq, jobs.element, jobs.ended_at).where(jobs.ended_at < before, ~held, ~whole)
    rows = connection.execute(wanted.order_by(jobs.ended_at).limit(limit)).all()
    if not rows:
        return 0
    make_partitions(connection, rows[0].ended_at, rows[-1].ended_at)
    ended = [{"seq": row.seq, "element": row.element, "job_ended_at": row.ended_at} for row in rows]
    swept = recordset({"seq": BigInteger(), "element": Integer(), "job_ended_at": DateTime(timezone=True)})
    for hot, history in _MOVED:
        connection.execute(_moving(hot, history, swept), {"rows": ended})
    script = (t.job_scripts.c.seq == swept.c.seq, swept.c.element == t.WHOLE_JOB)
    connection.execute(delete(t.job_scripts).where(*script), {"rows": ended})
    return len(rows)


def _moving(hot: Table, history: Table, swept: Any) -> Insert:
    columns: list[Any] = list(hot.c)
    if "job_ended_at" in history.c:
        columns.append(swept.c.job_ended_at)
    gone = delete(hot).where(hot.c.seq == swept.c.seq, hot.c.element == swept.c.element)
    moved = gone.returning(*columns).cte("moved")
    return insert(history).from_select([c.name for c in moved.c], select(*moved.c))


def make_partitions(connection: Connection, first: datetime, last: datetime) -> None:
    """Makes the partitions of these days (UTC), both included, where missing."""
    _wait_briefly(connection)
    connection.execute(select(func.hpcmesos_make_partitions(_day(first), _day(last))))


def drop_partitions(connection: Connection, before: datetime) -> int:
    """Drops the partitions of whole days before; answers how many."""
    _wait_briefly(connection)
    return int(connection.scalar(select(func.hpcmesos_drop_partitions(_day(before)))) or 0)


def _wait_briefly(connection: Connection) -> None:
    """Whoever wants a table waits behind one that waits to change it: better to try again some other time."""
    connection.execute(select(func.set_config("lock_timeout", _LOCK_TIMEOUT, True)))


def _day(at: datetime) -> date:
    return at.astimezone(UTC).date()
