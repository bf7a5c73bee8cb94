"""What both the API and the leader read. Every method may raise DatabaseUnavailable.

A method is one statement, or several that read the hot table before history, into which rows only ever move: nothing
is missed between them. So they need no transaction, which would be two more round trips.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Select, Table, func, select, text, union_all

from hpcmesos.model import JobState
from hpcmesos.queue import queries
from hpcmesos.queue import tables as t
from hpcmesos.queue.engine import begin
from hpcmesos.queue.records import (
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
    attempt_record,
    element,
    event_record,
    gpu_record,
    job_record,
    node_record,
    share_record,
)

SERVER_SETTING = "server"
"""Where the server's attributes lie in ``settings``."""


class Reads:
    """Thread-safe reads over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._single = engine.execution_options(isolation_level="AUTOCOMMIT")  # for single statements

    def close(self) -> None:
        """Closes every connection; unusable afterwards."""
        self._engine.dispose()

    # jobs

    def job(self, seq: int, index: int | None = None) -> JobRecord | None:
        """A job with its submission, in history too; None: unknown."""
        with begin(self._single) as connection:
            for wanted in queries.ONE_JOB:
                if row := connection.execute(wanted, {"seq": seq, "element": element(index)}).first():
                    return job_record(row)
        return None

    def jobs(self, wanted: JobFilter) -> list[JobRecord]:
        """Jobs in the order of their ids."""
        with begin(self._single) as connection:
            return read_jobs(connection, wanted)

    def counts(self) -> dict[str, dict[str, int]]:
        """By queue, how many jobs are in each state, as long as they are not in history."""
        jobs = t.jobs.c
        wanted = select(jobs.queue, jobs.state, func.count()).group_by(jobs.queue, jobs.state)
        found: defaultdict[str, dict[str, int]] = defaultdict(dict)
        with begin(self._single) as connection:
            for queue, state, number in connection.execute(wanted):
                found[queue][state] = number
        return dict(found)

    def live_count(self, *, queue: str | None = None, owner: str | None = None) -> int:
        """How many jobs that are not over (an array is one) are in ``queue``, of ``owner``; None: any."""
        jobs = t.jobs.c
        wanted = select(func.count()).where(jobs.ended_at.is_(None), jobs.element == t.WHOLE_JOB)
        for column, value in ((jobs.queue, queue), (jobs.owner, owner)):
            if value is not None:
                wanted = wanted.where(column == value)
        with begin(self._single) as connection:
            return connection.scalar(wanted) or 0

    def attempts(self, seqs: Sequence[int], *, tails: bool = True) -> list[AttemptRecord]:
        """All attempts of these jobs, oldest first, in history too; without ``tails`` of the output those are empty."""
        with begin(self._single) as connection:
            return read_attempts(connection, seqs, tails=tails)

    def shares(self, seqs: Sequence[int], *, live_only: bool = False) -> list[ShareRecord]:
        """Shares of these jobs' attempts, by attempt and position; in history too unless ``live_only``."""
        with begin(self._single) as connection:
            wanted = queries.LIVE_SHARES if live_only else queries.SHARES
            rows = list(connection.execute(wanted, {"seqs": list(seqs)}))
            if not live_only and (missing := set(seqs) - {row.seq for row in rows}):
                rows += connection.execute(queries.OLD_SHARES, {"seqs": list(missing)})
                rows.sort(key=lambda row: (row.seq, row.element, row.number, row.position))
        return [share_record(row) for row in rows]

    def script(self, seq: int) -> bytes | None:
        """The job's script; None: it has none, or it is swept."""
        return self.scripts([seq]).get(seq)

    def scripts(self, seqs: Sequence[int]) -> dict[int, bytes]:
        """The scripts of those of these jobs that have one."""
        with begin(self._single) as connection:
            return {row.seq: row.script for row in connection.execute(queries.SCRIPTS, {"seqs": list(seqs)})}

    def outcomes(self, seqs: Sequence[int]) -> dict[int, Outcome]:
        """State and exit status of these jobs, in history too; unknown ones are left out."""
        rows = _both(t.jobs, t.jobs_history, "seq", "element", "state", "exit_status").subquery()
        wanted = select(rows).where(rows.c.seq == func.any(list(seqs)), rows.c.element == t.WHOLE_JOB)
        with begin(self._single) as connection:
            found = connection.execute(wanted)
            return {row.seq: Outcome(JobState(row.state), row.exit_status) for row in found}

    def events(self, after: int = 0, limit: int = 1000, seq: int | None = None) -> list[EventRecord]:
        """Events with an id above ``after``, in order; ``seq``: of one job."""
        wanted = select(t.events).where(t.events.c.id > after)
        if seq is not None:
            wanted = wanted.where(t.events.c.seq == seq)
        with begin(self._single) as connection:
            rows = connection.execute(wanted.order_by(t.events.c.id).limit(limit))
            return [event_record(row) for row in rows]

    # cluster

    def nodes(self) -> list[NodeRecord]:
        """Every node ever registered, with its GPUs in index order; by name."""
        with begin(self._single) as connection:
            return read_nodes(connection)

    def queues(self) -> list[QueueRecord]:
        with begin(self._single) as connection:
            return read_queues(connection)

    def server(self) -> dict[str, str]:
        """The attributes of the server that are set, as qmgr shows them."""
        with begin(self._single) as connection:
            return read_server(connection)

    def leader(self) -> LeaderRecord:
        """Who leads now, or led last."""
        wanted = select(t.leadership, (t.leadership.c.expires_at > func.clock_timestamp()).label("live"))
        with begin(self._single) as connection:
            return LeaderRecord(**connection.execute(wanted).one()._mapping)

    def timeline(self) -> int:
        """The timeline that PostgreSQL writes now; it grows with every failover."""
        with begin(self._single) as connection:
            return read_timeline(connection)


