"""When the first of the waiting jobs will start, if everything that runs takes all of its walltime.

A run through the future, coarser than the scheduler's own decisions: running jobs end in at most ``_ROUNDS`` groups,
and at each the waiting jobs that then fit start, in their order. What the first ones were promised is kept for them.
On a small cluster nothing is rounded; on a large one an estimate is at most one group too late.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf

import numpy as np

from hpcmesos.gang.backfill import Block, Horizon, add, amounts_of
from hpcmesos.gang.explain import Explainer
from hpcmesos.gang.placing import find
from hpcmesos.gang.room import Floats, Ints, Room
from hpcmesos.gang.score import prefer
from hpcmesos.gang.tables import Shape
from hpcmesos.model import Placement

_ROUNDS = 64
_MORE_ROUNDS = 400  # in which jobs end whose own start is an estimate


@dataclass(frozen=True, slots=True)
class Candidate:
    """One waiting job. ``promised``: when its reservation begins; None: it has none."""

    shape: Shape
    walltime: float
    promised: Block | None = None


class _Future:
    """What is free as time goes on."""

    def __init__(self, horizon: Horizon, explainer: Explainer) -> None:
        self.room = explainer.free.copy()
        self.explainer = explainer
        self.now = horizon.now
        ends, shares = horizon.releases()
        known = int(np.searchsorted(ends, inf, "left"))
        self._ends, self._shares, self._given = ends[:known], shares[:known], 0
        self._edges = _edges(ends[:known])
        self._started: list[tuple[float, int, Ints]] = []
        self._rounds = 0

    def advance(self) -> bool:
        """To the next time at which something comes free; False: there is none in sight."""
        self._rounds += 1
        edge = self._edges[0] if self._edges else inf
        end = self._started[0][0] if self._started else inf
        if min(edge, end) == inf or self._rounds > _ROUNDS + _MORE_ROUNDS:
            return False
        # A group of running jobs ends together; estimated ends in between wait for it, later ones go one by one.
        self.now = edge if edge < inf else end
        if self._edges:
            self._edges.pop(0)
        upto = int(np.searchsorted(self._ends, self.now, "right"))
        if upto > self._given:
            add(self.room, self._shares[self._given : upto], 1)
            self._given = upto
        while self._started and self._started[0][0] <= self.now:
            add(self.room, heappop(self._started)[2], 1)
        return True

    def take(self, amounts: Ints, end: float) -> None:
        add(self.room, amounts, -1)
        heappush(self._started, (end, len(self._started) + self._rounds * 1_000_000, amounts))

    def counts(self) -> tuple[list[int], int, int]:
        """Number of nodes with at least so many free GPUs; free GPUs and CPUs in all."""
        gpus = np.maximum(self.room.gpus[self.explainer.up], 0)
        by_number = np.bincount(gpus) if len(gpus) else np.zeros(1, np.int64)
        at_least: list[int] = by_number[::-1].cumsum()[::-1].tolist()
        return at_least, int(gpus.sum()), int(np.maximum(self.room.cpus[self.explainer.up], 0).sum())


def estimates(jobs: Sequence[Candidate], horizon: Horizon, explainer: Explainer) -> list[float | None]:
    """When each of the jobs, which come in their order, starts (epoch seconds); None: not in sight."""
    future = _Future(horizon, explainer)
    found: list[float | None] = [job.promised.starts if job.promised else None for job in jobs]
    promised = sorted((job.promised for job in jobs if job.promised), key=lambda block: block.starts)
    left = [
        at
        for at, job in enumerate(jobs)
        if job.promised is None and explainer.could_start_on_empty(job.shape)
    ]
    while left and future.advance():
        while promised and promised[0].starts <= future.now:
            block = promised.pop(0)
            future.take(block.amounts, max(block.ends, future.now))
        started = _round(jobs, left, future, promised)
        for at in started:
            found[at] = future.now
        left = [at for at in left if at not in started]
    return found


def _round(
    jobs: Sequence[Candidate], left: Sequence[int], future: _Future, promised: Sequence[Block]
) -> set[int]:
    """Who starts at this time."""
    started: set[int] = set()
    failed: set[tuple[int, bool]] = set()
    kept = _without(future.room, promised)
    first = promised[0].starts if promised else inf
    at_least, gpus, cpus = future.counts()
    for at in left:
        job = jobs[at]
        shape, long = job.shape, future.now + job.walltime > first
        key = (id(shape), long)
        if key in failed or (id(shape), False) in failed:
            continue
        if shape.gpus > gpus or shape.cpus > cpus or not _plausible(shape, at_least):
            failed.add((id(shape), False))
            continue
        usable = future.explainer.usable(shape)
        lots = find(shape, kept if long else future.room, usable, prefer).lots
        if lots is None:
            failed.add(key)
            continue
        amounts = amounts_of(shape, lots)
        future.take(amounts, future.now + job.walltime)
        if kept is not future.room:
            add(kept, amounts, -1)
        gpus, cpus = gpus - shape.gpus, cpus - shape.cpus
        started.add(at)
    return started


def _plausible(shape: Shape, at_least: Sequence[int]) -> bool:
    """Whether there are as many nodes with as many free GPUs as pieces on nodes of their own want."""
    if shape.request.placement is Placement.FREE:
        return True
    return all(
        (at_least[kind.gpus] if kind.gpus < len(at_least) else 0) >= kind.count for kind in shape.kinds
    )


def _without(room: Room, blocks: Sequence[Block]) -> Room:
    if not blocks:
        return room
    less = room.copy()
    for block in blocks:
        add(less, block.amounts, -1)
    return less


def _edges(ends: Floats) -> list[float]:
    """Times at which groups of about equal size have ended."""
    if len(ends) <= _ROUNDS:
        return sorted(set(ends.tolist()))
    picks = np.linspace(0, len(ends) - 1, _ROUNDS).astype(np.int64)
    return sorted(set(ends[picks].tolist()))
