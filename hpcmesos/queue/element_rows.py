"""Elements of arrays become rows: they leave ``todo`` of their parent. Inside a leader's transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Connection, Integer, Text, func, insert, literal, select, update
from sqlalchemy.dialects.postgresql import INT4MULTIRANGE

from hpcmesos.model import JobState
from hpcmesos.queue import arrays
from hpcmesos.queue import tables as t
from hpcmesos.queue.moves import move_jobs, write_events
from hpcmesos.queue.records import JobKey, Move
from hpcmesos.queue.rows import element, ranges_text, recordset

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
)


def begin_elements(connection: Connection, moves: Sequence[Move]) -> set[JobKey]:
    """Rows in state R for elements that wait without one, with their first attempt; answers which got one.

    ``moves``: from Q to R. Those of an array that may not start elements now, or that lacks one of them, are left out.
    """
    if not moves:
        return set()
    wanted: defaultdict[int, list[int]] = defaultdict(list)
    for move in moves:
        assert move.index is not None
        wanted[move.seq].append(move.index)
    taken = _take(connection, wanted)
    if missing := wanted.keys() - taken:
        begun = [_begin(seq) for seq in sorted(missing)]
        move_jobs(connection, begun)
        taken |= _take(connection, {seq: wanted[seq] for seq in missing})
    moves = [move for move in moves if move.seq in taken]
    rows = [{"seq": move.seq, "element": element(move.index)} for move in moves]
    connection.execute(_inserting(), {"rows": rows})
    write_events(connection, moves)
    return {move.key for move in moves}


def _begin(seq: int) -> Move:
    """The first element of an array starts."""
    return Move(seq=seq, index=None, source=JobState.QUEUED, target=JobState.RUNNING, event="begun")


def _take(connection: Connection, wanted: Mapping[int, Iterable[int]]) -> set[int]:
    rows = [{"seq": seq, "taken": ranges_text(arrays.of(indexes))} for seq, indexes in wanted.items()]
    return set(connection.scalars(_taking(), {"rows": rows}))


@cache
def _taking() -> Any:
    jobs = t.jobs.c
    wanted = recordset({"seq": BigInteger(), "taken": INT4MULTIRANGE()})
    mine = (jobs.seq == wanted.c.seq, jobs.element == t.WHOLE_JOB, jobs.state == JobState.RUNNING.value)
    may = (jobs.holds == "", jobs.todo.op("@>")(wanted.c.taken))
    left = jobs.todo.op("-")(wanted.c.taken)
    first = func.coalesce(jobs.started_at, func.now())
    taking = update(t.jobs).where(*mine, *may).values(todo=left, started_at=first, modified_at=func.now())
    return taking.returning(jobs.seq)


@cache
def _inserting() -> Any:
    parents = t.jobs.c
    wanted = recordset({"seq": BigInteger(), "element": Integer()})
    copied = [parents[name] for name in _COPIED]
    new = [literal(JobState.RUNNING.value, Text), literal(1, Integer), func.now()]
    chosen = select(wanted.c.seq, wanted.c.element, *copied, *new)
    chosen = chosen.where(parents.seq == wanted.c.seq, parents.element == t.WHOLE_JOB)
    return insert(t.jobs).from_select(["seq", "element", *_COPIED, "state", "attempt", "started_at"], chosen)


def tally(connection: Connection, counts: Mapping[int, tuple[int, int]]) -> None:
    """See LeaderTransaction.tally."""
    rows = [{"seq": seq, "good": good, "bad": bad} for seq, (good, bad) in counts.items()]
    connection.execute(_tallying(), {"rows": rows})


@cache
def _tallying() -> Any:
    jobs = t.jobs.c
    wanted = recordset({"seq": BigInteger(), "good": Integer(), "bad": Integer()})
    counted = update(t.jobs).where(jobs.seq == wanted.c.seq, jobs.element == t.WHOLE_JOB)
    return counted.values(
        succeeded=jobs.succeeded + wanted.c.good,
        failed=jobs.failed + wanted.c.bad,
        modified_at=func.now(),
    )
