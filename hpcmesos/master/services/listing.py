"""Arrays in lists of jobs, with all their elements: those without a row are one entry for many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from msgspec.structs import replace

from hpcmesos.model import JobState
from hpcmesos.queue import elements
from hpcmesos.queue.records import JobRecord


@dataclass(frozen=True, slots=True)
class Listed:
    """A job in a list. ``indexes``: it stands for these elements, which differ in nothing else.

    ``in_live_array``: it is an element of an array that is not complete.
    """

    job: JobRecord
    indexes: Sequence[int] = ()
    in_live_array: bool = False


def expanded(jobs: Sequence[JobRecord]) -> list[Listed]:
    """The jobs, each array followed by its elements in the order of their indexes; ``jobs`` has those with a row."""
    arrays = {job.seq: job for job in jobs if job.array_spec is not None}
    rows: dict[int, list[JobRecord]] = {seq: [] for seq in arrays}
    for job in jobs:
        if job.index is not None and job.seq in arrays:
            rows[job.seq].append(job)
    listed: list[Listed] = []
    for job in jobs:
        if job.seq not in arrays:
            listed.append(Listed(job))
        elif job.array_spec is not None:
            listed.append(Listed(job))
            listed += _elements(job, rows[job.seq])
    return listed


def _elements(parent: JobRecord, rows: Iterable[JobRecord]) -> Iterable[Listed]:
    live = parent.state is not JobState.COMPLETE
    kinds: list[JobRecord] = []
    order: list[tuple[int, int, JobRecord | None]] = [(row.index or 0, -1, row) for row in rows]
    named = {index for index, _, _ in order}  # one that was asked for by its own id may have no row, too
    for number, (kind, indexes) in enumerate(elements.all_without_row(parent)):
        kinds.append(kind)
        order += [(index, number, None) for index in indexes if index not in named]
    order.sort(key=itemgetter(0))
    for number, run in groupby(order, key=itemgetter(1)):
        if number < 0:
            yield from (Listed(row, (), live) for _, _, row in run if row is not None)
        else:
            indexes = [index for index, _, _ in run]
            yield Listed(replace(kinds[number], index=indexes[0]), indexes, live)
