"""What both the API and the leader read. Every method may raise DatabaseUnavailable.

A method is one statement, or several that read the hot table before history, into which rows only ever move: nothing
is missed between them. So they need no transaction, which would be two more round trips.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any

from msgspec.structs import replace
from sqlalchemy import Connection, Engine, Select, Table, func, or_, select, text, union_all

from hpcmesos.queue import documents, elements, queries
from hpcmesos.queue import tables as t
from hpcmesos.queue.brief import BriefElements, Forgotten, read_brief_elements
from hpcmesos.queue.engine import begin
from hpcmesos.queue.records import (
    ArrayElements,
    AttemptRecord,
    AuthorityRecord,
    CertificateRecord,
    EventRecord,
    GpuRecord,
    JobFilter,
    JobKey,
    JobRecord,
    LeaderRecord,
    NodeRecord,
    Outcome,
    QueueRecord,
    SecretRecord,
    ServerRecord,
    ShareRecord,
)
from hpcmesos.queue.room import Kind, count_live
from hpcmesos.queue.rows import (
    array_elements,
    attempt_record,
    element,
    event_record,
    gpu_record,
    job_key,
    job_record,
    node_record,
    outcome,
    share_record,
)
from hpcmesos.queue.schedule_rows import Run, Schedule, read_runs, read_schedules

_MANY_ELEMENTS = 200  # of one array, from which on all of it is read


class Reads:
    """Thread-safe reads over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._single = engine.execution_options(isolation_level="AUTOCOMMIT")  # for single statements
        self._moment = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def close(self) -> None:
        """Closes every connection; unusable afterwards."""
        self._engine.dispose()

    @contextmanager
    def moment(self) -> Iterator[Connection]:
        """A read-only transaction that sees one moment of the database, for the functions below."""
        with begin(self._moment) as connection:
            yield connection

    # jobs

    def job(self, seq: int, index: int | None = None) -> JobRecord | None:
        """A job with its submission, in history too, or an element of an array that has no row; None: unknown."""
        with begin(self._single) as connection:
            if (job := _read_job(connection, seq, index)) is None and index is not None:
                return _read_late(connection, seq, index)
            return job if job is None or index is None else _with_submissions(connection, [job])[0]

    def jobs(self, wanted: JobFilter) -> list[JobRecord]:
        """Jobs in the order of their ids."""
        with begin(self._single) as connection:
            return read_jobs(connection, wanted)

    def owners(self, seqs: Sequence[int]) -> dict[int, str]:
        """Whose these jobs and arrays are, by their numbers; those that nobody knows any more are left out."""
        with begin(self._single) as connection:
            rows = connection.execute(queries.OWNERS, {"seqs": list(seqs), "whole": t.WHOLE_JOB})
            return {row.seq: row.owner for row in rows}

    def brief_elements(self, wanted: JobFilter, forgotten: Forgotten | None = None) -> list[BriefElements]:
        """Elements of arrays that have a row, as far as short lists show them, those that look alike as one."""
        with begin(self._single) as connection:
            return read_brief_elements(connection, wanted, forgotten)

    def certificates(self) -> list[CertificateRecord]:
        """Of nodes, those that have not run out, by node and time; revoked ones too."""
        columns = [t.certificates.c[field.name] for field in fields(CertificateRecord)]
        wanted = select(*columns).where(t.certificates.c.expires_at > func.now())
        wanted = wanted.order_by(t.certificates.c.node, t.certificates.c.issued_at)
        with begin(self._single) as connection:
            return [CertificateRecord(**row._mapping) for row in connection.execute(wanted)]

    def authorities(self) -> list[AuthorityRecord]:
        """All there have been, oldest first; none: the masters' files hold the only one."""
        columns = [t.authorities.c[field.name] for field in fields(AuthorityRecord)]
        wanted = select(*columns).order_by(t.authorities.c.made_at, t.authorities.c.signs_since)
        with begin(self._single) as connection:
            return [AuthorityRecord(**row._mapping) for row in connection.execute(wanted)]

    def revoked(self) -> frozenset[str]:
        """Serials of certificates that are good no more.

        Also of those that had run out before, for a day: a link that was made with one is still there.
        """
        kept = t.certificates.c
        lately = kept.revoked_at > func.now() - timedelta(days=1)
        wanted = select(kept.serial).where(
            kept.revoked_at.is_not(None), or_(kept.expires_at > func.now(), lately)
        )
        with begin(self._single) as connection:
            return frozenset(connection.scalars(wanted))

    def secrets(self, owner: str) -> list[SecretRecord]:
        """A user's, by name."""
        kept = t.secrets.c
        wanted = (
            select(kept.name, kept.sealed, kept.changed_at).where(kept.owner == owner).order_by(kept.name)
        )
        with begin(self._single) as connection:
            return [SecretRecord(**row._mapping) for row in connection.execute(wanted)]

    def arrays(self, seqs: Sequence[int]) -> dict[int, ArrayElements]:
        """Those of these arrays that are not in history, with what became of their elements; of one moment."""
        with begin(self._single) as connection:
            return {
                row.seq: array_elements(row)
                for row in connection.execute(queries.ARRAYS, {"seqs": list(seqs)})
            }

    def counts(self) -> dict[str, dict[str, int]]:
        """By queue, how many jobs are in each state, as long as they are not in history; an array counts as one."""
        jobs = t.jobs.c
        wanted = select(jobs.queue, jobs.state, func.count()).where(jobs.element == t.WHOLE_JOB)
        wanted = wanted.group_by(jobs.queue, jobs.state)
        found: defaultdict[str, dict[str, int]] = defaultdict(dict)
        with begin(self._single) as connection:
            for queue, state, number in connection.execute(wanted):
                found[queue][state] = number
        return dict(found)

    def live_count(self, kind: Kind) -> int:
        """How many jobs of the kind are not over; an array is one."""
        with begin(self._single) as connection:
            return count_live(connection, kind)

    def attempts(self, jobs: Sequence[int | JobKey], *, tails: bool = True) -> list[AttemptRecord]:
        """All attempts of these jobs, oldest first, in history too; without ``tails`` of the output those are empty.

        A number means a job with all its elements, a key one row.
        """
        with begin(self._single) as connection:
            return read_attempts(connection, jobs, tails=tails)

    def shares(self, jobs: Sequence[int | JobKey], *, live_only: bool = False) -> list[ShareRecord]:
        """Shares of these jobs' attempts, by attempt and position; in history too unless ``live_only``."""
        with begin(self._single) as connection:
            return read_shares(connection, jobs, live_only=live_only)

    def submissions(self, seqs: Sequence[int]) -> dict[int, Mapping[str, Any]]:
        """What these jobs, or arrays, were submitted with; in history too."""
        with begin(self._single) as connection:
            return _submissions(connection, set(seqs))

    def script(self, seq: int) -> bytes | None:
        """The job's script; None: it has none, or it is swept."""
        return self.scripts([seq]).get(seq)

    def scripts(self, seqs: Sequence[int]) -> dict[int, bytes]:
        """The scripts of those of these jobs that have one."""
        with begin(self._single) as connection:
            return {row.seq: row.script for row in connection.execute(queries.SCRIPTS, {"seqs": list(seqs)})}

    def outcomes(self, jobs: Iterable[JobKey]) -> dict[JobKey, Outcome]:
        """What became of these jobs, in history too; unknown ones are left out."""
        with begin(self._single) as connection:
            return read_outcomes(connection, set(jobs))

    def events(self, after: int = 0, limit: int = 1000, seq: int | None = None) -> list[EventRecord]:
        """Events with an id above ``after``, in order; ``seq``: of one job."""
        wanted = select(t.events).where(t.events.c.id > after)
        if seq is not None:
            wanted = wanted.where(t.events.c.seq == seq)
        with begin(self._single) as connection:
            rows = connection.execute(wanted.order_by(t.events.c.id).limit(limit))
            return [event_record(row) for row in rows]

    def last_events(
        self, jobs: Iterable[JobKey], kinds: Sequence[str], since: datetime
    ) -> dict[JobKey, EventRecord]:
        """Of each of these jobs the last event of one of these kinds, if it has had one ``since``."""
        keys = {(job.seq, element(job.index)) for job in jobs}
        told = t.events.c
        seqs = {seq for seq, _ in keys}
        wanted = select(t.events).where(told.seq.in_(seqs), told.kind.in_(kinds), told.at >= since)
        with begin(self._single) as connection:
            rows = [r for r in connection.execute(wanted.order_by(told.id)) if (r.seq, r.element) in keys]
        return {job_key(row): event_record(row) for row in rows}

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
            return dict(read_documents(connection).get(documents.SERVER) or {})

    def documents(self) -> dict[str, Any]:
        """All that is kept as one value each, by name; see documents.py."""
        with begin(self._single) as connection:
            return read_documents(connection)

    def schedules(self, owner: str | None, names: Sequence[str] | None = None) -> list[Schedule]:
        """Schedules of one user, or (None) of all, by owner and name; ``names`` None: all of them."""
        with begin(self._single) as connection:
            return read_schedules(connection, owner, names)

    def schedule_count(self, owner: str) -> int:
        """Of one user."""
        wanted = select(func.count()).select_from(t.schedules).where(t.schedules.c.owner == owner)
        with begin(self._single) as connection:
            return int(connection.scalar(wanted) or 0)

    def schedule_runs(self, owner: str, name: str, most: int) -> list[Run]:
        """The last ``most`` runs of a schedule, the latest first."""
        with begin(self._single) as connection:
            return read_runs(connection, owner, name, most)

    def leader(self) -> LeaderRecord:
        """Who leads now, or led last."""
        wanted = select(t.leadership, (t.leadership.c.expires_at > func.clock_timestamp()).label("live"))
        with begin(self._single) as connection:
            return LeaderRecord(**connection.execute(wanted).one()._mapping)

    def database_server(self) -> ServerRecord:
        """The server's settings on which our promises rest."""
        names = ("server_version_num", "fsync", "synchronous_commit", "synchronous_standby_names")
        wanted = select(*(func.current_setting(name) for name in names))
        with begin(self._single) as connection:
            version, fsync, commit, standbys = connection.execute(wanted).one()
            timeline = read_timeline(connection)
        return ServerRecord(
            version=int(version),
            timeline=timeline,
            fsync=fsync == "on",
            synchronous_commit=commit,
            standbys=standbys,
        )

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


