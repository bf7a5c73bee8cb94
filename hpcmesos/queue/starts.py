"""Gangs into the database and out of it again: allocation, end, release. All inside a leader's transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

import msgspec
from psycopg import IntegrityError
from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    Text,
    case,
    delete,
    exists,
    func,
    insert,
    select,
    union_all,
    update,
)

from hpcmesos.model import GpuState, JobState
from hpcmesos.queue import tables as t
from hpcmesos.queue.element_rows import begin_elements, write_ends
from hpcmesos.queue.moves import move_jobs
from hpcmesos.queue.pending import Pending
from hpcmesos.queue.prepared import Prepared
from hpcmesos.queue.records import (
    AttemptKey,
    AttemptRecord,
    Ending,
    JobKey,
    Move,
    Release,
    ShareRecord,
    StartRecord,
)
from hpcmesos.queue.rows import attempt_values, insert_rows, recordset, share_values, step_values, still_held

_FINISH_BATCH = 100  # attempts a statement: each may carry 2 x 64 KiB of output
_ATTEMPT = {"seq": BigInteger(), "element": Integer(), "number": Integer()}
_NOT_WHILE_HELD = [GpuState.FREE.value, GpuState.CLEANING.value, GpuState.UNKNOWN_ATTEMPT.value]
_CAPACITY = {"node": Text(), "cpus": Integer(), "mem": BigInteger()}
_ALLOCATION = {**_ATTEMPT, "node": Text(), "gpu": Text(), "port": Integer()}


class _DoesNotFit(Exception):
    """Some member's node or GPU went meanwhile."""


def apply_starts(
    connection: Connection, gangs: Sequence[StartRecord], now: datetime, pending: Pending
) -> set[JobKey]:
    """See LeaderTransaction.apply_starts. All at once; if that fails, the halves, down to the gang at fault."""
    if not gangs:
        return set()
    try:
        with connection.begin_nested():
            started = _start(connection, gangs, now, pending)
    except (_DoesNotFit, IntegrityError):
        write_pending(connection, pending)
        if len(gangs) == 1:
            return set()
    else:
        if started:
            new = (gang.attempt for gang in gangs if gang.new)
            pending.begun({attempt.seq for attempt in new if attempt.job in started})
        return started
    middle = len(gangs) // 2
    first = apply_starts(connection, gangs[:middle], now, pending)
    return first | apply_starts(connection, gangs[middle:], now, pending)


def _start(
    connection: Connection, gangs: Sequence[StartRecord], now: datetime, pending: Pending
) -> set[JobKey]:
    moves = [_start_move(gang, now) for gang in gangs]
    new = [move for move, gang in zip(moves, gangs, strict=True) if gang.new]
    old = [move for move, gang in zip(moves, gangs, strict=True) if not gang.new]
    moved = move_jobs(connection, old) | begin_elements(connection, new, pending)
    gangs = [gang for gang in gangs if gang.attempt.job in moved]
    if not gangs:
        return moved
    shares = [share for gang in gangs for share in gang.shares]
    rows = [share_values(share) for share in shares]
    nodes = _starting().scalar(connection, rows=rows, freed=pending.freed())
    if nodes != len({share.node for share in shares}):
        raise _DoesNotFit
    _take_gpus_and_ports(connection, shares)
    return moved


def _start_move(gang: StartRecord, now: datetime) -> Move:
    changes = {"attempt": gang.attempt.number, "started_at": now}
    payload = {"attempt": gang.attempt.number, "nodes": [share.node for share in gang.shares]}
    return Move(
        seq=gang.attempt.seq,
        index=gang.attempt.index,
        source=JobState.QUEUED,
        target=JobState.RUNNING,
        event="started",
        payload={**payload, **gang.payload},
        changes=changes,
    )


@cache
def _starting() -> Prepared:
    """Attempts, their shares, and what these take of their nodes beyond what came free there; the number of nodes that
    may give it.
    """
    columns = {c.name: c.type for c in t.shares.c if c.name != "released_at"}
    wanted = select(recordset(columns)).cte("wanted")
    heads = select(*(wanted.c[name] for name in _ATTEMPT)).where(wanted.c.position == 0)
    begun = insert(t.attempts).from_select(list(_ATTEMPT), heads).cte("begun")
    shared = insert(t.shares).from_select(list(columns), select(wanted)).cte("shared")
    back = recordset(_CAPACITY, "freed").c
    less = select(back.node, -back.cpus, -back.mem)
    both = union_all(select(*(wanted.c[name] for name in _CAPACITY)), less).cte("both")
    changed = _adding(both).cte("changed")
    nodes = t.nodes.c
    there = nodes.up & ~nodes.offline & nodes.name.in_(select(wanted.c.node))
    return Prepared(select(func.count()).where(there).add_cte(begun, shared, changed))


