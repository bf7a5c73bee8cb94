"""The scheduler: one pure function from what is to what shall be.

Jobs are gone through in their order. One that fits starts. The first that do not get a reservation in time, and what
comes after them may start only where it takes nothing from those (see ``backfill``). Bounded by work, not by the
clock: jobs of one shape share their fate, for within a cycle room only shrinks; a shape that failed is not tried again
with the same room or less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf

import numpy as np

from hpcmesos.gang import classes, limits, order, preempt, score, tables, windows
from hpcmesos.gang.backfill import MOMENT, Block, Held, Horizon, amounts_of, place
from hpcmesos.gang.best_fit import BestFit, Changes
from hpcmesos.gang.estimate import Candidate, estimates
from hpcmesos.gang.explain import Explainer, Reasons, Side, Waiting
from hpcmesos.gang.feasible import Arrangement, Prefer
from hpcmesos.gang.ledger import Ledger
from hpcmesos.gang.placing import find
from hpcmesos.gang.policy import Backfill, Policy, Preempt
from hpcmesos.gang.room import Floats, Ints
from hpcmesos.gang.snapshot import (
    JobView,
    Member,
    Plan,
    Preemption,
    Reservation,
    RunningView,
    Snapshot,
    Start,
    Window,
)
from hpcmesos.gang.tables import JobTable, NodeTable, RunningTable, Shape
from hpcmesos.model import Chunk, JobId, PendingReason
from hpcmesos.plugin import NodeClass

_ALL = 1 << 30


def schedule(snapshot: Snapshot, policy: Policy, now: float) -> Plan:
    """Which jobs start now, where, who has to go for others, and why each of the others waits.

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
        self.running = RunningTable.of(snapshot.running, self.nodes)
        self.ledger = Ledger(self.nodes)
        self.explainer = Explainer(self.nodes.installed, self.ledger.room, self.nodes.up.copy())
        self.gate = limits.Gate(
            snapshot.limits, self.running, snapshot.plugged, now=now, walltime=self._walltime
        )
        self.starts: list[Start] = []
        self.preemptions: list[Preemption] = []
        self.done: set[int] = set()  # slots of jobs that started, with all elements
        self.heads: list[int] = []  # slots of jobs that wait for room and keep a place in time
        self.limited: dict[int, PendingReason] = {}  # by slot
        self.reservations: list[Reservation] = []
        self.sides: dict[tuple[Window, ...], _Side] = {}
        self.taken: list[tuple[float, Ints]] = []  # what the starts hold, until when
        self.kept: list[Block] = []  # for heads
        self.places = _places(policy)
        self._prefer = score.first_fit if policy.first_fit else score.prefer
        self.slots: list[int] = []  # all, in the order
        self._dead: set[int] = set()  # shapes that fit nowhere now, whatever is kept for others
        self._carried: dict[int, Block] = {}  # by slot, places promised before and not looked at yet
        self._own: dict[int, Block] = {}  # the same, of heads whose place is to be found
        self._over = False  # no more heads will come
        self._changes = Changes()  # rows that starts have taken from
        self._free_cpus = int(self.ledger.room.cpus[self.nodes.up].sum())
        self._free_gpus = int(self.ledger.room.gpus[self.nodes.up].sum())
        self._jobs = list(self.pending.jobs)  # the table changes before somebody asks for reasons
        self._held = Held(self.running.ends.copy(), self.running.shares.copy())
        self._shape_of = self.pending.values[: len(self.pending.jobs), tables.SHAPE].astype(np.int64)
        self._promised = {promise.job: promise for promise in snapshot.promises}

    def run(self) -> None:
        """All jobs once, in their order; behind the first that wait for room, in that of backfill."""
        slots = self.slots = self._rank(self.policy.order)
        if self.policy.preempt is Preempt.ORDER and self._choose_anew(slots):
            return
        self._carry(slots)
        at = 0
        while at < len(slots) and not self._full and (not self.heads or len(self.heads) < self.places):
            self._consider(slots[at])
            at += 1
        if at < len(slots) and not self._full and self.policy.backfill is not Backfill.NONE:
            rest = slots[at:]
            if self.policy.backfill_order:
                left = set(rest)
                rest = [slot for slot in self._rank(self.policy.backfill_order) if slot in left]
            self._fill(rest)
        if self.policy.preempt is Preempt.LEVEL:
            self._make_room()

    def _fill(self, rest: list[int]) -> None:
        """Those behind the heads. What cannot fit is passed over quickly: it is most of a long queue."""
        rows = np.array(rest, np.int64)
        if len(self.heads) >= self.places:
            values = self.pending.values
            cpus, gpus = values[rows, tables.CPUS], values[rows, tables.GPUS]
            rows = rows[(cpus <= self._free_cpus) & (gpus <= self._free_gpus)]
        numbers: list[int] = self._shape_of[rows].tolist()
        at = next((at for at, number in enumerate(numbers) if self._may_fit(number)), len(numbers))
        ends = self._ends(rows[at:]) if at < len(numbers) and self._alike else None
        dead = self._dead
        if ends is None:
            for slot, number in zip(rows[at:].tolist(), numbers[at:], strict=True):
                if self._full:
                    return
                if number not in dead:
                    self._consider(slot)
            return
        self._reserve()
        failed = next(iter(self.sides.values())).failed if self.sides else {}
        for slot, number, end in zip(rows[at:].tolist(), numbers[at:], ends.tolist(), strict=True):
            if self._full:
                return
            if number not in dead and end <= failed.get(number, inf):
                self._consider(slot)

    def _may_fit(self, number: int) -> bool:
        """Whether what is free would do, were nothing kept for others."""
        if number not in self._dead and not self.explainer.fits_now(self.pending.shapes[number]):
            self._dead.add(number)
        return number not in self._dead

    def levels(self, slots: Ints) -> list[int] | None:
        """:meth:`_level` of many at once; None: they have to be asked one by one."""
        if not self._alike:
            return None
        self._reserve()
        times = next(iter(self.sides.values())).horizon.times if self.sides else []
        found: list[int] = np.searchsorted(np.array(times), self._ends(slots), "left").tolist()
        return found

    @property
    def _alike(self) -> bool:
        """Whether what a job has to respect follows from its end alone, for all that are left to look at."""
        more = len(self.heads) < self.places and not self._over
        return not (self.snapshot.windows or self.policy.backfill is Backfill.ENDS_BEFORE or more)

    def _ends(self, slots: Ints) -> Floats:
        """When the jobs would end at the latest, if they started now."""
        return self.now + order.walltimes(self.pending, slots, self.snapshot.queues, self.policy)

    def _rank(self, name: str) -> list[int]:
        slots: list[int] = order.ranked(self.snapshot, self.pending, name, self.policy, self.now).tolist()
        if self.policy.hold_head and self._promised:
            held = [self.pending.slots[job] for job in self._promised if job in self.pending.slots]
            slots = [*held, *(slot for slot in slots if slot not in held)]
        return slots

    # --- starting

    def _consider(self, slot: int) -> None:
        """Starts the job, or as many elements of the array as fit; else notes that it waits."""
        job = self._job(slot)
        number = int(self._shape_of[slot])
        left = 0 if job.queue in self.snapshot.stopped_queues else job.count
        if not left:
            return
        if slot in self._carried:
            self._take_up(slot)
        while left and not self._full and self._start(slot, job, number):
            left -= 1
        if not left:
            self.done.add(slot)
        elif self._full:
            return
        elif len(self.heads) < self.places and slot not in self.limited and self._could_start(number):
            self.heads.append(slot)

    @property
    def _full(self) -> bool:
        """Whether so much was started that the rest has to wait for the next cycle."""
        return len(self.starts) >= self.policy.max_starts

    def _could_start(self, number: int) -> bool:
        """Whether only what other jobs hold is in the way."""
        return self.explainer.could_start_on_empty(self.pending.shapes[number])

    def _start(self, slot: int, job: JobView, number: int) -> bool:
        """One job or one element; False: not now."""
        shape = self.pending.shapes[number]
        if self.heads and self.policy.backfill is Backfill.NONE:
            return False
        refused = self.gate.refuses(job, shape)
        if refused is not None:
            self.limited[slot] = refused
            return False
        if number in self._dead or shape.gpus > self._free_gpus or shape.cpus > self._free_cpus:
            return False
        # Spares the reservation, which is the costly part, as long as nothing fits anyway.
        if len(self.heads) > len(self.reservations) and not self._may_fit(number):
            return False
        side, end = self._side(job), self.now + self._walltime(job)
        level = self._level(job)
        if level is None or end > side.failed.get(number, inf):
            return False
        found = self._find(job, shape, number, side, level)
        if found.lots is None:
            side.failed[number] = side.horizon.respects(level)
            if level == 0 and bool(side.open.all()):
                self._dead.add(number)
            return False
        self._commit(job, shape, found, end)
        return True

    def _find(self, job: JobView, shape: Shape, number: int, side: _Side, level: int) -> Arrangement:
        """Where the job goes now."""
        room, usable = side.horizon.room(level), self.explainer.usable(shape)
        alone = len(shape.kinds) == 1 and shape.kinds[0].count == 1 and not shape.request.constraints
        if not alone or self.policy.first_fit or self.snapshot.plugged.rank is not None:
            return find(shape, room, usable & side.open, self._preference(job))
        best = side.best.get((number, level))
        if best is None or best.room is not room:  # a reservation has made new rooms
            best = side.best[number, level] = BestFit(shape.kinds[0], room, usable & side.open)
        return best.find(self._changes)

    def _preference(self, job: JobView) -> Prefer:
        """Which nodes are filled first: a plug-in's keys for the job's class before the rest."""
        told = self.snapshot.plugged.rank
        keys = None if told is None else told.get(classes.class_of(job))
        if keys is None:
            return self._prefer
        known, numbers = self._node_classes
        return score.keyed(classes.node_keys(numbers, known, keys), self._prefer)

    @cached_property
    def _node_classes(self) -> tuple[list[NodeClass], Ints]:
        return classes.node_classes(self.nodes.site)

    def _commit(self, job: JobView, shape: Shape, found: Arrangement, end: float) -> None:
        members = _members(shape, found, self.ledger)
        try:
            for member in members:
                self.ledger.reserve(job.id, member)
        except BaseException:
            self.ledger.discard()
            raise
        self.ledger.commit()
        amounts = amounts_of(shape, found.lots or ())
        self.taken.append((end, amounts))
        self._changes.add(amounts[:, 0])
        for side in self.sides.values():
            side.horizon.took(amounts, end)
        self.gate.count(job, shape)
        self._free_cpus -= shape.cpus
        self._free_gpus -= shape.gpus
        self.starts.append(Start(job.id, members))

    # --- places in time

    def _level(self, job: JobView) -> int | None:
        """What the job has to respect if it starts now; None: it may not start behind the heads at all."""
        self._reserve()
        end = self.now + self._walltime(job)
        if self.policy.backfill is Backfill.ENDS_BEFORE and self.reservations:
            return 0 if end < self.reservations[0].at else None
        return self._side(job).horizon.level(end)

    def _reserve(self) -> tuple[Reservation, ...]:
        """Gives the heads their places in time: as late as possible, for it is the costly part of a cycle."""
        for slot in self.heads[len(self.reservations) :]:
            shape = self.pending.shapes[int(self._shape_of[slot])]
            self.reservations.append(self._reservation(self._job(slot), shape, self._own.get(slot)))
        return tuple(self.reservations)

    def _carry(self, slots: Sequence[int]) -> None:
        """Keeps the places that were promised to the first jobs of the order, until each has its turn.

        So nobody before them takes them but a job to which nothing was promised, and that comes before them. Nothing is
        kept from the first job on whose place is on a node that it cannot use any more: it looks for another one first.
        """
        if self.policy.hold_head or not self._promised:
            return
        rows = self.nodes.site.rows
        for slot in slots:
            job = self._job(slot)
            promise = self._promised.get(job.id)
            if promise is None and self._in_nobodys_way(job, int(self._shape_of[slot])):
                continue
            if promise is None or not promise.shares or not promise.shares.keys() <= rows.keys():
                break
            amounts = np.array([(rows[name], *share) for name, share in promise.shares.items()], np.int64)
            if not self.explainer.usable(self.pending.shapes[int(self._shape_of[slot])])[amounts[:, 0]].all():
                break  # it could not start there: its node is down, or has failed it since
            at = max(promise.at, self.now + MOMENT)  # one that is due is respected by what starts now, too
            self._carried[slot] = Block(str(job.id), at, promise.at + self._walltime(job), amounts)
        self.kept.extend(self._carried.values())

    def _in_nobodys_way(self, job: JobView, number: int) -> bool:
        """Whether the job cannot start now for another reason than room."""
        stopped = job.queue in self.snapshot.stopped_queues
        return (
            stopped
            or not self._could_start(number)
            or bool(self.gate.refuses(job, self.pending.shapes[number]))
        )

    def _take_up(self, slot: int) -> None:
        """It is the job's turn: its own place is not in its way, but those of the others are."""
        self._reserve()
        block = self._own[slot] = self._carried.pop(slot)
        self.kept = [other for other in self.kept if other is not block]
        for side in self.sides.values():
            side.horizon.release(block)
            side.failed.clear()  # there is more room now

    def _reservation(self, job: JobView, shape: Shape, own: Block | None) -> Reservation:
        """The earliest place. ``own``: as promised before; it holds if there is no earlier one."""
        walltime, usable = self._walltime(job), self.explainer.usable(shape)
        promise = self._promised.get(job.id) if self.policy.hold_head else None
        if promise is not None:
            return Reservation(job.id, promise.at, {})
        horizon = self._side(job).horizon
        found = horizon.earliest(shape, walltime, usable)
        lots = place(shape, found[1], usable) if found else None
        block = (
            Block(str(job.id), found[0], found[0] + walltime, amounts_of(shape, lots))
            if found and lots
            else None
        )
        later = own is not None and (block is None or block.starts > own.starts)
        if own is not None and later and own.starts > self.now + MOMENT and horizon.holds(own):
            block = own
        if block is None:
            return Reservation(job.id, inf, {})
        if self.policy.backfill is not Backfill.ENDS_BEFORE:
            self.kept.append(block)
            for side in self.sides.values():
                side.horizon.reserve(block)
        names = self.nodes.site.nodes
        shares = {names[row].name: (cpus, mem, gpus) for row, cpus, mem, gpus in block.amounts.tolist()}
        return Reservation(job.id, block.starts, shares)

    def _side(self, job: JobView) -> _Side:
        """What the cluster is like for the job: windows that it may not use are closed."""
        closed = windows.closed_to(job, self.snapshot.windows, self.now) if self.snapshot.windows else ()
        side = self.sides.get(closed)
        if side is None:
            held = [*self._departures, *windows.blocks(self.nodes, closed)]
            horizon = Horizon(
                self.ledger.room,
                self._held,
                self.now,
                [*held, *self.kept],
                started=self.taken,
                all_that_end=self.policy.all_that_end,
            )
            side = _Side(horizon, ~windows.closed_now(self.nodes, held, self.now), {})
            self.sides[closed] = side
        return side

    @cached_property
    def _departures(self) -> list[Block]:
        return windows.departures(self.nodes)

    # --- preemption

    def _choose_anew(self, slots: Sequence[int]) -> bool:
        """Under ``Preempt.ORDER``: whether somebody has to go, and then nobody starts yet."""
        merged: list[RunningView | tuple[JobView, Shape]] = [
            entry
            if isinstance(entry, RunningView)
            else (entry, self.pending.shapes[int(self._shape_of[self.pending.slots[entry.id]])])
            for entry in order.merged(
                self.snapshot, [self._job(slot) for slot in slots], self.policy, self.now
            )
        ]
        found = preempt.chosen_anew(merged, self.ledger.room, self.explainer.usable, self.now)
        if found is not None:
            self.preemptions.append(found)
        return found is not None

    def _make_room(self) -> None:
        """Under ``Preempt.LEVEL``: for the first of the heads that may end others, if that lets it start at once."""
        running = list(self.running)
        for slot in self.heads:
            job, shape = self._job(slot), self.pending.shapes[int(self._shape_of[slot])]
            level = preempt.level(self.snapshot.queues, job.queue)
            below = preempt.candidates(running, self.snapshot.queues, level) if job.may_preempt else []
            if not below:
                continue
            coming = self.ledger.room.copy()
            for leaving in running:
                if leaving.leaving:
                    preempt.give_back(coming, leaving, 1)
            usable = self.explainer.usable(shape) & self._side(job).open
            chosen = preempt.victims(shape, coming, usable, below, self.now)
            if chosen:
                work = sum(preempt.lost(victim, self.now) for victim in chosen)
                self.preemptions.append(Preemption(job.id, tuple(victim.id for victim in chosen), work))
            return

    # --- the answer

    def _job(self, slot: int) -> JobView:
        job = self._jobs[slot]
        assert job is not None
        return job

    def _walltime(self, job: JobView) -> float:
        return order.walltime(job, self.snapshot.queues, self.policy)

    def plan(self) -> Plan:
        """The answer. What nobody may ask for is worked out when it is asked for, from what this cycle keeps."""
        self._over = True
        if self.policy.hold_head:
            self._reserve()
        waiting = Waiting(
            jobs=self._jobs,
            shape_of=self._shape_of,
            shapes=self.pending.shapes,
            done=self.done,
            heads=self.heads,
            limited=self.limited,
            stopped=self.snapshot.stopped_queues,
            level=self._level,
            side=self._side,
            walltime=self._walltime,
            levels=self.levels,
            order=self.slots,
            reserve=self._reserve,
            explainer=self.explainer,
        )
        outlook = _Outlook(waiting, self.kept)
        return Plan(tuple(self.starts), Reasons(waiting), tuple(self.preemptions), outlook)


