"""Elements of arrays become rows: they leave ``todo`` of their parent. Inside a leader's transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    TableValuedAlias,
    Text,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import INT4MULTIRANGE

from hpcmesos.model import JobState
from hpcmesos.queue import arrays
from hpcmesos.queue import tables as t
from hpcmesos.queue.moves import MOVE, move_jobs, move_values, telling
from hpcmesos.queue.pending import Pending
from hpcmesos.queue.prepared import Prepared
from hpcmesos.queue.records import JobKey, Move
from hpcmesos.queue.rows import ranges_text, recordset

_COPIED = (
    "server",
    "name",
    "owner",
    "queue",
    "priority",
    "request",
    "spec_version",
    "not_before",
    "created_at",
    "queued_at",
    "rerunable",
    "submit_host",
    "project",
    "egroup",
)
_ENDED = {"seq": BigInteger(), "good": Integer(), "bad": Integer()}


def begin_elements(connection: Connection, moves: Sequence[Move], pending: Pending) -> set[JobKey]:
    """Rows in state R for elements that wait without one, with their first attempt; answers which got one.

    ``moves``: from Q to R. Those of an array that may not start elements now, or that lacks one of them, are left out.
    ``pending``: ends of elements, written with the arrays that begin some.
    """
    taken = _begin(connection, moves, pending)
    if missing := [move for move in moves if move.seq not in taken]:
        first = [
            Move(seq=seq, index=None, source=JobState.QUEUED, target=JobState.RUNNING, event="begun")
            for seq in sorted({move.seq for move in missing})
        ]
        move_jobs(connection, first)
        taken |= _begin(connection, missing, pending)
    return {move.key for move in moves if move.seq in taken}


def _begin(connection: Connection, moves: Sequence[Move], pending: Pending) -> set[int]:
    """Of the arrays that have begun; answers them."""
    if not moves:
        return set()
    indexes: defaultdict[int, list[int]] = defaultdict(list)
    for move in moves:
        assert move.index is not None
        indexes[move.seq].append(move.index)
    parents = [
        {"seq": seq, "taken": ranges_text(arrays.of(found)), **pending.ended_of(seq)}
        for seq, found in indexes.items()
    ]
    begun = _beginning().all(connection, rows=move_values(moves), parents=parents)
    return {seq for (seq,) in begun}


@cache
def _beginning() -> Prepared:
    """The indexes leave ``todo``, the rows come, the events tell it."""
    jobs = t.jobs.c
    parents = recordset({**_ENDED, "taken": INT4MULTIRANGE()}, "parents")
    mine = (*_array_of(parents), jobs.state == JobState.RUNNING.value)
    may = (jobs.holds == "", jobs.todo.op("@>")(parents.c.taken))
    values = {
        **_counted(parents),
        "todo": jobs.todo.op("-")(parents.c.taken),
        "started_at": func.coalesce(jobs.started_at, func.now()),
        "modified_at": func.now(),
    }
    taking = update(t.jobs).where(*mine, *may).values(**values)
    taken = taking.returning(jobs.seq, *(jobs[name] for name in _COPIED)).cte("taken")
    wanted = recordset(MOVE)
    new = [literal(JobState.RUNNING.value, Text), literal(1, Integer), func.now()]
    rows = select(wanted.c.seq, wanted.c.element, *(taken.c[name] for name in _COPIED), *new)
    rows = rows.where(wanted.c.seq == taken.c.seq)
    born = insert(t.jobs).from_select(["seq", "element", *_COPIED, "state", "attempt", "started_at"], rows)
    began = select(wanted).where(wanted.c.seq == taken.c.seq).subquery("began")
    return Prepared(select(taken.c.seq).add_cte(born.cte("born"), telling(began).cte("told")))


def write_ends(connection: Connection, pending: Pending) -> None:
    """Ends of elements of arrays none of which has begun."""
    if rows := pending.ended():
        _tallying().run(connection, rows=rows)


@cache
def _tallying() -> Prepared:
    wanted = recordset(_ENDED)
    return Prepared(
        update(t.jobs).where(*_array_of(wanted)).values(**_counted(wanted), modified_at=func.now())
    )


def _array_of(wanted: TableValuedAlias) -> tuple[ColumnElement[bool], ...]:
    """The row of the whole array that ``wanted`` names.

    Its number stands there twice: else a server that skips through indexes (PostgreSQL 18) reads the rows of all
    arrays, each in every version that anybody's transaction keeps.
    """
    jobs = t.jobs.c
    named = func.array(select(wanted.c.seq).scalar_subquery())
    return jobs.seq == wanted.c.seq, jobs.element == t.WHOLE_JOB, jobs.seq == func.any(named)


def _counted(ended: TableValuedAlias) -> dict[str, Any]:
    jobs = t.jobs.c
    return {"succeeded": jobs.succeeded + ended.c.good, "failed": jobs.failed + ended.c.bad}
