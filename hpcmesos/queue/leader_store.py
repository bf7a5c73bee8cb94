"""The leader's door to the database: the only code that changes states, allocations and nodes.

Every transaction is fenced: it holds the leadership row of its own term, so that an old leader cannot commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, event, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from hpcmesos.errors import LostLeadership, UnknownNode
from hpcmesos.model import HALF_LIFE, GpuState
from hpcmesos.priority import bring_server_forward
from hpcmesos.queue import documents, history, servers, starts, usage_days
from hpcmesos.queue import tables as t
from hpcmesos.queue.engine import Snapshots, begin, make_engine
from hpcmesos.queue.leadership import APPLICATION
from hpcmesos.queue.live_jobs import Changes, LiveJobs
from hpcmesos.queue.moves import CHANGEABLE, move_jobs
from hpcmesos.queue.notices import Outbox
from hpcmesos.queue.pending import Pending
from hpcmesos.queue.prepared import Prepared
from hpcmesos.queue.reads import (
    Reads,
    read_attempts,
    read_documents,
    read_jobs,
    read_nodes,
    read_queues,
)
from hpcmesos.queue.records import (
    AttemptKey,
    AttemptRecord,
    Ending,
    InboxRow,
    JobFilter,
    JobKey,
    JobRecord,
    LeaderState,
    Move,
    NodeRecord,
    QueueRecord,
    Release,
    StartRecord,
)
from hpcmesos.queue.rows import recordset, share_record
from hpcmesos.queue.timetable import Timetable
from hpcmesos.queue.use import use_since

__all__ = ["CHANGEABLE", "LeaderStore", "LeaderTransaction"]

_HALF_LIVES = 6
_PLANS_LAST = 5.0  # s
_TIMETABLE = 0x6870636F  # of pg_advisory_xact_lock: one transaction at a time changes schedules
LIMITS: Mapping[
    str, int
] = {  # ms; a takeover ends a frozen leader's sessions, so this is for when nobody takes over
    "statement_timeout": 5000,
    "idle_in_transaction_session_timeout": 3000,
    "transaction_timeout": 5000,
}
_NODE_FIELDS = (
    "cpus",
    "mem",
    "up",
    "address",
    "peer_port",
    "boot_id",
    "journal",
    "gone",
    "version",
    "hostname",
    "os",
    "isolation",
    "features",
    "declared",
    "ends_at",
)
_BELIEVED = 10_000_000  # a node that names a number further ahead is not believed: numbers can run out
_SKIP_IDS = text(
    "SELECT setval('job_ids', :past + 10000) FROM job_ids"
    " WHERE last_value < :past AND :past - last_value < :believed"
)
_GPU_FIELDS = (
    *("node", "index", "model", "memory", "numa", "pci", "simulated", "links", "note"),
    *("parent", "profile"),
)


class LeaderTransaction:
    """What a leader may do inside one transaction. ``now``: the database's clock at its begin."""

    def __init__(self, connection: Connection, now: datetime) -> None:
        self._connection = connection
        self.now = now
        self._pending = Pending()

    def close(self) -> None:
        """Before the commit: writes what was left for later."""
        starts.write_pending(self._connection, self._pending)

    # jobs

    def drain_inbox(self, limit: int = 1000) -> list[InboxRow]:
        """Takes rows out of the inbox (gone when this transaction commits), lowest id first."""
        # As an array, so that no plan looks for the first ones again for each row.
        first = func.array(select(t.inbox.c.id).order_by(t.inbox.c.id).limit(limit).scalar_subquery())
        names = ("id", "kind", "seq", "user", "payload", "via")
        taken = (
            delete(t.inbox).where(t.inbox.c.id == func.any(first)).returning(*(t.inbox.c[n] for n in names))
        )
        rows = [InboxRow(**row._mapping) for row in self._connection.execute(taken)]
        return sorted(rows, key=lambda row: row.id)

    def jobs(self, wanted: JobFilter) -> list[JobRecord]:
        """As Reads.jobs(), on this transaction's connection; what it has left for later is written first."""
        starts.write_pending(self._connection, self._pending)
        return read_jobs(self._connection, wanted)

    def move_jobs(self, moves: Sequence[Move]) -> set[JobKey]:
        """The one door: changes states and fields and writes each move's event. Rows that are no longer in their
        source state are left alone; answers the jobs that moved. Several moves of one job are done in order.

        Raises IllegalTransition, before anything is written, for an edge that states.TRANSITIONS does not have.
        """
        return move_jobs(self._connection, moves)

    def tally(self, counts: Mapping[int, tuple[int, int]]) -> None:
        """Adds to arrays' counts of complete elements: (with exit status 0, otherwise), by ``seq``."""
        self._pending.tally(counts)

    def apply_starts(self, gangs: Sequence[StartRecord]) -> set[JobKey]:
        """Q -> R with attempt, shares, allocations and used counters; a gang that no longer fits is dropped whole.
        Answers the jobs that started.
        """
        return starts.apply_starts(self._connection, gangs, self.now, self._pending)

    def set_endings(self, endings: Mapping[AttemptKey, Ending]) -> None:
        """Writes how attempts are told to end; one that has ended is left alone."""
        starts.set_endings(self._connection, endings)

    def finish_attempts(self, records: Sequence[AttemptRecord]) -> None:
        """Writes the ends of attempts. The first end stays: an attempt that has ended is left alone."""
        starts.finish_attempts(self._connection, records)

    def release_shares(self, releases: Sequence[Release]) -> None:
        """Takes shares back from their attempts, with their GPUs and ports; releasing twice does nothing.

        A node's report that a GPU is clean must be written after the release, else the GPU stays in ``gpu_state``.
        """
        starts.release_shares(self._connection, releases, self._pending)

    def skip_ids(self, past: int) -> None:
        """Job numbers up to ``past`` are in use: if they are still to be given out, 10,000 more are passed over.

        Numbers more than 10,000,000 ahead are nobody's.
        """
        self._connection.execute(_SKIP_IDS, {"past": past, "believed": _BELIEVED})

    def purge_keys(self, older_than: timedelta = timedelta(hours=24)) -> None:
        """Forgets idempotency keys."""
        self._connection.execute(
            delete(t.idempotency_keys).where(t.idempotency_keys.c.created_at < func.now() - older_than)
        )

    # cluster

    def set_gpu_states(self, states: Mapping[str, GpuState], notes: Mapping[str, str] | None = None) -> None:
        """GPU states by UUID as nodes report them; ``notes``: a UUID that is not there keeps its note.

        The database knows better who holds what: one in a live allocation cannot become free or cleaning (it stays or
        becomes allocated again), and one without that is reported as allocated becomes unknown-attempt.
        """
        starts.set_gpu_states(self._connection, states, notes or {})

    def upsert_node(self, node: NodeRecord) -> tuple[str, ...]:
        """Registers a node with its GPUs; GPUs that it no longer has become lost. Used counters, ``offline`` and
        ``note`` stay; a node that shrank counts as large as what it has given out until that comes back.

        Answers the UUIDs that were refused because another node that is up has them.
        """
        row = {"name": node.name, **{name: getattr(node, name) for name in _NODE_FIELDS}}
        row["features"] = list(node.features)
        new = insert(t.nodes).values(row)
        changed: dict[str, Any] = {name: new.excluded[name] for name in _NODE_FIELDS}
        changed["cpus"] = func.greatest(new.excluded.cpus, t.nodes.c.cpus_used)
        changed["mem"] = func.greatest(new.excluded.mem, t.nodes.c.mem_used)
        changed["changed_at"] = func.now()
        self._connection.execute(new.on_conflict_do_update(index_elements=["name"], set_=changed))
        return self._upsert_gpus(node)

    def _upsert_gpus(self, node: NodeRecord) -> tuple[str, ...]:
        mine = {gpu.uuid: gpu for gpu in node.gpus}
        accepted: set[str] = set()
        if mine:
            rows = [
                {"uuid": gpu.uuid, **{n: getattr(gpu, n) for n in _GPU_FIELDS}, "node": node.name}
                for gpu in node.gpus
            ]
            table = recordset({name: t.gpus.c[name].type for name in ("uuid", *_GPU_FIELDS)})
            new = insert(t.gpus).from_select(
                ["uuid", *_GPU_FIELDS, "state"],
                select(*(table.c[n] for n in ("uuid", *_GPU_FIELDS)), text(f"'{GpuState.LOST}'")),
            )
            owner_up = select(t.nodes.c.up).where(t.nodes.c.name == t.gpus.c.node).scalar_subquery()
            theirs = (t.gpus.c.node == node.name) | ~owner_up
            done = new.on_conflict_do_update(
                index_elements=["uuid"], set_={n: new.excluded[n] for n in _GPU_FIELDS}, where=theirs
            )
            accepted = set(self._connection.scalars(done.returning(t.gpus.c.uuid), {"rows": rows}))
        gone = t.gpus.c.uuid.not_in(list(mine)) if mine else text("true")
        lost = update(t.gpus).where(t.gpus.c.node == node.name, gone)
        self._connection.execute(lost.values(state=GpuState.LOST.value))
        self.set_gpu_states({uuid: mine[uuid].state for uuid in accepted})
        return tuple(uuid for uuid in mine if uuid not in accepted)

    def set_node_up(self, name: str, up: bool) -> None:
        """The agent's link came or went. Raises UnknownNode."""
        self._change_node(name, up=up, changed_at=func.now())

    def set_node_offline(self, name: str, offline: bool, note: str | None = None) -> None:
        """An operator's wish; ``note`` None: unchanged. Raises UnknownNode."""
        self._change_node(name, offline=offline, **({} if note is None else {"note": note}))

    def set_node_gone(self, name: str) -> None:
        """Somebody vouches that it is off; its next hello says otherwise. Raises UnknownNode."""
        self._change_node(name, gone=True)

    def _change_node(self, name: str, **values: Any) -> None:
        changed = update(t.nodes).where(t.nodes.c.name == name).values(**values)
        if self._connection.execute(changed).rowcount == 0:
            raise UnknownNode(f"unknown node: {name}")

    def put_queue(self, queue: QueueRecord) -> None:
        """Creates or replaces a queue."""
        row = {name: getattr(queue, name) for name in ("enabled", "started", "priority")}
        row["attributes"] = dict(queue.attributes)
        new = insert(t.queues).values(name=queue.name, **row)
        self._connection.execute(new.on_conflict_do_update(index_elements=["name"], set_=row))

    def delete_queue(self, name: str) -> None:
        """Forgets a queue; jobs that name it are not looked at."""
        self._connection.execute(delete(t.queues).where(t.queues.c.name == name))

    def put_server(self, attributes: Mapping[str, str]) -> None:
        """Replaces the attributes of the server."""
        self.put_document(documents.SERVER, attributes)

    def put_document(self, name: str, value: Mapping[str, Any]) -> None:
        """Replaces one of the values of documents.py."""
        new = insert(t.settings).values(name=name, value=dict(value))
        self._connection.execute(
            new.on_conflict_do_update(index_elements=["name"], set_={"value": new.excluded.value})
        )

    def tell(self, events: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Writes events that are about no job: their kinds and payloads."""
        rows = [{"kind": kind, "payload": dict(payload)} for kind, payload in events]
        self._connection.execute(insert(t.events), rows)

    # schedules; see schedules.py and timetable.py

    def timetable(self) -> Timetable:
        """Users' schedules, which are this transaction's alone until its end: two that lock rows of theirs in another
        order would wait for each other.
        """
        self._connection.execute(select(func.pg_advisory_xact_lock(_TIMETABLE)))
        return Timetable(self._connection, self.now)

    @property
    def outbox(self) -> Outbox:
        """Mails and webhook calls."""
        return Outbox(self._connection, self.now)

    def put_schedule(self, name: str, rule: str, timezone: str) -> None:
        """Creates a rule of housekeeping, or changes it; due times from now on count for a new one."""
        row = {"rule": rule, "timezone": timezone}
        new = insert(t.schedules).values(owner="", name=name, **row)
        self._connection.execute(new.on_conflict_do_update(index_elements=["owner", "name"], set_=row))

    def schedules(self) -> list[tuple[str, str, str, datetime]]:
        """(name, rule, time zone, last due time that fired, or the rule's creation) of every rule of housekeeping."""
        runs, table = t.schedule_runs, t.schedules
        mine = (runs.c.owner == table.c.owner, runs.c.schedule == table.c.name)
        last = select(func.max(runs.c.due)).where(*mine).scalar_subquery()
        wanted = select(table.c.name, table.c.rule, table.c.timezone, func.coalesce(last, table.c.since))
        rows = self._connection.execute(wanted.where(table.c.owner == ""))
        return [(row[0], row[1], row[2], row[3]) for row in rows]

    def fire_schedule(self, name: str, due: datetime) -> bool:
        """Marks one due time as fired; False: it fired before. Its action belongs into the same transaction."""
        new = insert(t.schedule_runs).values(owner="", schedule=name, due=due).on_conflict_do_nothing()
        return self._connection.execute(new.returning(t.schedule_runs.c.due)).first() is not None

    def purge_runs(self, before: datetime) -> None:
        """Forgets what schedules fired before; of housekeeping only the last run of a rule has to stay."""
        runs = t.schedule_runs.c
        old = (runs.fired_at < before, runs.outcome != "", runs.retry_at.is_(None))
        self._connection.execute(delete(t.schedule_runs).where(runs.owner != "", *old))
        newer = t.schedule_runs.alias("newer")
        passed = select(newer.c.due).where(
            newer.c.owner == "", newer.c.schedule == runs.schedule, newer.c.due > runs.due
        )
        self._connection.execute(delete(t.schedule_runs).where(runs.owner == "", passed.exists()))


class LeaderStore(Reads):
    """``url``: of the leader's role; ``term``: from Leadership.try_acquire(). Used by one or two threads.

    ``timeline``: of the server that elected; another one may know the same term of another leader. 0: none is refused.
    ``limits``: PostgreSQL's timeouts by name, in ms.
    """

    def __init__(self, url: str, term: int, timeline: int = 0, *, limits: Mapping[str, int] = LIMITS) -> None:
        engine = make_engine(url, APPLICATION, pool=6, look_before_use=False, limits=limits)
        event.listen(engine, "connect", _bring_forward)
        event.listen(engine, "connect", _think_of_memory)
        event.listen(engine, "connect", lambda connection, _: self._check_timeline(connection))
        self._timeline = timeline
        super().__init__(engine)
        self._url = url
        self.term = term
        fence = select(func.now()).select_from(t.leadership).where(t.leadership.c.term == term)
        self._fence = Prepared(fence.with_for_update(read=True, key_share=True))

    def _check_timeline(self, connection: Any) -> None:
        now = servers.timeline_of(connection)
        if self._timeline and now not in (0, self._timeline):
            raise LostLeadership(f"term {self.term}: PostgreSQL's timeline is {now}, not {self._timeline}")

    @contextmanager
    def transaction(self) -> Iterator[LeaderTransaction]:
        """One fenced transaction, committed at the end of the block. Raises LostLeadership when the term is over.

        Keep it short: the database ends it after 5 s, or 3 s of idleness, which raises DatabaseUnavailable.
        """
        with begin(self._engine) as connection:
            _plan_anew(connection)
            now = self._fence.scalar(connection)
            if now is None:
                raise LostLeadership(f"term {self.term} is over")
            transaction = LeaderTransaction(connection, now)
            yield transaction
            transaction.close()

    def load(
        self, live: LiveJobs | None = None, snapshots: Snapshots | None = None
    ) -> tuple[LeaderState, Changes]:
        """Everything from one snapshot, and what ``live`` (if given: looked before) did not know yet of the jobs.
        ``snapshots``: a connection that is there already, closed here; it has to be of the same database.

        Read-only, and not limited to 5 s. A caller that stops the garbage collector meanwhile halves the time: 100,000
        jobs are millions of objects.
        """
        snapshots = snapshots or Snapshots(self._url, APPLICATION)
        try:
            with snapshots.one() as connection:
                live = live or LiveJobs()
                changes = live.look(connection)
                return read_state(connection, live.jobs.values()), changes
        finally:
            snapshots.close()

    def sweep(
        self,
        now: datetime,
        keep_completed: timedelta,
        limit: int = 2000,
        place: history.Place | None = None,
    ) -> int:
        """Moves at most ``limit`` jobs that ended before ``now - keep_completed`` into history, with all that belongs
        to them, in one transaction; answers how many. A job of which a node still holds a share stays. ``place``: where
        the piece before has ended, and this one does; None: from the oldest job on.
        """
        with self.transaction() as transaction:
            before = now - keep_completed
            return history.sweep(transaction._connection, before, limit, place or history.Place())

    def write_usage(self, before: date, stop: Callable[[], bool] = lambda: False) -> bool:
        """Writes down what was used on the days before, of which jobs are about to be forgotten; until ``stop()``.
        False: it was stopped, and days are left that only their attempts know.

        A day of a large cluster takes long to count: that is read like load(), and only what is found is written in
        a leader's transaction, one for each day.
        """
        snapshots = Snapshots(self._url, APPLICATION)
        try:
            with snapshots.one() as connection:
                days = usage_days.unwritten_days(connection, before)
            for day in days:
                if stop():
                    return False
                with snapshots.one() as connection:
                    found = usage_days.count_day(connection, day)
                with self.transaction() as transaction:
                    usage_days.write_day(transaction._connection, found)
            return True
        finally:
            snapshots.close()

    def make_partitions(self, now: datetime, days: int = 7) -> None:
        """Makes the daily partitions of events and history from ``now``'s day to ``days`` ahead, where missing."""
        with self.transaction() as transaction:
            history.make_partitions(transaction._connection, now, now + timedelta(days=days))

    def drop_partitions(self, before: datetime) -> int:
        """Drops the partitions of days that were over ``before``; answers how many."""
        with self.transaction() as transaction:
            return history.drop_partitions(transaction._connection, before)


def _used(connection: Connection, written: Mapping[str, Any] | None) -> tuple[tuple[str, str, float], ...]:
    """What ended since the leader before wrote down who had used what; of the last weeks, if none ever did."""
    at = datetime.fromtimestamp(written["at"], UTC) if written else None
    since = at or connection.scalar(select(func.now() - _HALF_LIVES * timedelta(seconds=HALF_LIFE)))
    assert since is not None
    return use_since(connection, since)


def _bring_forward(connection: Any, _record: Any) -> None:
    """While a leader waits for the database, all nodes wait for the leader."""
    bring_server_forward(connection.fileno(), connection.info.backend_pid)


def _think_of_memory(connection: Any, _record: Any) -> None:
    """What turns touch was touched a moment ago: a page that an index names costs no more than the next one."""
    with connection.cursor() as cursor:
        cursor.execute("SET random_page_cost = 1.1")
    connection.commit()


def _plan_anew(connection: Connection) -> None:
    """The server keeps the plan of a statement until it analyses a table of it. Tables that grow by hundreds of rows a
    second outgrow theirs long before: one that was best for a page is read whole at each turn.
    """
    now = time.monotonic()
    if now - connection.info.setdefault("planned", now) > _PLANS_LAST:
        connection.exec_driver_sql("DISCARD PLANS")
        connection.info["planned"] = now


def read_state(connection: Connection, jobs: Collection[JobRecord]) -> LeaderState:
    """All that a leader loads; ``jobs``: those of the same snapshot. The transaction has to be REPEATABLE READ."""
    begun = [job for job in jobs if job.attempt]
    last = {job.attempt_key for job in begun}
    attempts = read_attempts(connection, [job.key for job in begun], tails=False)
    live = select(t.shares).where(t.shares.c.released_at.is_(None))
    live = live.order_by(t.shares.c.seq, t.shares.c.element, t.shares.c.number, t.shares.c.position)
    kept = read_documents(connection)
    return LeaderState(
        jobs=tuple(jobs),
        attempts=tuple(attempt for attempt in attempts if attempt.key in last),
        shares=tuple(share_record(row) for row in connection.execute(live)),
        nodes=tuple(read_nodes(connection)),
        queues=tuple(read_queues(connection)),
        server=dict(kept.get(documents.SERVER) or {}),
        documents=kept,
        used=_used(connection, kept.get(documents.USAGE)),
    )
