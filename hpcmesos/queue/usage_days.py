"""GPU-hours and CPU-hours by day (UTC), user, project and queue: counted from attempts while these are kept, and
written down before they are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from sqlalchemy import Connection, func, select, text
from sqlalchemy.dialects.postgresql import insert

from hpcmesos.queue import tables as t


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageDay:
    """``runs``: attempts that began on the day. ``lost``: of attempts that ended by no fault of the job's."""

    day: date
    owner: str
    project: str
    queue: str
    runs: int
    gpu_seconds: float
    cpu_seconds: float
    lost_gpu_seconds: float


_ATTEMPTS = (t.attempts, t.attempts_history)
_PARTS = """
    SELECT a.started_at AS began, coalesce(a.ended_at, now()) AS ended,
           a.cause IN ('NODE_LOST', 'GPU_LOST', 'START_FAILED', 'PREEMPTED') AS lost,
           j.owner, j.project, j.queue, s.gpus, s.cpus
    FROM attempts{h} a
    JOIN jobs{h} j ON j.seq = a.seq AND j.element = a.element {same_job}
    JOIN LATERAL (
        SELECT sum(cardinality(shares.gpus)) AS gpus, sum(shares.cpus) AS cpus FROM shares{h} shares
        WHERE shares.seq = a.seq AND shares.element = a.element AND shares.number = a.number {same_share}
    ) s ON true
    WHERE a.started_at < :until AND coalesce(a.ended_at, now()) >= :since {recent}
"""
_HISTORY = {
    "h": "_history",
    "same_job": "AND j.ended_at = a.job_ended_at",
    "same_share": "AND shares.job_ended_at = a.job_ended_at",
    "recent": "AND a.job_ended_at >= :since",
}
_DAYS = text(
    "WITH parts AS ("  # noqa: S608 - made of constants only
    + _PARTS.format(h="", same_job="", same_share="", recent="")
    + "UNION ALL"
    + _PARTS.format(**_HISTORY)
    + """), clipped AS (
        SELECT parts.*, day, extract(epoch FROM least(ended, day + interval '1 day') - greatest(began, day)) AS ran
        FROM parts, generate_series(date_trunc('day', began, 'UTC'), ended, interval '1 day') AS day
        WHERE day >= :since AND day < :until
    )
    SELECT (day AT TIME ZONE 'UTC')::date AS day, owner, project, queue,
           count(*) FILTER (WHERE began >= day) AS runs,
           coalesce(sum(gpus * ran), 0)::float8 AS gpu_seconds, coalesce(sum(cpus * ran), 0)::float8 AS cpu_seconds,
           coalesce(sum(gpus * ran) FILTER (WHERE lost), 0)::float8 AS lost_gpu_seconds
    FROM clipped GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4"""
)

_STAY = text(
    "LOCK TABLE attempts_history, jobs_history, shares_history IN ACCESS SHARE MODE"
)  # a snapshot does not keep a partition from being dropped


def read_usage(connection: Connection, since: date, until: date) -> list[UsageDay]:
    """Days from ``since`` up to and without ``until``; what runs now counts until now.

    A leader may write days down and drop their attempts meanwhile: what is not written at the beginning stays until the
    end of this transaction, and is counted.
    """
    connection.execute(_STAY)
    first = _first_uncounted(connection)
    table = t.usage_days
    kept = select(table).where(table.c.day >= since, table.c.day < min(until, first))
    rows = [UsageDay(**row._mapping) for row in connection.execute(kept)]
    return rows + _count(connection, max(since, first), until)


def unwritten_days(connection: Connection, before: date) -> list[date]:
    """Days before ``before`` that are not written down and may have seen attempts, oldest first."""
    began = [connection.scalar(select(func.min(table.c.started_at))) for table in _ATTEMPTS]
    known = [at.astimezone(UTC).date() for at in began if at is not None]
    if not known:
        return []
    first = max(min(known), _first_uncounted(connection))
    return [first + timedelta(days=n) for n in range((before - first).days)]


def count_day(connection: Connection, day: date) -> list[UsageDay]:
    """What was used on a day, from attempts."""
    return _count(connection, day, day + timedelta(days=1))


def write_day(connection: Connection, found: Sequence[UsageDay]) -> None:
    """Writes a day down, whole; days in their order. What is dropped afterwards stays counted."""
    rows = [{name: getattr(one, name) for name in UsageDay.__slots__} for one in found]
    if rows:
        connection.execute(insert(t.usage_days).on_conflict_do_nothing(), rows)


def _first_uncounted(connection: Connection) -> date:
    last: date | None = connection.scalar(select(func.max(t.usage_days.c.day)))
    return date(2000, 1, 1) if last is None else last + timedelta(days=1)


def _count(connection: Connection, since: date, until: date) -> list[UsageDay]:
    if since >= until:
        return []
    bounds = {
        "since": datetime.combine(since, datetime.min.time(), UTC),
        "until": datetime.combine(until, datetime.min.time(), UTC),
    }
    return [UsageDay(**row._mapping) for row in connection.execute(_DAYS, bounds)]