def read_documents(connection: Connection) -> dict[str, Any]:
    return {row.name: row.value for row in connection.execute(select(t.settings))}


def read_nodes(connection: Connection) -> list[NodeRecord]:
    """All nodes with their GPUs, by name and index."""
    gpus: defaultdict[str, list[GpuRecord]] = defaultdict(list)
    for row in connection.execute(select(t.gpus).order_by(t.gpus.c.node, t.gpus.c["index"])):
        gpus[row.node].append(gpu_record(row))
    rows = connection.execute(select(t.nodes).order_by(t.nodes.c.name))
    return [node_record(row, gpus[row.name]) for row in rows]


def read_jobs(connection: Connection, wanted: JobFilter) -> list[JobRecord]:
    """See `records.JobFilter`."""
    if wanted == JobFilter(seqs=wanted.seqs, elements=False) and wanted.seqs is not None:
        found = connection.execute(queries.HOT_JOBS, {"seqs": list(wanted.seqs)})
        return [job_record(row) for row in found]
    columns = [c.name for c in t.jobs.c if not (wanted.brief and c.name == "submission")]
    history = t.jobs_history if wanted.history else None
    rows = _both(t.jobs, history, *columns).subquery()
    query = select(rows).where(*queries.matching(rows.c, wanted))
    query = query.order_by(rows.c.seq, rows.c.element).limit(wanted.limit)
    jobs = [job_record(row) for row in connection.execute(query)]
    return jobs if wanted.brief else _with_submissions(connection, jobs)


