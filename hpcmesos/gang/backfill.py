"""What a job may use now without being in the way of what was promised for later.

A :class:`Horizon` knows what is free now, when running jobs give back what they hold (at the latest), and what is
reserved from when on: for waiting jobs, in windows, or because a node goes away. A job that starts now and runs until
``end`` may use, on each node, the least of what is free at any time before ``end``. That can only change for the
worse when something reserved begins, so one column of rooms is kept for each such time.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

import numpy as np

from hpcmesos.gang.placing import find, fits
from hpcmesos.gang.room import Floats, Ints, Lot, Mask, Room
from hpcmesos.gang.tables import Shape

MOMENT = 0.001
_TRIES = 500
"""Times at which one job's place is looked for, beyond the first at which enough would be free."""


@dataclass(frozen=True, slots=True)
class Block:
    """An amount kept for ``holder`` (a job, a window) from ``starts`` until ``ends``.

    ``amounts``: columns row, CPUs, bytes, GPUs. ``window``: it is none of a waiting job's.
    """

    holder: str
    starts: float
    ends: float
    amounts: Ints
    window: bool = False


class Running(Protocol):
    """What runs, as a RunningTable shows it: ``ends`` ascending, and the ``shares`` that end then."""

    @property
    def ends(self) -> Floats: ...

    @property
    def shares(self) -> Ints: ...


@dataclass(frozen=True, slots=True)
class Held:
    """The same, unchanging."""

    ends: Floats
    shares: Ints


