"""Nodes, waiting jobs and running jobs as columns that are kept between cycles.

Each table is a collection of views, so that it can stand in a :class:`Snapshot`; who keeps it changes single rows
between two calls of ``schedule()``, which itself changes nothing. ``TABLE.of(collection)`` gives a table for anything.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from hpcmesos.gang.feasible import kinds_of
from hpcmesos.gang.room import Floats, Ints, Mask, Room
from hpcmesos.gang.snapshot import JobView, Member, NodeView, RunningView
from hpcmesos.model import Chunk, GpuUuid, JobId, NodeName, Request

_MANY_SHAPES = 4096
_ELEMENTS = 1 << 21  # more than an array may have


class NodeTable(Collection[NodeView]):
    """Nodes; ``room`` is what is free of them, ``up`` which rows may be used."""

    def __init__(self, nodes: Iterable[NodeView]) -> None:
        self._build(nodes)

    @classmethod
    def of(cls, nodes: Collection[NodeView]) -> NodeTable:
        return nodes if isinstance(nodes, cls) else cls(nodes)

    def _build(self, nodes: Iterable[NodeView]) -> None:
        self.room = Room(nodes, installed=False)
        self.site = self.room.site
        self.installed = Room(self.site.nodes, installed=True)
        self.up = self.site.mask(lambda node: node.up)
        self.version = 0
        self._views = list(self.site.nodes)
        self._free: dict[int, tuple[int, ...]] = {}
        self._positions: dict[int, dict[GpuUuid, int]] = {}

    def __len__(self) -> int:
        return len(self._views)

    def __iter__(self) -> Iterator[NodeView]:
        return (self._view(row) for row in range(len(self._views)))

    def __contains__(self, node: object) -> bool:
        return isinstance(node, NodeView) and node in list(self)

    def put(self, nodes: Iterable[NodeView]) -> None:
        """Takes in nodes as they are now; a node that is new, or of another make than before, costs a new table."""
        changed = list(nodes)
        rows = self.site.rows
        if any(
            node.name not in rows or not _alike(node, self.site.nodes[rows[node.name]]) for node in changed
        ):
            new = {node.name: node for node in changed}
            self._build([*(v for v in self if v.name not in new), *new.values()])
            return
        for node in changed:
            row = rows[node.name]
            free = tuple(at for at, gpu in enumerate(node.gpus) if gpu.free)
            self.room.cpus[row], self.room.mem[row] = node.cpus_free, node.mem_free
            self.room.gpus[row], self._free[row] = len(free), free
            self.up[row] = node.up
            self._views[row] = node

    def remove(self, names: Collection[NodeName]) -> None:
        """Forgets nodes."""
        self._build([view for view in self if view.name not in names])

    def free_gpus(self, row: int) -> tuple[int, ...]:
        """Positions, ascending, of the free GPUs in the node's ``gpus``."""
        free = self._free.get(row)
        if free is None:
            free = tuple(at for at, gpu in enumerate(self._views[row].gpus) if gpu.free)
            self._free[row] = free
        return free

    def position(self, row: int, uuid: GpuUuid) -> int:
        """Where a GPU stands in the node's ``gpus``; -1: not there."""
        known = self._positions.get(row)
        if known is None:
            known = {gpu.uuid: at for at, gpu in enumerate(self.site.nodes[row].gpus)}
            self._positions[row] = known
        return known.get(uuid, -1)

    def allocate(self, members: Iterable[Member]) -> None:
        """Takes a gang's shares off what is free."""
        for member in members:
            row = self._move(member, -1)
            if member.gpus:
                taken = {self.position(row, uuid) for uuid in member.gpus}
                self._free[row] = tuple(at for at in self.free_gpus(row) if at not in taken)

    def release(self, members: Iterable[Member]) -> None:
        """Gives a gang's shares back."""
        for member in members:
            row = self._move(member, 1)
            if member.gpus:
                back = [self.position(row, uuid) for uuid in member.gpus]
                self._free[row] = tuple(sorted([*self.free_gpus(row), *back]))

    def _move(self, member: Member, sign: int) -> int:
        row = self.site.rows[member.node]
        self.room.cpus[row] += sign * member.cpus
        self.room.mem[row] += sign * member.mem
        self.room.gpus[row] += sign * len(member.gpus)
        return row

    def _view(self, row: int) -> NodeView:
        view, free = self._views[row], self._free.get(row)
        if free is not None:
            gpus = tuple(replace(gpu, free=at in free) for at, gpu in enumerate(view.gpus))
            view = replace(view, gpus=gpus)
        return replace(view, cpus_free=int(self.room.cpus[row]), mem_free=int(self.room.mem[row]))


