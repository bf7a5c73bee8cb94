"""What both the API and the leader read. Every method is one transaction and may raise DatabaseUnavailable."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Select, Table, func, select, text, union_all

from hpcmesos.model import JobState
from hpcmesos.queue import tables as t
from hpcmesos.queue.engine import begin
from hpcmesos.queue.records import (
    AttemptKey,
    AttemptRecord,
    EventRecord,
    GpuRecord,
    JobFilter,
    JobRecord,
    LeaderRecord,
    NodeRecord,
    Outcome,
    QueueRecord,
    ShareRecord,
)
from hpcmesos.queue.rows import (
    attempt_key,
    attempt_record,
    element,
    event_record,
    gpu_record,
    job_record,
    node_record,
    share_record,
)


class Reads:
    """Thread-safe reads over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def close(self) -> None:
        """Closes every connection; unusable afterwards."""
        self._engine.dispose()

    # jobs

    def job(self, seq: int, index: int | None = None) -> JobRecord | None:
        """A job with its submission, in history too; None: unknown."""
        with begin(self._engine) as connection:
            for table in (t.jobs, t.jobs_history):
                wanted = select(table).where(table.c.seq == seq, table.c.element == element(index))
                if row := connection.execute(wanted).first():
                    return job_record(row)
        return None

    def jobs(self, wanted: JobFilter) -> list[JobRecord]:
        """Jobs in the order of their ids."""
        with begin(self._engine) as connection:
            return read_jobs(connection, wanted)

    def attempts(self, seqs: Sequence[int]) -> list[AttemptRecord]:
        """All attempts of these jobs, oldest first, in history too."""
        with begin(self._engine) as connection:
            return read_attempts(connection, seqs)

    def shares(self, seqs: Sequence[int], *, live_only: bool = False) -> list[ShareRecord]:
        """Shares of these jobs' attempts, by attempt and position; in history too unless ``live_only``."""
        history = None if live_only else t.shares_history
        rows = _both(t.shares, history).subquery()
        wanted = select(rows).where(rows.c.seq == func.any(list(seqs)))
        if live_only:
            wanted = wanted.where(rows.c.released_at.is_(None))
        order = (rows.c.seq, rows.c.element, rows.c.number, rows.c.position)
        with begin(self._engine) as connection:
            return [share_record(row) for row in connection.execute(wanted.order_by(*order))]

    def script(self, seq: int) -> bytes | None:
        """The job's script; None: it has none, or it is swept."""
        wanted = select(t.job_scripts.c.script).where(t.job_scripts.c.seq == seq)
        with begin(self._engine) as connection:
            return connection.scalar(wanted)

    def outcomes(self, seqs: Sequence[int]) -> dict[int, Outcome]:
        """State and exit status of these jobs, in history too; unknown ones are left out."""
        rows = _both(t.jobs, t.jobs_history, "seq", "element", "state", "exit_status").subquery()
        wanted = select(rows).where(rows.c.seq == func.any(list(seqs)), rows.c.element == t.WHOLE_JOB)
        with begin(self._engine) as connection:
            found = connection.execute(wanted)
            return {row.seq: Outcome(JobState(row.state), row.exit_status) for row in found}

    def events(self, after: int = 0, limit: int = 1000, seq: int | None = None) -> list[EventRecord]:
        """Events with an id above ``after``, in order; ``seq``: of one job."""
        wanted = select(t.events).where(t.events.c.id > after)
        if seq is not None:
            wanted = wanted.where(t.events.c.seq == seq)
        with begin(self._engine) as connection:
            rows = connection.execute(wanted.order_by(t.events.c.id).limit(limit))
            return [event_record(row) for row in rows]

    # cluster

    def nodes(self) -> list[NodeRecord]:
        """Every node ever registered, with its GPUs in index order; by name."""
        with begin(self._engine) as connection:
            return read_nodes(connection)

    def queues(self) -> list[QueueRecord]:
        with begin(self._engine) as connection:
            return read_queues(connection)

    def leader(self) -> LeaderRecord:
        """Who leads now, or led last."""
        wanted = select(t.leadership, (t.leadership.c.expires_at > func.clock_timestamp()).label("live"))
        with begin(self._engine) as connection:
            return LeaderRecord(**connection.execute(wanted).one()._mapping)

    def timeline(self) -> int:
        """The timeline that PostgreSQL writes now; it grows with every failover."""
        with begin(self._engine) as connection:
            return read_timeline(connection)


def read_timeline(connection: Connection) -> int:
    # The control file knows a new timeline only after the next checkpoint; the WAL's file name knows it at once.
    return int(str(connection.scalar(text("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)"))), 16)


def read_queues(connection: Connection) -> list[QueueRecord]:
    rows = connection.execute(select(t.queues).order_by(t.queues.c.name))
    return [QueueRecord(**row._mapping) for row in rows]


def read_nodes(connection: Connection) -> list[NodeRecord]:
    gpus: defaultdict[str, list[GpuRecord]] = defaultdict(list)
    for row in connection.execute(select(t.gpus).order_by(t.gpus.c.node, t.gpus.c["index"])):
        gpus[row.node].append(gpu_record(row))
    rows = connection.execute(select(t.nodes).order_by(t.nodes.c.name))
    return [node_record(row, gpus[row.name]) for row in rows]


def read_jobs(connection: Connection, wanted: JobFilter) -> list[JobRecord]:
    columns = [c.name for c in t.jobs.c if not (wanted.brief and c.name == "submission")]
    history = t.jobs_history if wanted.history else None
    rows = _both(t.jobs, history, *columns).subquery()
    query = select(rows)
    if wanted.seqs is not None:
        query = query.where(rows.c.seq == func.any(list(wanted.seqs)))
    if wanted.owners is not None:
        query = query.where(rows.c.owner.in_(wanted.owners))
    if wanted.queues is not None:
        query = query.where(rows.c.queue.in_(wanted.queues))
    if wanted.states is not None:
        query = query.where(rows.c.state.in_(sorted(wanted.states)))
        if JobState.COMPLETE not in wanted.states:
            query = query.where(rows.c.ended_at.is_(None))
    query = query.order_by(rows.c.seq, rows.c.element).limit(wanted.limit)
    return [job_record(row) for row in connection.execute(query)]


def read_attempts(connection: Connection, seqs: Sequence[int]) -> list[AttemptRecord]:
    wanted = list(seqs)
    found = _both(t.steps, t.steps_history).subquery()
    of_attempt: defaultdict[AttemptKey, list[Any]] = defaultdict(list)
    for row in connection.execute(
        select(found).where(found.c.seq == func.any(wanted)).order_by(func.length(found.c.step), found.c.step)
    ):
        of_attempt[attempt_key(row)].append(row)
    rows = _both(t.attempts, t.attempts_history).subquery()
    query = select(rows).where(rows.c.seq == func.any(wanted))
    query = query.order_by(rows.c.seq, rows.c.element, rows.c.number)
    return [attempt_record(row, of_attempt[attempt_key(row)]) for row in connection.execute(query)]


def _both(hot: Table, history: Table | None, *names: str) -> Any:
    """The rows of a table and of its history, if wanted, as one SELECT; ``names``: columns, all by default."""
    columns = names or tuple(hot.c.keys())
    parts: list[Select[Any]] = [
        select(*(table.c[name] for name in columns)) for table in (hot, history) if table is not None
    ]
    return parts[0] if len(parts) == 1 else union_all(*parts)
