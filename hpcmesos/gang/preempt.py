"""Who has to go so that a job can start: whole gangs, the least work lost, never a cascade.

Under ``Preempt.LEVEL`` the first waiting jobs of a queue of a higher level may end running jobs of lower ones. A job
that was preempted may not preempt (its owner says so), and while jobs are leaving no others are chosen if those
suffice. Under ``Preempt.ORDER``, for simulations, the running set is chosen anew in the order of all jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from hpcmesos.gang.placing import find, fits
from hpcmesos.gang.room import Mask, Room
from hpcmesos.gang.snapshot import JobView, Preemption, QueueView, RunningView
from hpcmesos.gang.tables import Shape
from hpcmesos.model import JobId


def lost(job: RunningView, now: float) -> float:
    """GPU-seconds of work that end with a job (CPU-seconds when it holds no GPU)."""
    since = job.started_at if job.saved_at is None else job.saved_at
    gpus = sum(len(member.gpus) for member in job.members)
    return max(0.0, now - since) * (gpus or sum(member.cpus for member in job.members))


def level(queues: Mapping[str, QueueView], queue: str) -> int:
    """Of a queue; 0 of one that is not known."""
    return queues[queue].level if queue in queues else 0


def candidates(
    running: Iterable[RunningView], queues: Mapping[str, QueueView], below: int
) -> list[RunningView]:
    """Who may be ended for a job of level ``below``: jobs of lower levels that do not leave already."""
    return [
        job for job in running if job.preemptible and not job.leaving and level(queues, job.queue) < below
    ]


def victims(
    shape: Shape, room: Room, usable: Mask, running: Sequence[RunningView], now: float
) -> tuple[RunningView, ...] | None:
    """The fewest GPU-seconds that have to be lost, as far as is found, so that the shape fits; None: no way.

    Two ways are tried, and the better is taken: node by node, the cheapest nodes first; and job by job, the cheapest
    first. Both then spare everyone who turns out not to be needed.
    """
    cost = {job.id: lost(job, now) for job in running}
    ways = [
        _by_nodes(shape, room, usable, running, cost),
        sorted(running, key=lambda job: (cost[job.id], job.id)),
    ]
    found = [way for order in ways if (way := _enough(shape, room, usable, order, cost)) is not None]
    return min(found, key=lambda way: (sum(cost[job.id] for job in way), len(way)), default=None)


def _enough(
    shape: Shape, room: Room, usable: Mask, order: Sequence[RunningView], cost: Mapping[JobId, float]
) -> tuple[RunningView, ...] | None:
    """Jobs of ``order`` from its front until the shape fits, less those that can stay."""
    freed, gone = room.copy(), list[RunningView]()
    for job in order:
        if fits(shape, freed, usable):
            break
        give_back(freed, job, 1)
        gone.append(job)
    if not fits(shape, freed, usable):
        return None
    for job in sorted(gone, key=lambda job: -cost[job.id]):
        give_back(freed, job, -1)
        if fits(shape, freed, usable):
            gone.remove(job)
        else:
            give_back(freed, job, 1)
    return tuple(gone)


def _by_nodes(
    shape: Shape, room: Room, usable: Mask, running: Sequence[RunningView], cost: Mapping[JobId, float]
) -> list[RunningView]:
    """The jobs in the way on the nodes that are the cheapest to clear for one piece of the largest kind."""
    kind = max(shape.kinds, key=lambda kind: (kind.gpus, kind.cpus, kind.mem))
    on: dict[int, list[RunningView]] = {}
    for job in sorted(running, key=lambda job: (cost[job.id], job.id)):
        for member in job.members:
            if member.node in room.site.rows:
                on.setdefault(room.site.rows[member.node], []).append(job)
    ways = []
    for row, jobs in on.items():
        needed = _clear(kind.gpus - int(room.gpus[row]), kind.cpus - int(room.cpus[row]), row, jobs, room)
        if usable[row] and needed is not None:
            ways.append((sum(cost[job.id] for job in needed), row, needed))
    first = [job for _, _, jobs in sorted(ways, key=lambda way: way[:2]) for job in jobs]
    return list(
        {job.id: job for job in [*first, *sorted(running, key=lambda job: (cost[job.id], job.id))]}.values()
    )


def _clear(
    gpus: int, cpus: int, row: int, jobs: Sequence[RunningView], room: Room
) -> list[RunningView] | None:
    """The cheapest jobs of a node that give so many GPUs and CPUs back; None: all of them do not."""
    gone = []
    for job in jobs:
        if gpus <= 0 and cpus <= 0:
            break
        share = next(member for member in job.members if room.site.rows.get(member.node) == row)
        gpus, cpus = gpus - len(share.gpus), cpus - share.cpus
        gone.append(job)
    return gone if gpus <= 0 and cpus <= 0 else None


def give_back(room: Room, job: RunningView, sign: int) -> None:
    """Adds what a job holds to what is free; ``sign`` -1: takes it off again."""
    for member in job.members:
        row = room.site.rows.get(member.node)
        if row is not None:
            room.cpus[row] += sign * member.cpus
            room.mem[row] += sign * member.mem
            room.gpus[row] += sign * len(member.gpus)


def chosen_anew(
    merged: Sequence[RunningView | tuple[JobView, Shape]],
    room: Room,
    usable: Callable[[Shape], Mask],
    now: float,
) -> Preemption | None:
    """Goes through running and waiting jobs in one order and gives out the cluster anew; who no longer fits must go.

    ``room``: what is free. Running jobs keep their nodes. None: nobody has to go.
    """
    rest, free, first, gone = room.copy(), room.copy(), None, list[RunningView]()
    for job in merged:
        if isinstance(job, RunningView):
            give_back(rest, job, 1)
    for entry in merged:
        if isinstance(entry, RunningView):
            give_back(rest, entry, -1)
            if int(min(rest.gpus.min(), rest.cpus.min(), rest.mem.min())) < 0:
                give_back(rest, entry, 1)
                gone.append(entry)
            continue
        view, shape = entry
        # Rather where nobody runs.
        found = find(shape, free, usable(shape))
        if found.lots is None:
            found = find(shape, rest, usable(shape))
        if found.lots is not None:
            first = first or view.id
            for lot in found.lots:
                rest.take(lot.row, shape.kinds[lot.kind], lot.pieces)
                free.take(lot.row, shape.kinds[lot.kind], lot.pieces)
    if first is None or not gone:
        return None
    return Preemption(first, tuple(job.id for job in gone), float(np.sum([lost(job, now) for job in gone])))
