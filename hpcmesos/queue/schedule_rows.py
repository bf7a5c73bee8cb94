"""Schedules and their runs as records, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
from msgspec import structs
from sqlalchemy import Connection, Row, select

from hpcmesos.queue import tables as t
from hpcmesos.queue.records import NewJob

_RUNS = t.schedule_runs.c
_SCHEDULES = t.schedules.c
PLAIN = (
    *("owner", "name", "rule", "timezone", "since", "next_due", "paused"),
    *("missed", "overlap", "deadline", "retries", "retry_delay"),
)
"""Columns that are fields as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """``rule``: see rules.py; empty when it follows ``parents``. ``since``: due times after it count."""

    owner: str
    name: str
    rule: str
    timezone: str = "UTC"
    since: datetime
    next_due: datetime | None = None  # None: never again, paused, or it follows its parents
    paused: bool = False
    missed: str = "once"  # skip, once, all: what becomes of due times that are late by more than ``deadline``
    overlap: str = "allow"  # allow, skip, replace: what when the job of the last run has not ended
    deadline: int = 60  # s
    retries: int = 0
    retry_delay: int = 60  # s
    parents: tuple[str, ...] = ()
    fed: Mapping[str, int] = field(default_factory=dict)
    job: NewJob | None = None  # with its script when it is to be submitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """``seq`` None: no job, and ``outcome`` says why; ``outcome`` empty: its job has not ended."""

    owner: str
    schedule: str
    due: datetime
    number: int = 0  # of the try
    fired_at: datetime
    seq: int | None = None
    outcome: str = ""
    retry_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class EndedRun:
    """A run whose job has ended; ``exit_status`` None: it never ran, or nobody remembers it."""

    run: Run
    exit_status: int | None
    cause: str | None = None


def schedule_record(row: Row[Any]) -> Schedule:
    values = {name: getattr(row, name) for name in PLAIN}
    job = msgspec.convert(row.job, NewJob) if row.job is not None else None
    if job is not None:
        job = structs.replace(job, script=None if row.script is None else bytes(row.script))
    return Schedule(**values, parents=tuple(row.parents), fed=row.fed, job=job)


def run_record(row: Any) -> Run:
    values = dict(row._mapping)
    return Run(
        number=values["try"],
        **{
            name: values[name]
            for name in ("owner", "schedule", "due", "fired_at", "seq", "outcome", "retry_at")
        },
    )


def read_schedules(
    connection: Connection, owner: str | None, names: Sequence[str] | None = None
) -> list[Schedule]:
    """Of one user, or of all users, by owner and name; ``names`` None: all of them."""
    mine = _SCHEDULES.owner != "" if owner is None else _SCHEDULES.owner == owner
    wanted = select(t.schedules).where(mine).order_by(_SCHEDULES.owner, _SCHEDULES.name)
    if names is not None:
        wanted = wanted.where(_SCHEDULES.name.in_(list(names)))
    return [schedule_record(row) for row in connection.execute(wanted)]


def read_runs(connection: Connection, owner: str, name: str, most: int) -> list[Run]:
    """The last ``most`` runs of a schedule, the latest first."""
    mine = (_RUNS.owner == owner, _RUNS.schedule == name)
    wanted = select(t.schedule_runs).where(*mine).order_by(_RUNS.due.desc(), _RUNS["try"].desc()).limit(most)
    return [run_record(row) for row in connection.execute(wanted)]