def read_timeline(connection: Connection) -> int:
    # The control file knows a new timeline only after the next checkpoint; the WAL's file name knows it at once.
    return int(str(connection.scalar(text("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)"))), 16)


def read_queues(connection: Connection) -> list[QueueRecord]:
    rows = connection.execute(select(t.queues).order_by(t.queues.c.name))
    return [QueueRecord(**row._mapping) for row in rows]


def read_server(connection: Connection) -> dict[str, str]:
    value = connection.scalar(select(t.settings.c.value).where(t.settings.c.name == SERVER_SETTING))
    return dict(value or {})


def read_nodes(connection: Connection) -> list[NodeRecord]:
    gpus: defaultdict[str, list[GpuRecord]] = defaultdict(list)
    for row in connection.execute(select(t.gpus).order_by(t.gpus.c.node, t.gpus.c["index"])):
        gpus[row.node].append(gpu_record(row))
    rows = connection.execute(select(t.nodes).order_by(t.nodes.c.name))
    return [node_record(row, gpus[row.name]) for row in rows]


def read_jobs(connection: Connection, wanted: JobFilter) -> list[JobRecord]:
    if wanted == JobFilter(seqs=wanted.seqs) and wanted.seqs is not None:
        found = connection.execute(queries.HOT_JOBS, {"seqs": list(wanted.seqs)})
        return [job_record(row) for row in found]
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


def read_attempts(connection: Connection, seqs: Sequence[int], *, tails: bool = True) -> list[AttemptRecord]:
    rows = list(connection.execute(queries.ATTEMPTS[tails], {"seqs": list(seqs)}))
    if missing := set(seqs) - {row.seq for row in rows}:
        rows += connection.execute(queries.OLD_ATTEMPTS[tails], {"seqs": list(missing)})
        rows.sort(key=lambda row: (row.seq, row.element, row.number))
    return [attempt_record(row) for row in rows]


def _both(hot: Table, history: Table | None, *names: str) -> Any:
    """The rows of a table and of its history, if wanted, as one SELECT; ``names``: columns, all by default."""
    columns = names or tuple(hot.c.keys())
    parts: list[Select[Any]] = [
        select(*(table.c[name] for name in columns)) for table in (hot, history) if table is not None
    ]
    return parts[0] if len(parts) == 1 else union_all(*parts)