def _read_job(connection: Connection, seq: int, index: int | None) -> JobRecord | None:
    for wanted in queries.ONE_JOB:
        if row := connection.execute(wanted, {"seq": seq, "element": element(index)}).first():
            return job_record(row)
    return None


def _read_late(connection: Connection, seq: int, index: int) -> JobRecord | None:
    """An element of which no row was found: it has none, or its row has come since, before the array's was read."""
    if (parent := _read_job(connection, seq, None)) is None:
        return None
    if job := elements.without_row(parent, index):
        return job
    begun = _read_job(connection, seq, index)
    return begun and replace(begun, submission=parent.submission)


def _with_submissions(connection: Connection, jobs: list[JobRecord]) -> list[JobRecord]:
    """The jobs, elements of arrays with what their parents were submitted with."""
    wanted = {job.seq for job in jobs if job.index is not None}
    known = {job.seq: job.submission for job in jobs if job.index is None and job.seq in wanted}
    if not wanted:
        return jobs
    known |= _submissions(connection, wanted - known.keys())
    return [job if job.index is None else replace(job, submission=known.get(job.seq, {})) for job in jobs]


def _submissions(connection: Connection, seqs: set[int]) -> dict[int, Mapping[str, Any]]:
    known: dict[int, Mapping[str, Any]] = {}
    for statement in queries.SUBMISSIONS:
        if missing := list(seqs - known.keys()):
            known |= {row.seq: row.submission for row in connection.execute(statement, {"seqs": missing})}
    return known


