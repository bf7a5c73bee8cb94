"""The jobs that are not over, kept over many looks; a look reads only the rows that changed since the one before.

PostgreSQL stamps every version of a row with the transaction that wrote it (``xmin``): what changed since a snapshot
was written by a transaction that was not over then. A standby looks again and again, so that it has little to read when
it takes over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, select, text

from hpcmesos.queue import tables as t
from hpcmesos.queue.records import JobKey, JobRecord
from hpcmesos.queue.rows import job_record
from hpcmesos.queue.states import LIVE

_COLUMNS = [column for column in t.jobs.c if column.name != "submission"]
_ALL = select(*_COLUMNS).where(t.jobs.c.ended_at.is_(None), t.jobs.c.state.in_(sorted(LIVE)))
_ALL = _ALL.order_by(t.jobs.c.seq, t.jobs.c.element)
_CHANGED = select(*_COLUMNS).where(text("age(jobs.xmin) <= age(CAST(:horizon AS xid))"))
_CHANGED = _CHANGED.order_by(t.jobs.c.seq, t.jobs.c.element)
_COUNT = select(func.count()).select_from(t.jobs).where(t.jobs.c.ended_at.is_(None))
_NOW = text(
    "SELECT CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS xid) AS text) AS horizon,"
    " pg_postmaster_start_time()::text || left(pg_walfile_name(pg_current_wal_lsn()), 8) AS server"
)


@dataclass(frozen=True, slots=True)
class Changes:
    """What a look found. ``anew``: ``put`` is everything, and what was known before is void."""

    put: Sequence[JobRecord]
    gone: Sequence[JobKey] = ()
    anew: bool = False


class LiveJobs:
    """Used by one thread at a time. ``jobs``: as of the last look, without their ``submission``."""

    def __init__(self) -> None:
        self.jobs: dict[JobKey, JobRecord] = {}
        self._horizon: str | None = None  # the oldest transaction that the last look did not see
        self._server = ""  # transactions of another server, or after a restart, are not compared

    def look(self, connection: Connection) -> Changes:
        """Brings ``jobs`` up to the snapshot of this transaction, which has to be REPEATABLE READ."""
        now = connection.execute(_NOW).one()
        horizon, self._horizon = self._horizon, None  # until this look is through, nothing is known
        if horizon is None or now.server != self._server:
            changes = self._read_all(connection)
        else:
            changes = self._read_changed(connection, horizon)
            if len(self.jobs) != connection.scalar(_COUNT):  # some left the table between two looks
                changes = self._read_all(connection)
        self._horizon, self._server = now.horizon, now.server
        return changes

    def _read_all(self, connection: Connection) -> Changes:
        self.jobs = {job.key: job for job in map(job_record, connection.execute(_ALL))}
        return Changes(tuple(self.jobs.values()), anew=True)

    def _read_changed(self, connection: Connection, horizon: str) -> Changes:
        put, gone = [], []
        for row in connection.execute(_CHANGED, {"horizon": horizon}):
            job = job_record(row)
            if job.ended_at is None:
                put.append(job)
                self.jobs[job.key] = job
            elif self.jobs.pop(job.key, None) is not None:
                gone.append(job.key)
        return Changes(put, gone)