def _alike(new: NodeView, old: NodeView) -> bool:
    """Whether only what is free, and whether it is up, has changed."""
    if (new.cpus, new.mem, new.features, new.switch, new.ends_at) != (
        old.cpus,
        old.mem,
        old.features,
        old.switch,
        old.ends_at,
    ):
        return False
    return new.links == old.links and [(g.uuid, g.numa) for g in new.gpus] == [
        (g.uuid, g.numa) for g in old.gpus
    ]


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides where a job fits, whoever asks and for how long. ``request`` without its walltime."""

    request: Request
    excluded: frozenset[NodeName]
    kinds: tuple[Chunk, ...]
    cpus: int
    gpus: int

    @classmethod
    def of(cls, job: JobView) -> Shape:
        return cls.of_request(job.request, job.excluded)

    @classmethod
    def of_request(cls, request: Request, excluded: frozenset[NodeName] = frozenset()) -> Shape:
        request = request if request.walltime is None else replace(request, walltime=None)
        return cls(request, excluded, kinds_of(request), request.cpus, request.gpus)


PRIORITY, QUEUED_AT, TIE, WALLTIME, REMAINING, CPUS, GPUS, COUNT, SHAPE, WHO, PREDICTED, QOS, QUEUE = range(
    13
)
"""Columns of ``JobTable.values``. WALLTIME: nan when none is named; WHO, QUEUE, SHAPE: numbers in their lists."""


class JobTable(Collection[JobView]):
    """Waiting jobs. A job has a slot as long as it is in; ``values[slot]`` has its columns."""

    def __init__(self, jobs: Iterable[JobView] = ()) -> None:
        self.values: Floats = np.empty((16, QUEUE + 1))
        self.jobs: list[JobView | None] = []
        self.shapes: list[Shape] = []
        self.who: list[tuple[str, str]] = []  # (project, user)
        self.queues: list[str] = []
        self.slots: dict[JobId, int] = {}
        self.version = 0
        self._free: list[int] = []
        self._numbers: dict[object, int] = {}
        for job in jobs:
            self.put(job)

    @classmethod
    def of(cls, jobs: Collection[JobView]) -> JobTable:
        return jobs if isinstance(jobs, cls) else cls(jobs)

    def __len__(self) -> int:
        return len(self.slots)

    def __iter__(self) -> Iterator[JobView]:
        return (job for job in self.jobs if job is not None)

    def __contains__(self, job: object) -> bool:
        return isinstance(job, JobView) and job in self.jobs

    def put(self, job: JobView) -> None:
        """Takes in a job, or what has changed of it."""
        if len(self.shapes) > max(_MANY_SHAPES, 4 * len(self.slots)):
            self._forget_old_numbers()
        slot = self.slots.get(job.id)
        if slot is None:
            slot = self._slot()
            self.slots[job.id] = slot
        key = (job.request, job.excluded)
        shape = self._numbers.get(key)
        if shape is None:
            shape = self._numbers[key] = self._number(Shape.of(job), self.shapes)
        index = -1 if job.id.index is None else job.id.index
        walltime = job.request.walltime if job.walltime is None else job.walltime
        request = self.shapes[shape]
        self.values[slot] = (
            job.priority,
            job.queued_at,
            job.id.seq * _ELEMENTS + index + 1,
            np.nan if walltime is None else walltime,
            np.nan if job.remaining is None else job.remaining,
            request.cpus,
            request.gpus,
            job.count,
            shape,
            self._number((job.project, job.user), self.who),
            np.nan if job.predicted is None else job.predicted,
            job.qos,
            self._number(job.queue, self.queues),
        )
        self.jobs[slot] = job
        self.version += 1

    def remove(self, job: JobId) -> None:
        """Forgets a job, if it is known."""
        slot = self.slots.pop(job, None)
        if slot is not None:
            self.jobs[slot] = None
            self._free.append(slot)
            self.version += 1

    def get(self, job: JobId) -> JobView | None:
        slot = self.slots.get(job)
        return None if slot is None else self.jobs[slot]

    def _forget_old_numbers(self) -> None:
        """Numbers shapes and names anew: most are of jobs that left long ago. Lists given out before stay."""
        self.shapes, self.who, self.queues, self._numbers = [], [], [], {}
        for job in list(self):
            self.put(job)

    def all_slots(self) -> Ints:
        """Slots in use, in no order that means anything."""
        return np.fromiter(self.slots.values(), np.int64, len(self.slots))

    def _slot(self) -> int:
        if self._free:
            return self._free.pop()
        self.jobs.append(None)
        if len(self.jobs) > len(self.values):
            self.values = np.concatenate([self.values, np.empty_like(self.values)])
        return len(self.jobs) - 1

    def _number(self, value: object, known: list) -> int:  # type: ignore[type-arg]  # of whatever is numbered
        number = self._numbers.get(value)
        if number is None:
            number = self._numbers[value] = len(known)
            known.append(value)
        return number


class RunningTable(Collection[RunningView]):
    """Running jobs, and ``ends``/``shares``: what comes free, sorted by when it does at the latest.

    ``ends``: epoch seconds, inf when unknown. ``shares``: columns row, CPUs, bytes, GPUs; the first ``size`` rows hold.
    """

    def __init__(self, nodes: NodeTable, jobs: Iterable[RunningView] = ()) -> None:
        self.views: dict[JobId, RunningView] = {}
        self._nodes = nodes
        self._site = nodes.site
        self._ends: Floats = np.empty(64)
        self._shares: Ints = np.empty((64, 4), np.int64)
        self._whose: Ints = np.empty(64, np.int64)  # of each row, the number of its job
        self._numbers: dict[JobId, int] = {}
        self._count = itertools.count()
        self._size = 0
        for job in sorted(jobs, key=lambda job: inf if job.ends_at is None else job.ends_at):
            self.put(job)

    @classmethod
    def of(cls, jobs: Collection[RunningView], nodes: NodeTable) -> RunningTable:
        return jobs if isinstance(jobs, cls) else cls(nodes, jobs)

    def __len__(self) -> int:
        return len(self.views)

    def __iter__(self) -> Iterator[RunningView]:
        return iter(self.views.values())

    def __contains__(self, job: object) -> bool:
        return isinstance(job, RunningView) and self.views.get(job.id) == job

    @property
    def ends(self) -> Floats:
        self._follow()
        return self._ends[: self._size]

    @property
    def shares(self) -> Ints:
        self._follow()
        return self._shares[: self._size]

    def put(self, job: RunningView) -> None:
        """Takes in a job that runs, or what has changed of it."""
        self.remove(job.id)
        self._follow()
        self.views[job.id] = job
        self._insert(job)

    def remove(self, job: JobId) -> None:
        """Forgets a job, if it is known."""
        self._follow()
        view = self.views.pop(job, None)
        number = self._numbers.pop(job, None)
        if view is None or number is None:
            return
        end, stop = inf if view.ends_at is None else view.ends_at, self._size
        first, last = (int(np.searchsorted(self._ends[:stop], end, side)) for side in ("left", "right"))
        # A job's rows stand together.
        own = np.flatnonzero(self._whose[first:last] == number)
        at, count = first + int(own[0]), len(own)
        for column in (self._ends, self._shares, self._whose):
            column[at : stop - count] = column[at + count : stop]
        self._size -= count

    def _known(self, job: RunningView) -> list[Member]:
        return [member for member in job.members if member.node in self._site.rows]

    def _insert(self, job: RunningView) -> None:
        members = self._known(job)
        count = len(members)
        if not count:
            return
        while self._size + count > len(self._ends):
            self._ends = np.concatenate([self._ends, np.empty_like(self._ends)])
            self._shares = np.concatenate([self._shares, np.empty_like(self._shares)])
            self._whose = np.concatenate([self._whose, np.empty_like(self._whose)])
        end = inf if job.ends_at is None else job.ends_at
        stop = self._size
        at = bisect_right(self._ends, end, 0, stop)
        for column in (self._ends, self._shares, self._whose):
            column[at + count : stop + count] = column[at:stop]
        self._numbers[job.id] = next(self._count)
        self._ends[at : at + count] = end
        self._shares[at : at + count] = _share_rows(members, self._site.rows)
        self._whose[at : at + count] = self._numbers[job.id]
        self._size += count

    def _follow(self) -> None:
        """When the nodes have other rows than before, so do the shares."""
        if self._site is not self._nodes.site:
            self._site, self._size = self._nodes.site, 0
            self._numbers.clear()
            for job in sorted(
                self.views.values(), key=lambda job: inf if job.ends_at is None else job.ends_at
            ):
                self._insert(job)


def _share_rows(members: Iterable[Member], rows: dict[NodeName, int]) -> Ints:
    return np.array([(rows[m.node], m.cpus, m.mem, len(m.gpus)) for m in members], np.int64).reshape(-1, 4)


__all__ = ["JobTable", "Mask", "NodeTable", "RunningTable", "Shape"]
