"""Elements of arrays become rows: they leave ``todo`` of their parent. Inside a leader's transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache

from sqlalchemy import BigInteger, Connection, Integer, Text, func, insert, literal, select, update
from sqlalchemy.dialects.postgresql import INT4MULTIRANGE

from hpcmesos.model import JobState
from hpcmesos.queue import arrays
from hpcmesos.queue import tables as t
from hpcmesos.queue.moves import MOVE, move_jobs, move_values, telling
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


def begin_elements(connection: Connection, moves: Sequence[Move]) -> set[JobKey]:
    """Rows in state R for elements that wait without one, with their first attempt; answers which got one.

    ``moves``: from Q to R. Those of an array that may not start elements now, or that lacks one of them, are left out.
    """
    taken = _begin(connection, moves)
    if missing := [move for move in moves if move.seq not in taken]:
        first = [
            Move(seq=seq, index=None, source=JobState.QUEUED, target=JobState.RUNNING, event="begun")
            for seq in sorted({move.seq for move in missing})
        ]
        move_jobs(connection, first)
        taken |= _begin(connection, missing)
    return {move.key for move in moves if move.seq in taken}


def _begin(connection: Connection, moves: Sequence[Move]) -> set[int]:
    """Of the arrays that have begun; answers them."""
    if not moves:
        return set()
    indexes: defaultdict[int, list[int]] = defaultdict(list)
    for move in moves:
        assert move.index is not None
        indexes[move.seq].append(move.index)
    parents = [{"seq": seq, "taken": ranges_text(arrays.of(found))} for seq, found in indexes.items()]
    begun = _beginning().all(connection, rows=move_values(moves), parents=parents)
    return {seq for (seq,) in begun}


@cache
def _beginning() -> Prepared:
    """The indexes leave ``todo``, the rows come, the events tell it."""
    jobs = t.jobs.c
    parents = recordset({"seq": BigInteger(), "taken": INT4MULTIRANGE()}, "parents")
    mine = (jobs.seq == parents.c.seq, jobs.element == t.WHOLE_JOB, jobs.state == JobState.RUNNING.value)
    may = (jobs.holds == "", jobs.todo.op("@>")(parents.c.taken))
    values = {
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


def tally(connection: Connection, counts: Mapping[int, tuple[int, int]]) -> None:
    """See LeaderTransaction.tally."""
    rows = [{"seq": seq, "good": good, "bad": bad} for seq, (good, bad) in counts.items()]
    _tallying().run(connection, rows=rows)


@cache
def _tallying() -> Prepared:
    jobs = t.jobs.c
    wanted = recordset({"seq": BigInteger(), "good": Integer(), "bad": Integer()})
    counted = update(t.jobs).where(jobs.seq == wanted.c.seq, jobs.element == t.WHOLE_JOB)
    values = {
        "succeeded": jobs.succeeded + wanted.c.good,
        "failed": jobs.failed + wanted.c.bad,
        "modified_at": func.now(),
    }
    return Prepared(counted.values(**values))
