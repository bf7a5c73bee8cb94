"""The scheduler: one pure function from what is to what shall be.

Jobs are gone through in their order. One that fits starts. The first that do not get a reservation in time, and what
comes after them may start only where it takes nothing from those (see ``backfill``). Bounded by work, not by the
clock: jobs of one shape share their fate, for within a cycle room only shrinks; a shape that failed is not tried again
with the same room or less.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np

from hpcmesos.gang import order, score, tables
from hpcmesos.gang.backfill import Horizon, amounts_of, place
from hpcmesos.gang.explain import Explainer, Reasons, Waiting
from hpcmesos.gang.feasible import Arrangement, arrange
from hpcmesos.gang.ledger import Ledger
from hpcmesos.gang.policy import Backfill, Policy
from hpcmesos.gang.snapshot import JobView, Member, Plan, Reservation, Snapshot, Start
from hpcmesos.gang.tables import JobTable, NodeTable, RunningTable, Shape
from hpcmesos.model import Chunk

_ANY_LEVEL = 1 << 30


def schedule(snapshot: Snapshot, policy: Policy, now: float) -> Plan:
    """Which jobs start now, where, and why each of the others waits.

    Args:
        snapshot: the cluster, the jobs that run and those that wait.
        policy: the site's rules.
        now: epoch seconds.
    """
    cycle = _Cycle(snapshot, policy, now)
    cycle.run()
    return cycle.plan()


class _Cycle:
    """One decision in the making."""

    def __init__(self, snapshot: Snapshot, policy: Policy, now: float) -> None:
        self.snapshot, self.policy, self.now = snapshot, policy, now
        self.nodes = NodeTable.of(snapshot.nodes)
        self.pending = JobTable.of(snapshot.pending)
        self.ledger = Ledger(self.nodes)
        self.horizon = Horizon(
            self.ledger.room,
            RunningTable.of(snapshot.running, self.nodes),
            now,
            all_that_end=policy.all_that_end,
        )
        self.starts: list[Start] = []
        self.done: set[int] = set()  # slots of jobs that started, with all elements
        self.heads: list[int] = []  # slots of jobs that wait for room and keep a place in time
        self.reservations: list[Reservation] = []
        self.failed: dict[int, int] = {}  # shape -> the lowest level on which it does not fit
        self.explainer = Explainer(self.nodes.installed, self.ledger.room, self.nodes.up.copy())
        self._free_cpus = int(self.ledger.room.cpus[self.nodes.up].sum())
        self._free_gpus = int(self.ledger.room.gpus[self.nodes.up].sum())
        self._shape_of = self.pending.values[: len(self.pending.jobs), tables.SHAPE].astype(np.int64)
        self._promised = {promise.job: promise for promise in snapshot.promises}

    def run(self) -> None:
        """All jobs once, in their order; behind the first that wait for room, in that of backfill."""
        slots = self._rank(self.policy.order)
        at, places = 0, self._places
        while at < len(slots) and (not self.heads or len(self.heads) < places):
            self._consider(slots[at])
            at += 1
        if at == len(slots) or self.policy.backfill is Backfill.NONE:
            return
        rest = slots[at:]
        if self.policy.backfill_order:
            left = set(rest)
            rest = [slot for slot in self._rank(self.policy.backfill_order) if slot in left]
        for slot in self._small_enough(rest) if len(self.heads) >= places else rest:
            self._consider(slot)

    def _small_enough(self, slots: list[int]) -> list[int]:
        """Those that ask for no more than is free in all."""
        rows = np.array(slots, np.int64)
        values = self.pending.values
        fitting = (values[rows, tables.CPUS] <= self._free_cpus) & (
            values[rows, tables.GPUS] <= self._free_gpus
        )
        few: list[int] = rows[fitting].tolist()
        return few

    def _rank(self, name: str) -> list[int]:
        slots: list[int] = order.ranked(self.snapshot, self.pending, name, self.policy, self.now).tolist()
        if self.policy.hold_head and self._promised:
            held = [self.pending.slots[job] for job in self._promised if job in self.pending.slots]
            slots = [*held, *(slot for slot in slots if slot not in held)]
        return slots

    def _consider(self, slot: int) -> None:
        """Starts the job, or as many elements of the array as fit; else notes that it waits."""
        job = self.pending.jobs[slot]
        assert job is not None
        number = int(self._shape_of[slot])
        if self.failed.get(number, _ANY_LEVEL) == 0 or len(self.starts) >= self.policy.max_starts:
            self._wait(slot, job, number)
            return
        left = job.count
        while left and self._start(job, number):
            left -= 1
        if left:
            self._wait(slot, job, number)
        else:
            self.done.add(slot)

    def _wait(self, slot: int, job: JobView, number: int) -> None:
        if (
            len(self.heads) < self._places
            and self.explainer.could_start_on_empty(self.pending.shapes[number])
            and self._open(job)
        ):
            self.heads.append(slot)

    @property
    def _places(self) -> int:
        """How many waiting jobs keep a place in time."""
        match self.policy.backfill:
            case Backfill.FILL:
                return 0
            case Backfill.CONSERVATIVE:
                return _ANY_LEVEL
            case Backfill.EASY:
                return self.policy.reservations
            case _:
                return 1

    def _open(self, job: JobView) -> bool:
        return job.queue not in self.snapshot.stopped_queues

    def _start(self, job: JobView, number: int) -> bool:
        shape = self.pending.shapes[number]
        if not self._open(job) or (self.heads and self.policy.backfill is Backfill.NONE):
            return False
        if shape.gpus > self._free_gpus or shape.cpus > self._free_cpus:
            self.failed[number] = 0
            return False
        walltime = self._walltime(job)
        level = self._level(walltime)
        if level is None or level >= self.failed.get(number, _ANY_LEVEL):
            return False
        found = arrange(
            shape.request, self.horizon.room(level), self.explainer.usable(shape), score.prefer, shape.kinds
        )
        if found.lots is None:
            self.failed[number] = level
            return False
        self._commit(job, shape, found, self.now + walltime)
        return True

    def _level(self, walltime: float) -> int | None:
        """What the job has to respect; None: it may not start behind the heads at all."""
        self._reserve()
        end = self.now + walltime
        if self.policy.backfill is Backfill.ENDS_BEFORE and self.reservations:
            return 0 if end < self.reservations[0].at else None
        return self.horizon.level(end)

    def _reserve(self) -> None:
        """Gives the heads their places in time: as late as possible, for it is the costly part of a cycle."""
        for slot in self.heads[len(self.reservations) :]:
            job = self.pending.jobs[slot]
            assert job is not None
            self.reservations.append(self._reservation(job, self.pending.shapes[int(self._shape_of[slot])]))

    def _reservation(self, job: JobView, shape: Shape) -> Reservation:
        walltime, usable = self._walltime(job), self.explainer.usable(shape)
        promise = self._promised.get(job.id) if self.policy.hold_head else None
        if promise is not None:
            return Reservation(job.id, promise.at, {})
        found = self.horizon.earliest(shape, walltime, usable)
        lots = place(shape, found[1], usable) if found else None
        if found is None or lots is None:
            return Reservation(job.id, inf, {})
        if self.policy.backfill is not Backfill.ENDS_BEFORE:
            self.horizon.reserve(str(job.id), shape, lots, found[0], walltime)
        rows = amounts_of(shape, lots).tolist()
        names = self.nodes.site.nodes
        return Reservation(
            job.id, found[0], {names[row].name: (cpus, mem, gpus) for row, cpus, mem, gpus in rows}
        )

    def _commit(self, job: JobView, shape: Shape, found: Arrangement, end: float) -> None:
        members = _members(shape, found, self.ledger)
        try:
            for member in members:
                self.ledger.reserve(job.id, member)
        except BaseException:
            self.ledger.discard()
            raise
        self.ledger.commit()
        self.horizon.took(amounts_of(shape, found.lots or ()), end)
        self._free_cpus -= shape.cpus
        self._free_gpus -= shape.gpus
        self.starts.append(Start(job.id, members))

    def _walltime(self, job: JobView) -> float:
        walltime = job.request.walltime if job.walltime is None else job.walltime
        return self.policy.assumed_walltime if walltime is None else float(walltime)

    def reservations_now(self) -> tuple[Reservation, ...]:
        """Places in time of the heads."""
        self._reserve()
        return tuple(self.reservations)

    def plan(self) -> Plan:
        """The answer. What nobody may ask for is worked out when it is asked for, from what this cycle keeps."""
        if self.policy.hold_head:
            self._reserve()
        waiting = Waiting(
            jobs=list(self.pending.jobs),
            shape_of=self._shape_of,
            shapes=self.pending.shapes,
            done=self.done,
            heads=self.heads,
            stopped=self.snapshot.stopped_queues,
            level=lambda job: self._level(self._walltime(job)),
            reserve=self.reservations_now,
            horizon=self.horizon,
            explainer=self.explainer,
        )
        reasons = Reasons(waiting)
        return Plan(tuple(self.starts), reasons, outlook=reasons)


def _members(shape: Shape, found: Arrangement, ledger: Ledger) -> tuple[Member, ...]:
    """One member a node; the head is the first node of the first kind of pieces, as with Torque's mother superior."""
    shares: dict[int, list[tuple[Chunk, int]]] = {}
    for lot in sorted(found.lots or (), key=lambda lot: (lot.kind, lot.row)):
        shares.setdefault(lot.row, []).append((shape.kinds[lot.kind], lot.pieces))
    return tuple(_member(row, share, ledger) for row, share in shares.items())


def _member(row: int, share: Sequence[tuple[Chunk, int]], ledger: Ledger) -> Member:
    node = ledger.room.nodes[row]
    gpus = score.choose_gpus(node, ledger.free_gpus(row), sum(kind.gpus * n for kind, n in share))
    return Member(
        node.name,
        cpus=sum(kind.cpus * n for kind, n in share),
        mem=sum(kind.mem * n for kind, n in share),
        slots=sum(kind.slots * n for kind, n in share),
        gpus=tuple(node.gpus[at].uuid for at in gpus),
    )