def write_pending(connection: Connection, pending: Pending) -> None:
    """Writes what no start has written."""
    if rows := pending.freed():
        _giving_back().run(connection, rows=rows)
    write_ends(connection, pending)
    pending.clear()


@cache
def _giving_back() -> Prepared:
    back = recordset(_CAPACITY).c
    return Prepared(
        _adding(select(back.node, (-back.cpus).label("cpus"), (-back.mem).label("mem")).cte("back"))
    )


def _adding(rows: Any) -> Any:
    """Adds these CPUs and memory to their nodes' used counters."""
    columns = rows.c
    cpus, mem = func.sum(columns.cpus), func.sum(columns.mem)
    sums = select(columns.node, cpus.label("cpus"), mem.label("mem")).group_by(columns.node)
    change = sums.having((cpus != 0) | (mem != 0)).subquery("change").c
    nodes = t.nodes.c
    values = {"cpus_used": nodes.cpus_used + change.cpus, "mem_used": nodes.mem_used + change.mem}
    return update(t.nodes).where(nodes.name == change.node).values(**values)


def _take_gpus_and_ports(connection: Connection, shares: Sequence[ShareRecord]) -> None:
    base = [(share, {**attempt_values(share.attempt), "node": share.node}) for share in shares]
    gpus = [{**row, "gpu": uuid} for share, row in base for uuid in share.gpus]
    ports = [{**row, "port": port} for share, row in base for port in share.ports]
    if gpus:
        _allocating().run(connection, rows=gpus)
    if ports:
        _taking_ports().run(connection, rows=ports)
    if gpus and _taking_gpus().run(connection, rows=gpus) != len(gpus):
        raise _DoesNotFit


@cache
def _allocating() -> Prepared:
    return Prepared(insert_rows(t.allocations, _ALLOCATION))


@cache
def _taking_gpus() -> Prepared:
    wanted = recordset({"gpu": Text(), "node": Text()})
    mine = (t.gpus.c.uuid == wanted.c.gpu, t.gpus.c.node == wanted.c.node)
    taken = update(t.gpus).where(*mine, t.gpus.c.state == GpuState.FREE.value)
    return Prepared(taken.values(state=GpuState.ALLOCATED.value))


@cache
def _taking_ports() -> Prepared:
    """A port is taken on a host: nodes of one kernel, or with one address, have their ports in common."""
    types = {name: kind for name, kind in _ALLOCATION.items() if name != "gpu"}
    wanted = recordset(types)
    nodes = t.nodes.c
    host = func.coalesce(func.nullif(nodes.boot_id, ""), nodes.address)
    chosen = select(*(wanted.c[name] for name in types), host).where(nodes.name == wanted.c.node)
    return Prepared(insert(t.allocations).from_select([*types, "host"], chosen))


def release_shares(connection: Connection, releases: Sequence[Release], pending: Pending) -> None:
    """See LeaderTransaction.release_shares. What comes free is added to ``pending``."""
    if not releases:
        return
    rows = [{**attempt_values(r.attempt), "node": r.node, "gpu_state": r.gpu_state} for r in releases]
    released, free_gpus, drop = _releasing()
    gone = released.all(connection, rows=rows)
    for node, cpus, mem, _ in gone:
        pending.free(node, cpus, mem)
    if any(held for *_, held in gone):  # only a live share has allocations
        free_gpus.run(connection, rows=rows)
        drop.run(connection, rows=rows)


@cache
def _releasing() -> tuple[Prepared, Prepared, Prepared]:
    """Of shares (node, CPUs, memory, and whether GPUs or ports were held); of their GPUs; of their allocations."""
    wanted = recordset({**_ATTEMPT, "node": Text(), "gpu_state": Text()})

    def same(table: Any) -> tuple[Any, ...]:
        return tuple(table.c[name] == wanted.c[name] for name in ("seq", "element", "number", "node"))

    shares, gpus = t.shares.c, t.gpus.c
    released = update(t.shares).where(*same(t.shares), still_held(shares.released_at))
    held = func.cardinality(shares.gpus) + func.cardinality(shares.ports) > 0
    released = released.values(released_at=func.now())
    theirs = (t.allocations.c.gpu == gpus.uuid, *same(t.allocations))
    freed = update(t.gpus).where(*theirs, gpus.state == GpuState.ALLOCATED.value)
    return (
        Prepared(released.returning(shares.node, shares.cpus, shares.mem, held)),
        Prepared(freed.values(state=wanted.c.gpu_state)),
        Prepared(delete(t.allocations).where(*same(t.allocations))),
    )