@dataclass(frozen=True, slots=True)
class _Outlook:
    """See ``snapshot.Outlook``."""

    waiting: Waiting
    kept: Sequence[Block]

    def reservations(self) -> tuple[Reservation, ...]:
        return tuple(self.waiting.reserve())

    def estimates(self, first: int) -> dict[JobId, float]:
        waiting = self.waiting
        waiting.reserve()
        blocks = {block.holder: block for block in self.kept}
        jobs, candidates = list[JobView](), list[Candidate]()
        for slot in waiting.order:
            job = waiting.jobs[slot]
            if job is None or slot in waiting.done or slot in waiting.limited or job.queue in waiting.stopped:
                continue
            jobs.append(job)
            shape = waiting.shapes[int(waiting.shape_of[slot])]
            candidates.append(Candidate(shape, waiting.walltime(job), blocks.get(str(job.id))))
            if len(jobs) == first:
                break
        if not jobs:
            return {}
        times = estimates(candidates, waiting.side(jobs[0]).horizon, waiting.explainer)
        return {job.id: at for job, at in zip(jobs, times, strict=True) if at is not None}


@dataclass(slots=True)
class _Side(Side):
    """The cluster as those see it to whom the same windows are closed.

    ``failed``: by number of a shape, a time: what ends after it does not fit. ``best``: by that number and level.
    """

    failed: dict[int, float]
    best: dict[tuple[int, int], BestFit] = field(default_factory=dict)


def _places(policy: Policy) -> int:
    """How many waiting jobs keep a place in time."""
    match policy.backfill:
        case Backfill.FILL:
            return 0
        case Backfill.CONSERVATIVE:
            return _ALL
        case Backfill.EASY:
            return policy.reservations
        case _:
            return 1


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
