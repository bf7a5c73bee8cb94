"""Plain ``qstat -t``: after each array its elements, those next to each other that look alike as one entry."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter

from hpcmesos.model import JobId, JobState
from hpcmesos.pbs.facts import JobFacts
from hpcmesos.queue import elements
from hpcmesos.queue.brief import BriefElements, Looks
from hpcmesos.queue.records import JobRecord
from hpcmesos.units import format_duration


def with_elements(
    jobs: Sequence[JobRecord], facts: Sequence[JobFacts], rows: Iterable[BriefElements]
) -> list[JobFacts]:
    """``facts`` of ``jobs`` with the elements of arrays among them behind each. An element that is one of ``jobs`` too
    shows once; those of other arrays come last.

    ``rows`` were read after ``jobs``: an element that waited then, and has a row now, has begun meanwhile.
    """
    found: defaultdict[int, list[BriefElements]] = defaultdict(list)
    for row in rows:
        found[row.seq].append(row)
    arrays = {job.seq for job in jobs if job.array_spec is not None}
    shown: list[JobFacts] = []
    for job, fact in zip(jobs, facts, strict=True):
        if job.index is None or job.seq not in arrays:
            shown.append(fact)
        if job.array_spec is not None:
            shown += _elements(job, found.pop(job.seq, ()))
    for seq in sorted(found):
        shown += _elements(None, found[seq])
    return shown


def _elements(parent: JobRecord | None, rows: Sequence[BriefElements]) -> Iterator[JobFacts]:
    """By index; ``parent`` None: those with a row alone are known."""
    seq = rows[0].seq if parent is None else parent.seq
    live = parent is not None and parent.state is not JobState.COMPLETE
    order = [(index, row.looks) for row in rows for index in row.indexes]
    begun = {index for index, _ in order}
    for kind, indexes in elements.all_without_row(parent) if parent is not None else ():
        looks = Looks(kind.server, kind.name, kind.owner, kind.queue, kind.state.value, False, None)
        order += [(index, looks) for index in indexes if index not in begun]
    order.sort(key=itemgetter(0))
    for looks, run in groupby(order, key=itemgetter(1)):
        yield _facts(seq, looks, tuple(index for index, _ in run), live=live)


def _facts(seq: int, looks: Looks, indexes: tuple[int, ...], *, live: bool) -> JobFacts:
    return JobFacts(
        id=str(JobId(seq, looks.server, indexes[0])),
        name=looks.name,
        owner=looks.owner,
        submit_host="",
        state="S" if looks.suspended and looks.state == JobState.RUNNING.value else looks.state,
        queue=looks.queue,
        server=looks.server,
        resources_used={} if looks.cput is None else {"cput": format_duration(looks.cput)},
        array_index=indexes[0],
        in_live_array=live,
        alike=indexes,
    )
