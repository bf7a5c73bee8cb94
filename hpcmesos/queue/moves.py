"""The one door through which a job's state changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Connection, Insert, Integer, Text, func, insert, select, update
from sqlalchemy.dialects.postgresql import JSONB

from hpcmesos.model import JobState
from hpcmesos.queue import tables as t
from hpcmesos.queue.prepared import Prepared
from hpcmesos.queue.records import JobKey, Move
from hpcmesos.queue.rows import (
    array_json,
    dependencies_json,
    element,
    index,
    ranges_text,
    recordset,
    request_json,
)
from hpcmesos.queue.states import check

CHANGEABLE = frozenset(
    {
        "name",
        "queue",
        "priority",
        "project",
        "egroup",
        "request",
        "holds",
        "not_before",
        "queued_at",
        "started_at",
        "ended_at",
        "exit_status",
        "cause",
        "comment",
        "attempt",
        "charged_attempts",
        "rerunable",
        "suspended",
        "excluded",
        "dependencies",
        "submission",
        "array_spec",
        "todo",
        "deleted",
        "succeeded",
        "failed",
    }
)
"""Fields that a Move may change."""

_ENCODE: Mapping[str, Any] = {
    "request": request_json,
    "dependencies": dependencies_json,
    "array_spec": array_json,
    "todo": ranges_text,
    "deleted": ranges_text,
}
MOVE = {
    "seq": BigInteger(),
    "element": Integer(),
    "source": Text(),
    "target": Text(),
    "event": Text(),
    "payload": JSONB(),
    "place": Integer(),
}
_EVENT = ("seq", "element", "kind", "source", "target", "payload")


def move_jobs(connection: Connection, moves: Sequence[Move]) -> set[JobKey]:
    """See LeaderTransaction.move_jobs. Each statement writes the events of what it changes, in their order."""
    for move in moves:
        check(move.source, move.target)
        if unknown := set(move.changes) - CHANGEABLE:
            raise ValueError(f"a move cannot change {sorted(unknown)[0]}")
    moved: set[JobKey] = set()
    for wave in _waves(moves):
        by_fields: defaultdict[frozenset[str], list[Move]] = defaultdict(list)
        for move in wave:
            by_fields[frozenset(_changes(move))].append(move)
        for fields, group in by_fields.items():
            moved |= _update(connection, sorted(fields), group)
    return moved


def _waves(moves: Sequence[Move]) -> Iterator[list[Move]]:
    """Cuts the sequence so that no job is twice in a piece: one UPDATE changes a row once."""
    wave: dict[JobKey, Move] = {}
    for move in moves:
        if move.key in wave:
            yield list(wave.values())
            wave = {}
        wave[move.key] = move
    if wave:
        yield list(wave.values())


def _changes(move: Move) -> Mapping[str, Any]:
    """The end of a job is stamped by the database unless the move says when it was."""
    if move.target is JobState.COMPLETE and "ended_at" not in move.changes:
        return {**move.changes, "ended_at": "now"}  # as PostgreSQL reads it: the transaction's time
    return move.changes


def _update(connection: Connection, fields: Sequence[str], group: Sequence[Move]) -> set[JobKey]:
    rows = [
        row | {name: _ENCODE.get(name, _same)(value) for name, value in _changes(move).items()}
        for row, move in zip(move_values(group), group, strict=True)
    ]
    moved = _updating(tuple(fields)).all(connection, rows=rows)
    return {JobKey(seq, index(element)) for seq, element in moved}


def move_values(moves: Iterable[Move]) -> list[dict[str, Any]]:
    """What of moves their events tell."""
    return [
        {
            "seq": move.seq,
            "element": element(move.index),
            "source": move.source,
            "target": move.target,
            "event": move.event,
            "payload": move.payload,
            "place": place,
        }
        for place, move in enumerate(moves)
    ]


@cache
def _updating(fields: tuple[str, ...]) -> Prepared:
    jobs = t.jobs.c
    wanted = recordset({**MOVE, **{name: jobs[name].type for name in fields}})
    same = (jobs.seq == wanted.c.seq, jobs.element == wanted.c.element, jobs.state == wanted.c.source)
    changed = {name: wanted.c[name] for name in fields}
    moved = update(t.jobs).where(*same).values(state=wanted.c.target, modified_at=func.now(), **changed)
    done = moved.returning(*(wanted.c[name] for name in MOVE)).cte("moved")
    return Prepared(select(done.c.seq, done.c.element).add_cte(telling(done).cte("told")))


def telling(moved: Any) -> Insert:
    """Writes the events of these moves (columns as in ``move_values()``)."""
    told = select(
        moved.c.seq, moved.c.element, moved.c.event, moved.c.source, moved.c.target, moved.c.payload
    )
    return insert(t.events).from_select(_EVENT, told.order_by(moved.c.place))


def _same(value: Any) -> Any:
    return value
