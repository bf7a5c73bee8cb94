"""Elements of arrays as a short list shows them: of a hundred thousand nothing else is read, and no record is made."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Connection, Float, Select, Table, case, func, or_, select, union_all

from hpcmesos.queue import queries
from hpcmesos.queue import tables as t
from hpcmesos.queue.records import JobFilter

Forgotten = tuple[Mapping[str, datetime], datetime]
"""By queue, and for any other queue: elements that ended before are left out."""

_MOST = 2.0**53
"""Seconds of processor time that are shown at most."""


class Looks(NamedTuple):
    """What a short list shows of an element beside its id."""

    server: str
    name: str
    owner: str
    queue: str
    state: str  # the letter of a JobState
    suspended: bool
    cput: int | None  # whole seconds of the last attempt; None: not known


class BriefElements(NamedTuple):
    """Elements of one array that have a row and look alike; ``indexes`` in any order."""

    seq: int
    looks: Looks
    indexes: list[int]


def read_brief_elements(
    connection: Connection, wanted: JobFilter, forgotten: Forgotten | None = None
) -> list[BriefElements]:
    """In any order; ``wanted.limit`` is not looked at."""
    rows = connection.execute(_statement(wanted, forgotten))
    return [BriefElements(seq, Looks._make(looks), indexes) for seq, indexes, *looks in rows]


def _statement(wanted: JobFilter, forgotten: Forgotten | None) -> Select[Any]:
    places = ((t.jobs, t.attempts), (t.jobs_history, t.attempts_history))
    parts = [_select(*place, wanted, forgotten) for place in places[: 2 if wanted.history else 1]]
    rows = (parts[0] if len(parts) == 1 else union_all(*parts)).subquery("rows").c
    looks = [rows[name] for name in Looks._fields]
    return select(rows.seq, func.array_agg(rows.element), *looks).group_by(rows.seq, *looks)


def _select(jobs: Table, attempts: Table, wanted: JobFilter, forgotten: Forgotten | None) -> Select[Any]:
    own, last = jobs.c, attempts.c
    same = (own.seq == last.seq) & (own.element == last.element) & (own.attempt == last.number)
    if "job_ended_at" in last:
        same &= own.ended_at == last.job_ended_at  # of the same partition
    told = last.usage["cput"].astext.cast(Float)  # by a node; NaN is more than anything to PostgreSQL
    shown = func.floor(func.least(func.greatest(told, 0.0), _MOST)).cast(BigInteger)
    cput = case((told.is_not(None), shown)).label("cput")
    looks = [cput if name == "cput" else own[name] for name in Looks._fields]
    found = select(own.seq, own.element, *looks).outerjoin_from(jobs, attempts, same)
    found = found.where(own.element != t.WHOLE_JOB, *queries.matching(own, wanted))
    if forgotten is not None:
        of_queues, of_others = forgotten
        since = case(of_queues, value=own.queue, else_=of_others) if of_queues else of_others
        found = found.where(or_(own.ended_at.is_(None), own.ended_at >= since))
    return found
