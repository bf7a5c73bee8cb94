"""The statements of the reads that every job causes, built once: to build one costs more than to execute it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Integer,
    Select,
    Table,
    bindparam,
    case,
    column,
    func,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by

from hpcmesos.model import JobState
from hpcmesos.queue import tables as t
from hpcmesos.queue.records import JobFilter, JobKey
from hpcmesos.queue.rows import element

_SEQS = bindparam("seqs", type_=ARRAY(BigInteger))
_ELEMENTS = bindparam("elements", type_=ARRAY(Integer))
_LAST = 2**31 - 1
_ALL = -2  # instead of an element: the job and all its elements
_TAILS = ("stdout_tail", "stderr_tail")


def _one_job(table: Table) -> Select[Any]:
    return select(table).where(table.c.seq == bindparam("seq"), table.c.element == bindparam("element"))


def _owners(table: Table) -> Select[Any]:
    whole = table.c.element == bindparam("whole")
    return select(table.c.seq, table.c.owner).where(table.c.seq == func.any(_SEQS), whole)


OWNERS = _owners(t.jobs).union_all(_owners(t.jobs_history))


def job_keys(jobs: Iterable[int | JobKey]) -> dict[str, list[int]]:
    """The parameters of statements about jobs: a number is a job with all its elements, a key one row."""
    seqs, elements = [], []
    for job in jobs:
        seqs.append(job if isinstance(job, int) else job.seq)
        elements.append(_ALL if isinstance(job, int) else element(job.index))
    return {"seqs": seqs, "elements": elements}


def matching(columns: Any, wanted: JobFilter) -> Iterator[Any]:
    """The conditions on rows with these ``columns`` of jobs."""
    if wanted.seqs is not None:
        yield columns.seq == func.any(list(wanted.seqs))
    if wanted.owners is not None:
        yield columns.owner.in_(wanted.owners)
    if wanted.queues is not None:
        yield columns.queue.in_(wanted.queues)
    if wanted.states is not None:
        yield columns.state.in_(sorted(wanted.states))
        if JobState.COMPLETE not in wanted.states:
            yield columns.ended_at.is_(None)
    if not wanted.elements:
        yield columns.element == t.WHOLE_JOB


def _wanted(table: Table) -> tuple[Any, Any]:
    """The jobs of ``job_keys()`` as a table, and what joins it."""
    keys = func.unnest(_SEQS, _ELEMENTS).table_valued(column("seq", BigInteger), column("element", Integer))
    wanted = keys.render_derived(name="wanted")
    # Both bounds can be looked up in the index, which an OR could not.
    every = wanted.c.element == _ALL
    low = case((every, t.WHOLE_JOB), else_=wanted.c.element)
    high = case((every, _LAST), else_=wanted.c.element)
    return wanted, (table.c.seq == wanted.c.seq) & table.c.element.between(low, high)


def _shares(table: Table) -> Select[Any]:
    key = (table.c.seq, table.c.element, table.c.number, table.c.position)
    columns = [table.c[name] for name in t.shares.c.keys()]  # noqa: SIM118  (no mapping)
    wanted, same = _wanted(table)
    return select(*columns).join_from(wanted, table, same).order_by(*key)


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
    keys, mine = _wanted(table)
    found = select(*columns, of_attempt.scalar_subquery().label("steps")).join_from(keys, table, mine)
    return found.order_by(table.c.seq, table.c.element, table.c.number)


def _outcomes(table: Table) -> Select[Any]:
    names = ("seq", "element", "state", "exit_status", "array_spec", "todo", "deleted", "succeeded", "failed")
    keys, mine = _wanted(table)
    return select(*(table.c[name] for name in names)).join_from(keys, table, mine)


OUTCOMES = (_outcomes(t.jobs), _outcomes(t.jobs_history))
"""Of the jobs of ``job_keys()``, in the order in which to look."""

ONE_JOB = (_one_job(t.jobs), _one_job(t.jobs_history))
"""``seq`` and ``element``: the places where a job may be, in the order in which to look."""

SUBMISSIONS = tuple(
    select(table.c.seq, table.c.submission).where(
        table.c.seq == func.any(_SEQS), table.c.element == t.WHOLE_JOB
    )
    for table in (t.jobs, t.jobs_history)
)
"""Of jobs and of arrays' parents, by ``seqs``; in the same order."""


def _arrays() -> Select[Any]:
    element = t.jobs.alias()
    live = select(element.c.seq, element.c.state, func.count().label("number"))
    live = live.where(
        element.c.seq == func.any(_SEQS), element.c.element != t.WHOLE_JOB, element.c.ended_at.is_(None)
    )
    states = live.group_by(element.c.seq, element.c.state).subquery()
    together = func.jsonb_object_agg(states.c.state, states.c.number, type_=JSONB)
    counts = select(states.c.seq, together.label("live")).group_by(states.c.seq).subquery()
    columns = [column for column in t.jobs.c if column.name != "submission"]
    parents = select(*columns, counts.c.live).outerjoin_from(t.jobs, counts, counts.c.seq == t.jobs.c.seq)
    return parents.where(t.jobs.c.seq == func.any(_SEQS), t.jobs.c.element == t.WHOLE_JOB)


ARRAYS = _arrays()
"""Arrays by ``seqs``, without submission; each with how many elements in each state have a row and are not complete."""

HOT_JOBS = select(t.jobs).where(t.jobs.c.seq == func.any(_SEQS), t.jobs.c.element == t.WHOLE_JOB)
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
