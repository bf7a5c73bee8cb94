"""Gateways that have joined, and the output that they have to write on their hosts.

Every method is one statement, but for add(), and may raise DatabaseUnavailable.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from datetime import timedelta

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Engine,
    Exists,
    Integer,
    Text,
    cast,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from hpcmesos.model import AttemptId
from hpcmesos.queue import tables as t
from hpcmesos.queue.engine import begin
from hpcmesos.queue.room import bounded
from hpcmesos.queue.rows import element

_STREAM = 0x68706364  # class of pg_advisory_xact_lock: one at a time adds to a job's stream
_KEPT = timedelta(days=30)
"""How long it is remembered what became of a delivery."""
_DROPPED = "dropped from the log store to make room"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRecord:
    """``path``: absolute, on the gateway's host; ``name``: the file's name where that is a directory.

    ``append``: another attempt of the job may have written there. ``size``: bytes.
    """

    attempt: str
    stream: str
    gateway: str
    owner: str
    path: str
    name: str
    umask: int
    append: bool
    size: int


class Deliveries:
    """Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._single = engine.execution_options(isolation_level="AUTOCOMMIT")  # for single statements

    def gateways(self) -> frozenset[str]:
        """Names of hosts that have joined as gateways."""
        with begin(self._single) as connection:
            return frozenset(connection.scalars(select(t.gateways.c.name)))

    def enrol(self, gateway: str) -> None:
        """A gateway has its certificate; once more changes nothing."""
        row = insert(t.gateways).values(name=gateway).on_conflict_do_nothing()
        with begin(self._single) as connection:
            connection.execute(row)

    def retire(self, gateway: str) -> None:
        """Jobs that are submitted from now on do not count on it."""
        with begin(self._single) as connection:
            connection.execute(delete(t.gateways).where(t.gateways.c.name == gateway))

    def seen(self, gateway: str) -> None:
        """It has asked just now."""
        now = update(t.gateways).where(t.gateways.c.name == gateway).values(seen_at=func.now())
        with begin(self._single) as connection:
            connection.execute(now)

    def prompt(self, gateway: str, within: float, most: int) -> bool:
        """Whether it has asked in the last ``within`` seconds, and has no more than ``most`` to write."""
        since = func.now() - timedelta(seconds=within)
        waiting = select(t.deliveries.c.attempt).where(
            t.deliveries.c.gateway == gateway, t.deliveries.c.done_at.is_(None)
        )
        backlog = select(func.count()).select_from(waiting.limit(most + 1).subquery()).scalar_subquery()
        there = select(t.gateways.c.name).where(
            t.gateways.c.name == gateway, t.gateways.c.seen_at > since, backlog <= most
        )
        with begin(self._single) as connection:
            return connection.execute(there).first() is not None

    def add(self, record: DeliveryRecord) -> None:
        """Something to write; the same once more changes nothing. Old ones that are done are forgotten.

        One that comes late, its node having been away, adds to what other attempts have written, and replaces nothing.
        """
        table = t.deliveries
        old = delete(table).where(table.c.done_at < func.now() - _KEPT)
        append = or_(literal(record.append), _others(record))
        row = insert(table).values({**asdict(record), "append": append}).on_conflict_do_nothing()
        stream = f"{record.attempt.partition('#')[0]} {record.stream}"
        with begin(self._engine) as connection:
            bounded(connection)
            # The output of another attempt may come by another master: only what is committed can be seen.
            connection.execute(select(func.pg_advisory_xact_lock(_STREAM, func.hashtext(stream))))
            connection.execute(row.add_cte(old.cte("old")))

    def waiting(self, gateway: str, most: int = 100) -> list[DeliveryRecord]:
        """What a gateway still has to write: the oldest of each owner, then the second of each, and so on.

        What waits for an earlier attempt of the same job to be written, or given up, is left out.
        """
        table, earlier = t.deliveries, t.deliveries.alias()
        its_turn = ~exists().where(
            earlier.c.gateway == gateway,
            earlier.c.done_at.is_(None),
            earlier.c.stream == table.c.stream,
            _job(earlier.c.attempt) == _job(table.c.attempt),
            _number(earlier.c.attempt) < _number(table.c.attempt),
        )
        place = func.row_number().over(partition_by=table.c.owner, order_by=table.c.created_at)
        wanted = select(*_COLUMNS).where(table.c.gateway == gateway, table.c.done_at.is_(None), its_turn)
        with begin(self._single) as connection:
            rows = connection.execute(wanted.order_by(place, table.c.created_at).limit(most))
            return [DeliveryRecord(**row._asdict()) for row in rows]

    def waits(self, gateway: str, attempt: str, stream: str) -> bool:
        """Whether this gateway still has to write that."""
        table = t.deliveries
        mine = (table.c.attempt == attempt, table.c.stream == stream, table.c.gateway == gateway)
        with begin(self._single) as connection:
            there = connection.execute(select(table.c.attempt).where(*mine, table.c.done_at.is_(None)))
            return there.first() is not None

    def drop(self, attempt: str, stream: str) -> None:
        """The log store has it no more; what was still to be written of it is given up."""
        table = t.deliveries
        lost = (table.c.attempt == attempt, table.c.stream == stream, table.c.done_at.is_(None))
        given_up = update(table).where(*lost).values(done_at=func.now(), trouble=_DROPPED)
        with begin(self._single) as connection:
            connection.execute(given_up)

    def finish(self, gateway: str, attempt: str, stream: str, trouble: str) -> bool:
        """Written, or given up because of ``trouble``; False: this gateway had no such thing to write."""
        table = t.deliveries
        mine = (table.c.attempt == attempt, table.c.stream == stream, table.c.gateway == gateway)
        done = update(table).where(*mine).values(
            done_at=func.coalesce(table.c.done_at, func.now()), trouble=trouble[:1000]
        )  # fmt: skip
        with begin(self._single) as connection:
            return connection.execute(done).rowcount > 0

    def outcome(self, attempt: str, stream: str) -> str | None:
        """Empty: written; else the trouble; None: not yet, or nothing to write."""
        table = t.deliveries
        wanted = select(table.c.trouble).where(
            table.c.attempt == attempt, table.c.stream == stream, table.c.done_at.is_not(None)
        )
        with begin(self._single) as connection:
            found: str | None = connection.scalar(wanted)
            return found


def _others(record: DeliveryRecord) -> Exists:
    """Whether there is or was anything to write of another attempt of the job, as far as it is remembered."""
    attempt, table = AttemptId.parse(record.attempt), t.deliveries
    seq, index = attempt.job.seq, element(attempt.job.index)
    rows = union_all(
        *(
            select(jobs.c.attempt).where(jobs.c.seq == seq, jobs.c.element == index)
            for jobs in (t.jobs, t.jobs_history)
        )
    ).subquery()
    last = select(func.max(rows.c.attempt)).scalar_subquery()
    number = func.generate_series(1, last).column_valued("number")
    names = select(literal(f"{attempt.job}#") + cast(number, Text)).scalar_subquery()
    return exists().where(
        table.c.attempt == func.any(func.array(names, type_=ARRAY(Text))),  # which the primary key finds
        table.c.attempt != record.attempt,
        table.c.stream == record.stream,
    )


def _job(attempt: ColumnElement[str]) -> ColumnElement[str]:
    return func.split_part(attempt, "#", 1)


def _number(attempt: ColumnElement[str]) -> ColumnElement[int]:
    return cast(func.split_part(attempt, "#", 2), Integer)


_COLUMNS = [t.deliveries.c[field.name] for field in fields(DeliveryRecord)]
