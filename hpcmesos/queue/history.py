"""Ended jobs into daily partitions, and the partitions themselves. Inside a leader's transaction.

Partitions are made and dropped by functions of the database's owner, for the leader's role may not create tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    DateTime,
    Insert,
    Integer,
    Select,
    Table,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
)

from hpcmesos.queue import tables as t
from hpcmesos.queue.rows import recordset, still_held

_LOCK_TIMEOUT = "200ms"
_MOVED = (  # what refers to another comes first
    (t.steps, t.steps_history),
    (t.shares, t.shares_history),
    (t.attempts, t.attempts_history),
    (t.jobs, t.jobs_history),
)


@dataclass
class Place:
    """Up to where a sweep in several pieces has come. To begin each piece with the oldest job again would lead past all
    that was moved before: it stays in the index until a vacuum, and longer while somebody holds a snapshot.
    """

    last: Sequence[Any] = ()  # ended_at, seq and element of a job


def sweep(connection: Connection, before: datetime, limit: int, place: Place) -> int:
    """Moves at most ``limit`` jobs that ended before, oldest first, from ``place`` on; answers how many."""
    rows = _over(connection, before, limit, place)
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


def _over(connection: Connection, before: datetime, limit: int, place: Place) -> list[Any]:
    """Keys and ends of jobs that can go; ``place`` is behind them then.

    Looked at page by page, each table once a page: a join would be planned by statistics that are wrong whenever most
    rows are dead (somebody holds a snapshot) or were counted when nearly none was there, and then take minutes.
    """
    found: list[Any] = []
    jobs = t.jobs.c
    order = (jobs.ended_at, jobs.seq, jobs.element)
    ended = select(*order).where(jobs.ended_at < before).order_by(*order).limit(limit)
    while len(found) < limit:
        behind = (tuple_(*order) > tuple_(*place.last),) if place.last else ()
        page = connection.execute(ended.where(*behind)).all()
        needed = _needed(connection, page)
        found += [row for row in page if (row.seq, row.element) not in needed]
        if len(page) < limit:
            break
        place.last = page[-1]
    if len(found) >= limit:
        place.last = found[limit - 1]
    return found[:limit]


def _needed(connection: Connection, rows: Sequence[Any]) -> set[tuple[int, int]]:
    """Of these jobs those of which a node still holds a share, and arrays, which stay beside their elements."""
    given = [{"seq": row.seq, "element": row.element} for row in rows]
    return {(row.seq, row.element) for row in connection.execute(_needing(), {"rows": given})}


@cache
def _needing() -> Select[tuple[int, int]]:
    """Asked for each job by its key (a subquery with a limit is not made a join): an array may have 100,000 elements,
    and the index of live shares names all that were released since the last vacuum.
    """
    asked, jobs, shares = recordset({"seq": BigInteger(), "element": Integer()}).c, t.jobs.c, t.shares.c
    mine = (shares.seq == asked.seq, shares.element == asked.element, still_held(shares.released_at))
    theirs = (asked.element == t.WHOLE_JOB, jobs.seq == asked.seq, jobs.element > t.WHOLE_JOB)
    held = select(literal(True)).where(*mine).limit(1).scalar_subquery()
    array = select(literal(True)).where(*theirs).limit(1).scalar_subquery()
    return select(asked.seq, asked.element).where(or_(held, array))


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
