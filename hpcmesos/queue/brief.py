"""Elements of arrays as a short list shows them: of a hundred thousand nothing else is read, and no record is made."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Float, Integer, Select, Table, func, select, union_all

from hpcmesos.queue import queries
from hpcmesos.queue import tables as t
from hpcmesos.queue.records import JobFilter


class Looks(NamedTuple):
    """What a short list shows of an element beside its id; equal ones share it."""

    server: str
    name: str
    owner: str
    queue: str
    state: str  # the letter of a JobState
    suspended: bool
    cput: int | None  # whole seconds of the last attempt; None: not known


class BriefElement(NamedTuple):
    """An element that has a row."""

    seq: int
    element: int
    ended_at: datetime | None
    looks: Looks


def read_brief_elements(connection: Connection, wanted: JobFilter) -> list[BriefElement]:
    """By ids; ``wanted.limit`` is not looked at."""
    rows = connection.execute(_statement(wanted))
    known: dict[Looks, Looks] = {}
    found = []
    for seq, element, ended_at, *shown in rows:
        looks = Looks._make(shown)
        found.append(BriefElement(seq, element, ended_at, known.setdefault(looks, looks)))
    return found


def _statement(wanted: JobFilter) -> Any:
    places = ((t.jobs, t.attempts), (t.jobs_history, t.attempts_history))
    parts = [_select(jobs, attempts, wanted) for jobs, attempts in places[: 2 if wanted.history else 1]]
    whole = parts[0] if len(parts) == 1 else union_all(*parts)
    return whole.order_by("seq", "element")


def _select(jobs: Table, attempts: Table, wanted: JobFilter) -> Select[Any]:
    own, last = jobs.c, attempts.c
    same = (own.seq == last.seq) & (own.element == last.element) & (own.attempt == last.number)
    if "job_ended_at" in last:
        same &= own.ended_at == last.job_ended_at  # of the same partition
    cput = func.floor(last.usage["cput"].astext.cast(Float)).cast(Integer)
    looks = (own.server, own.name, own.owner, own.queue, own.state, own.suspended, cput)
    found = select(own.seq, own.element, own.ended_at, *looks).outerjoin_from(jobs, attempts, same)
    return found.where(own.element != t.WHOLE_JOB, *queries.matching(own, wanted))