def set_gpu_states(connection: Connection, states: Mapping[str, GpuState], notes: Mapping[str, str]) -> None:
    """See LeaderTransaction.set_gpu_states."""
    if not states:
        return
    rows = [{"uuid": uuid, "state": state, "note": notes.get(uuid)} for uuid, state in states.items()]
    connection.execute(_setting_gpus(), {"rows": rows})


@cache
def _setting_gpus() -> Any:
    wanted = recordset({"uuid": Text(), "state": Text(), "note": Text()})
    held = exists().where(t.allocations.c.gpu == t.gpus.c.uuid)
    state = case(
        (wanted.c.state.in_(_NOT_WHILE_HELD) & held, GpuState.ALLOCATED.value),
        ((wanted.c.state == GpuState.ALLOCATED.value) & ~held, GpuState.UNKNOWN_ATTEMPT.value),
        else_=wanted.c.state,
    )
    changed = update(t.gpus).where(t.gpus.c.uuid == wanted.c.uuid)
    return changed.values(state=state, note=func.coalesce(wanted.c.note, t.gpus.c.note))


def set_endings(connection: Connection, endings: Mapping[AttemptKey, Ending]) -> None:
    """See LeaderTransaction.set_endings."""
    rows = [{**attempt_values(key), "ending": msgspec.to_builtins(ending)} for key, ending in endings.items()]
    _setting_endings().run(connection, rows=rows)


@cache
def _setting_endings() -> Prepared:
    attempts = t.attempts.c
    wanted = recordset({**_ATTEMPT, "ending": attempts.ending.type})
    same = (attempts[name] == wanted.c[name] for name in _ATTEMPT)
    ending = update(t.attempts).where(*same, attempts.ended_at.is_(None)).values(ending=wanted.c.ending)
    return Prepared(ending)


def finish_attempts(connection: Connection, records: Sequence[AttemptRecord]) -> None:
    """See LeaderTransaction.finish_attempts."""
    for start in range(0, len(records), _FINISH_BATCH):
        _finish(connection, records[start : start + _FINISH_BATCH])


_END_FIELDS = (
    "ended_at",
    "cause",
    "code",
    "signal",
    "forced",
    "culprit",
    "message",
    "usage",
    "stdout_path",
    "stderr_path",
    "undelivered",
)
_TAILS = ("stdout_tail", "stderr_tail")


def _finish(connection: Connection, records: Sequence[AttemptRecord]) -> None:
    fields = (*_END_FIELDS, "started_at", *_TAILS)
    rows = [
        {**attempt_values(record.key), **{name: getattr(record, name) for name in fields}}
        for record in records
    ]
    done = set(_finishing().all(connection, rows=rows))
    steps = [
        step
        for record in records
        if tuple(attempt_values(record.key).values()) in done
        for step in step_values(record)
    ]
    if steps:
        _noting_steps().run(connection, rows=steps)


@cache
def _noting_steps() -> Prepared:
    return Prepared(insert_rows(t.steps, {c.name: c.type for c in t.steps.c}))


@cache
def _finishing() -> Prepared:
    attempts = t.attempts.c
    types = {**_ATTEMPT, **{name: attempts[name].type for name in (*_END_FIELDS, "started_at")}}
    wanted = recordset({**types, **dict.fromkeys(_TAILS, Text())})
    same = (attempts[name] == wanted.c[name] for name in _ATTEMPT)
    values: dict[str, Any] = {name: wanted.c[name] for name in _END_FIELDS}
    values["ended_at"] = func.coalesce(wanted.c.ended_at, func.now())
    values["started_at"] = func.coalesce(wanted.c.started_at, attempts.started_at)
    for name in _TAILS:  # JSON carries bytes in base64
        values[name] = func.decode(wanted.c[name], "base64")
    finished = update(t.attempts).where(*same, attempts.ended_at.is_(None)).values(**values)
    return Prepared(finished.returning(attempts.seq, attempts.element, attempts.number))
