"""The statements of the reads that every job causes, built once: to build one costs more than to execute it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ARRAY, BigInteger, Select, Table, bindparam, func, literal, select
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by

from hpcmesos.queue import tables as t

_SEQS = bindparam("seqs", type_=ARRAY(BigInteger))
_TAILS = ("stdout_tail", "stderr_tail")


def _one_job(table: Table) -> Select[Any]:
    return select(table).where(table.c.seq == bindparam("seq"), table.c.element == bindparam("element"))


def _shares(table: Table) -> Select[Any]:
    key = (table.c.seq, table.c.element, table.c.number, table.c.position)
    columns = [table.c[name] for name in t.shares.c.keys()]  # noqa: SIM118  (no mapping)
    return select(*columns).where(table.c.seq == func.any(_SEQS)).order_by(*key)


def _attempts(table: Table, steps: Table, *, tails: bool) -> Select[Any]:
    """Attempts with their steps, as one array; without ``tails`` of the output those are empty."""
    same = [steps.c[name] == table.c[name] for name in ("seq", "element", "number")]
    names = ("step", "command", "code", "first_failed", "ranks")
    pairs = [item for name in names for item in (literal(name), steps.c[name])]
    order = aggregate_order_by(
        func.jsonb_build_object(*pairs, type_=JSONB), func.length(steps.c.step), steps.c.step
    )
    of_attempt = select(func.coalesce(func.jsonb_agg(order), literal([], JSONB), type_=JSONB)).where(*same)
    columns = [
        literal(b"").label(name) if name in _TAILS and not tails else table.c[name]
        for name in t.attempts.c.keys()  # noqa: SIM118  (no mapping)
    ]
    wanted = select(*columns, of_attempt.scalar_subquery().label("steps"))
    wanted = wanted.where(table.c.seq == func.any(_SEQS))
    return wanted.order_by(table.c.seq, table.c.element, table.c.number)


ONE_JOB = (_one_job(t.jobs), _one_job(t.jobs_history))
"""``seq`` and ``element``: the places where a job may be, in the order in which to look."""

HOT_JOBS = select(t.jobs).where(t.jobs.c.seq == func.any(_SEQS)).order_by(t.jobs.c.seq, t.jobs.c.element)
SCRIPTS = select(t.job_scripts).where(t.job_scripts.c.seq == func.any(_SEQS))
SHARES = _shares(t.shares)
LIVE_SHARES = _shares(t.shares).where(t.shares.c.released_at.is_(None))
OLD_SHARES = _shares(t.shares_history)

ATTEMPTS: Mapping[bool, Select[Any]] = {
    tails: _attempts(t.attempts, t.steps, tails=tails) for tails in (True, False)
}
OLD_ATTEMPTS: Mapping[bool, Select[Any]] = {
    tails: _attempts(t.attempts_history, t.steps_history, tails=tails) for tails in (True, False)
}
