"""The one door through which a job's state changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Connection, Integer, Text, func, update
from sqlalchemy.dialects.postgresql import JSONB

from hpcmesos.model import JobState
from hpcmesos.queue import tables as t
from hpcmesos.queue.records import JobKey, Move
from hpcmesos.queue.rows import (
    array_json,
    dependencies_json,
    element,
    insert_rows,
    job_key,
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
_KEY = {"seq": BigInteger(), "element": Integer(), "source": Text(), "target": Text()}


def move_jobs(connection: Connection, moves: Sequence[Move]) -> set[JobKey]:
    """See LeaderTransaction.move_jobs."""
    for move in moves:
        check(move.source, move.target)
        if unknown := set(move.changes) - CHANGEABLE:
            raise ValueError(f"a move cannot change {sorted(unknown)[0]}")
    moved: set[JobKey] = set()
    for wave in _waves(moves):
        by_fields: defaultdict[frozenset[str], list[Move]] = defaultdict(list)
        for move in wave:
            by_fields[frozenset(_changes(move))].append(move)
        done: set[JobKey] = set()
        for fields, group in by_fields.items():
            done |= _update(connection, sorted(fields), group)
        write_events(connection, [move for move in wave if move.key in done])
        moved |= done
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
        {
            "seq": move.seq,
            "element": element(move.index),
            "source": move.source,
            "target": move.target,
            **{name: _ENCODE.get(name, _same)(value) for name, value in _changes(move).items()},
        }
        for move in group
    ]
    return {job_key(row) for row in connection.execute(_updating(tuple(fields)), {"rows": rows})}


@cache
def _updating(fields: tuple[str, ...]) -> Any:
    jobs = t.jobs.c
    wanted = recordset({**_KEY, **{name: jobs[name].type for name in fields}})
    return (
        update(t.jobs)
        .where(jobs.seq == wanted.c.seq, jobs.element == wanted.c.element, jobs.state == wanted.c.source)
        .values(state=wanted.c.target, modified_at=func.now(), **{name: wanted.c[name] for name in fields})
        .returning(jobs.seq, jobs.element)
    )


def _same(value: Any) -> Any:
    return value


def write_events(connection: Connection, moves: Sequence[Move]) -> None:
    """One event for each move, in their order."""
    if not moves:
        return
    rows = [
        {
            "seq": move.seq,
            "element": element(move.index),
            "kind": move.event,
            "source": move.source,
            "target": move.target,
            "payload": move.payload,
        }
        for move in moves
    ]
    connection.execute(_TELLING, {"rows": rows})


_TELLING = insert_rows(t.events, {**_KEY, "kind": Text(), "payload": JSONB()})
