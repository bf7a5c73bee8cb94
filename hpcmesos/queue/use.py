"""What was used since a moment, from the shares that were given back: for a leader that has to catch up."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    Connection,
    DateTime,
    Float,
    Select,
    Table,
    bindparam,
    case,
    cast,
    extract,
    func,
    literal,
    select,
    union_all,
)

from hpcmesos.model import HALF_LIFE
from hpcmesos.queue import tables as t

_CPUS_A_GPU = 8.0
_KEY = ("seq", "element", "number")


def use_since(
    connection: Connection, since: datetime, half_life: float = HALF_LIFE
) -> tuple[tuple[str, str, float], ...]:
    """(project, user, GPU-seconds) of shares released after ``since``, halved with every ``half_life`` until now.

    Of a share without GPUs, CPU-seconds / 8. What ran before ``since`` does not count.
    """
    parts = union_all(
        _parts(t.jobs, t.attempts, t.shares), _parts(t.jobs_history, t.attempts_history, t.shares_history)
    ).subquery()
    total = func.sum(parts.c.used)
    wanted = select(parts.c.project, parts.c.owner, total).group_by(parts.c.project, parts.c.owner)
    rows = connection.execute(wanted, {"since": since, "half_life": half_life})
    return tuple((project, owner, float(used)) for project, owner, used in rows)


def _parts(jobs: Table, attempts: Table, shares: Table) -> Select[Any]:
    since = bindparam("since", type_=DateTime(timezone=True))
    gpus = func.cardinality(shares.c.gpus)
    rate = case((gpus > 0, cast(gpus, Float)), else_=shares.c.cpus / literal(_CPUS_A_GPU, Float))
    seconds = extract("epoch", shares.c.released_at - func.greatest(attempts.c.created_at, since))
    age = cast(extract("epoch", func.now() - shares.c.released_at), Float)
    left = func.power(literal(0.5, Float), age / bindparam("half_life", type_=Float))
    used = cast(rate, Float) * func.greatest(cast(seconds, Float), 0.0) * cast(left, Float)
    same_attempt = [shares.c[name] == attempts.c[name] for name in _KEY]
    same_job = [shares.c[name] == jobs.c[name] for name in _KEY[:2]]
    recent = [shares.c.released_at > since]
    if "job_ended_at" in shares.c:
        recent += [shares.c.job_ended_at > since, attempts.c.job_ended_at > since, jobs.c.ended_at > since]
    wanted = select(jobs.c.project, jobs.c.owner, used.label("used"))
    return wanted.join_from(shares, attempts, *_all(same_attempt)).join(jobs, *_all(same_job)).where(*recent)


def _all(conditions: list[Any]) -> tuple[Any]:
    first, *rest = conditions
    for condition in rest:
        first = first & condition
    return (first,)