class Horizon:
    """``free`` is shared with the ledger, and changes with it; call ``took`` after each start."""

    def __init__(
        self,
        free: Room,
        running: Running,
        now: float,
        blocks: Sequence[Block] = (),
        *,
        started: Sequence[tuple[float, Ints]] = (),
        all_that_end: bool = True,
    ) -> None:
        """``started``: as told to ``took``, by which ``free`` is already less. ``all_that_end``: as in Policy."""
        self.now = now
        self._all_that_end = all_that_end
        self._counted: dict[
            float, int
        ] = {}  # time -> shares that count as given back, if not all that end then
        self._free = free
        # What should have ended by now ends at any moment.
        self._ends: Floats = np.maximum(running.ends, now + MOMENT)
        self._shares: Ints = running.shares.copy()
        if not all_that_end:
            self._sort()
        self._fresh: list[tuple[float, Ints]] = list(started)
        self._blocks = list(blocks)
        self.times: list[float] = []  # when blocks begin that are not yet in force, ascending
        self._spare: dict[float, Room] = {}  # what is free at those times
        self._least: list[Room] = [free]  # [i]: the least of now and of the first i times
        if self._blocks:
            self._merge_fresh()
            self._mark(self._blocks)

    # --- what may be used now

    def level(self, end: float) -> int:
        """Number of times that a job which ends at ``end`` has to respect; a higher number means less room."""
        return bisect_left(self.times, end)

    def respects(self, level: int) -> float:
        """The time from which on a job's end is on this level, or above; -inf: any is."""
        return self.times[level - 1] if level else -inf

    def room(self, level: int) -> Room:
        return self._least[level]

    def took(self, amounts: Ints, end: float) -> None:
        """A job was started: ``amounts`` (row, CPUs, bytes, GPUs) are no longer in ``free``, until ``end``."""
        self._fresh.append((end, amounts))
        if not self.times:
            return
        for time in self.times[: self.level(end)]:
            add(self._spare[time], amounts, -1)
        rows = amounts[:, 0]
        for before, least, time in zip(self._least, self._least[1:], self.times, strict=False):
            spare = self._spare[time]
            for name in ("cpus", "mem", "gpus"):
                getattr(least, name)[rows] = np.minimum(
                    getattr(before, name)[rows], getattr(spare, name)[rows]
                )

    # --- what is kept for later

    def earliest(self, shape: Shape, walltime: float, usable: Mask) -> tuple[float, Room] | None:
        """When the shape fits for all of ``walltime``, and the room that it has then; None: not in sight."""
        self._merge_fresh()
        first = self._enough_from(shape, usable)
        if first is None:
            return None
        times = self._candidates(first)
        for time in times[:_TRIES]:
            room = self._throughout(time, time + walltime)
            if fits(shape, room, usable):
                return time, room
        return None

    def releases(self) -> tuple[Floats, Ints]:
        """When which shares come free, by time; what was started in this cycle among them."""
        self._merge_fresh()
        return self._ends, self._shares

    def holder(self, level: int) -> Block:
        """What keeps more on this level than on the one before."""
        time = self.times[level - 1]
        return next(block for block in self._blocks if block.starts == time)

    def kept(self, level: int) -> Room:
        """What is taken off by ``level`` alone: what is free now less what may be used on it."""
        return Room.of(
            self._free.site,
            self._free.cpus - self._least[level].cpus,
            self._free.mem - self._least[level].mem,
            self._free.gpus - self._least[level].gpus,
        )

    def reserve(self, block: Block) -> None:
        """Keeps a job's place in time."""
        self._blocks.append(block)
        self._merge_fresh()
        self._mark([block])

    def release(self, block: Block) -> None:
        """What was kept is kept no longer."""
        self._blocks = [other for other in self._blocks if other is not block]
        self._merge_fresh()
        starts = {other.starts for other in self._blocks}
        self.times = [time for time in self.times if time in starts]
        self._spare = {time: room for time, room in self._spare.items() if time in starts}
        self._mark([block])

    def holds(self, block: Block) -> bool:
        """Whether there is still room for what is not kept any more, all the time."""
        self._merge_fresh()
        room = self._throughout(block.starts, block.ends)
        add(room, block.amounts, -1)
        rows = block.amounts[:, 0]
        return int(min(room.gpus[rows].min(), room.cpus[rows].min(), room.mem[rows].min())) >= 0

    # --- inside

    def _enough_from(self, shape: Shape, usable: Mask) -> float | None:
        """The earliest time at which enough has been given back, whatever is reserved."""
        high = len(self._ends)
        if not fits(shape, self._after(high), usable):
            return None
        low = max(
            self._at_least(shape.gpus, self._free.gpus, 3), self._at_least(shape.cpus, self._free.cpus, 1)
        )
        if low < high and fits(shape, self._after(low), usable):
            high = low
        while low < high:
            middle = (low + high) // 2
            if fits(shape, self._after(middle), usable):
                high = middle
            else:
                low = middle + 1
        end = float(self._ends[low - 1]) if low else self.now
        if not self._all_that_end:
            self._counted[end] = low
        return None if end == inf else max(self.now, end)

    def _at_least(self, needed: int, free: Ints, column: int) -> int:
        """Number of shares before whose end there is not enough, wherever it may lie."""
        missing = needed - int(np.maximum(free, 0).sum())
        if missing <= 0:
            return 0
        return int(np.searchsorted(np.cumsum(self._shares[:, column]), missing)) + 1

    def _candidates(self, first: float) -> list[float]:
        later = [block.ends for block in self._blocks if block.ends > first and block.ends < inf]
        if not self._blocks:
            return [first]
        at = int(np.searchsorted(self._ends, first, "right"))
        return sorted({first, *later, *(float(end) for end in self._ends[at : at + _TRIES] if end < inf)})

    def _after(self, count: int) -> Room:
        """What is free when the first ``count`` shares have been given back."""
        room = self._free.copy()
        if count:
            add(room, self._shares[:count], 1)
        return room

    def _at(self, time: float) -> Room:
        """What is free at ``time``, blocks taken off."""
        count = int(np.searchsorted(self._ends, time, "right")) if time > self.now else 0
        room = self._after(self._counted.get(time, count))
        for block in self._blocks:
            if block.starts <= time < block.ends:
                add(room, block.amounts, -1)
        return room

    def _throughout(self, start: float, end: float) -> Room:
        """What is free all the time from ``start`` until ``end``."""
        room = self._at(start)
        for time in {block.starts for block in self._blocks}:
            if start < time < end:
                room = room.least(self._at(time))
        return room

    def _merge_fresh(self) -> None:
        if not self._fresh:
            return
        self._ends = np.concatenate([self._ends, *(np.full(len(a), end) for end, a in self._fresh)])
        self._shares = np.concatenate([self._shares, *(amounts for _, amounts in self._fresh)])
        self._fresh.clear()
        self._sort()

    def _sort(self) -> None:
        """By end; where it matters, the smaller first among those that end together."""
        keys = (self._ends,) if self._all_that_end else (self._shares[:, 1], self._ends)
        order = np.lexsort(keys)
        self._ends, self._shares = self._ends[order], self._shares[order]

    def _mark(self, blocks: Sequence[Block]) -> None:
        """Works out anew what is free at the times that blocks begin or hold."""
        known = {id(block) for block in self._blocks}
        for block in blocks:
            if id(block) in known and block.starts > self.now and block.starts not in self.times:
                insort(self.times, block.starts)
        for time in self.times:
            if any(block.starts <= time < block.ends for block in blocks):
                self._spare[time] = self._at(time)
        self._least = [self._free]
        for time in self.times:
            self._least.append(self._least[-1].least(self._spare[time]))


def amounts_of(shape: Shape, lots: Sequence[Lot]) -> Ints:
    """Columns row, CPUs, bytes, GPUs of the lots."""
    kinds = shape.kinds
    rows = [
        (
            lot.row,
            lot.pieces * kinds[lot.kind].cpus,
            lot.pieces * kinds[lot.kind].mem,
            lot.pieces * kinds[lot.kind].gpus,
        )
        for lot in lots
    ]
    return np.array(rows, np.int64).reshape(-1, 4)


def place(shape: Shape, room: Room, usable: Mask) -> Sequence[Lot] | None:
    """Where a reservation is put."""
    return find(shape, room, usable).lots


def add(room: Room, amounts: Ints, sign: int) -> None:
    """Adds amounts (columns row, CPUs, bytes, GPUs) to a room; ``sign`` -1: takes them off."""
    rows = amounts[:, 0]
    size = len(room.cpus)
    if size == 1:
        total = amounts.sum(axis=0)
        room.cpus += sign * total[1]
        room.mem += sign * total[2]
        room.gpus += sign * total[3]
        return
    for at, name in ((1, "cpus"), (2, "mem"), (3, "gpus")):
        column = getattr(room, name)
        if len(rows) > 1:
            # Sums of floats are exact up to 2**53, far beyond the bytes of a node.
            column += sign * np.bincount(rows, amounts[:, at], size).astype(np.int64)
        else:
            column[rows] += sign * amounts[:, at]
