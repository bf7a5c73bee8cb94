"""How many jobs may be there, though many come in at once: from counting to commit nobody else is let in.

A kind is what jobs have in common that a limit counts: pairs of a column (queue, owner, egroup, project) and its value;
no pair: all jobs.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from sqlalchemy import Connection, func, select

from hpcmesos.errors import TooManyJobs
from hpcmesos.queue import tables as t

Kind: TypeAlias = tuple[tuple[str, str], ...]

_LIMITS = {
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "3s",
    "statement_timeout": "30s",
}
_ROOM = 0x68706370  # class of pg_advisory_xact_lock: locks of two numbers are none of one number


def count_live(connection: Connection, kind: Kind, among: Sequence[int] | None = None) -> int:
    """How many jobs of the kind are not over; an array is one. ``among``: of these, by ``seq``."""
    jobs = t.jobs.c
    wanted = select(func.count()).where(jobs.ended_at.is_(None), jobs.element == t.WHOLE_JOB)
    if among is not None:
        wanted = wanted.where(jobs.seq == func.any(list(among)))
    return connection.scalar(wanted.where(*(jobs[name] == value for name, value in kind))) or 0


def bounded(connection: Connection) -> None:
    """Limits of time for a transaction that others wait for: who takes the lock may freeze, or lose his host."""
    limits = [func.set_config(name, value, True) for name, value in _LIMITS.items()]
    connection.execute(select(*limits))


def claim_room(connection: Connection, room: Mapping[Kind, int]) -> None:
    """Nobody else claims room for jobs of these kinds until the transaction ends. ``room``: how many of each may be
    there now.

    Raises:
        TooManyJobs: there are more.
    """
    # In one order, or two would wait for each other. Two kinds of one number wait without need, and that is all.
    for number in sorted({zlib.crc32(repr(kind).encode()) - 2**31 for kind in room}):
        connection.execute(select(func.pg_advisory_xact_lock(_ROOM, number)))
    for kind, most in room.items():  # a statement sees what was committed before it began
        if (there := count_live(connection, kind)) > most:
            raise TooManyJobs(f"others were quicker: {there} jobs of at most {most}")