def _rows_of(connection: Connection, statement: Select[Any], jobs: Sequence[int | JobKey]) -> list[Any]:
    """What ``statement`` finds of these jobs.

    Many elements of one array are asked for by asking for all of it: the database would compare each that is wanted
    with each that there is.
    """
    counts = Counter(job.seq for job in jobs if isinstance(job, JobKey))
    whole = {seq for seq, number in counts.items() if number > _MANY_ELEMENTS}
    asked = [*whole, *(job for job in jobs if isinstance(job, int) or job.seq not in whole)]
    rows = list(connection.execute(statement, queries.job_keys(asked)))
    if not whole:
        return rows
    wanted = set(jobs)
    return [row for row in rows if row.seq not in whole or row.seq in wanted or job_key(row) in wanted]


def _missing(jobs: Sequence[int | JobKey], rows: Iterable[Any]) -> list[int | JobKey]:
    """Those of ``jobs`` that are not in ``rows``; of an array's elements some may be in history already."""
    seen: set[int | JobKey] = set()
    for row in rows:
        seen |= {row.seq, job_key(row)}
    return [job for job in jobs if job not in seen]


def read_outcomes(connection: Connection, jobs: set[JobKey]) -> dict[JobKey, Outcome]:
    """How far these jobs are, or how they ended, also those in history; unknown ones are left out."""
    found: dict[JobKey, Outcome] = {}
    for statement in queries.OUTCOMES:
        if missing := jobs - found.keys():
            rows = connection.execute(statement, queries.job_keys(missing))
            found |= {job_key(row): outcome(row) for row in rows}
    for key in jobs - found.keys():
        if key.index is not None and (job := _read_late(connection, key.seq, key.index)):
            found[key] = Outcome(job.state, job.exit_status)
    return found


def read_attempts(
    connection: Connection, jobs: Sequence[int | JobKey], *, tails: bool = True
) -> list[AttemptRecord]:
    """Of these jobs (a number: of all elements of it), also in history, without their last output unless ``tails``."""
    rows = _rows_of(connection, queries.ATTEMPTS[tails], jobs)
    if missing := _missing(jobs, rows):
        rows += _rows_of(connection, queries.OLD_ATTEMPTS[tails], missing)
        rows.sort(key=lambda row: (row.seq, row.element, row.number))
    return [attempt_record(row) for row in rows]


def read_shares(
    connection: Connection, jobs: Sequence[int | JobKey], *, live_only: bool = False
) -> list[ShareRecord]:
    """Shares of these jobs' attempts, by attempt and position; in history too unless ``live_only``."""
    rows = _rows_of(connection, queries.LIVE_SHARES if live_only else queries.SHARES, jobs)
    if not live_only and (missing := _missing(jobs, rows)):
        rows += _rows_of(connection, queries.OLD_SHARES, missing)
        rows.sort(key=lambda row: (row.seq, row.element, row.number, row.position))
    return [share_record(row) for row in rows]


def _both(hot: Table, history: Table | None, *names: str) -> Any:
    """The rows of a table and of its history, if wanted, as one SELECT; ``names``: columns, all by default."""
    columns = names or tuple(hot.c.keys())
    parts: list[Select[Any]] = [
        select(*(table.c[name] for name in columns)) for table in (hot, history) if table is not None
    ]
    return parts[0] if len(parts) == 1 else union_all(*parts)
