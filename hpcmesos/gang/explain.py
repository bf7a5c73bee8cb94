"""Why a job waits, in a true and specific sentence.

The reason is the first that holds of: queue stopped, no nodes, never fits, the fitting nodes are excluded, the fitting
nodes are down, not enough is free, what is free is kept for others, behind another job.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

import numpy as np

from hpcmesos.gang import words
from hpcmesos.gang.backfill import Horizon
from hpcmesos.gang.feasible import can_ever_fit, short_kind
from hpcmesos.gang.placing import cannot_keep, find, fits, rules
from hpcmesos.gang.room import Ints, Mask, Refusal, Room
from hpcmesos.gang.snapshot import JobView, Reservation
from hpcmesos.gang.tables import Shape
from hpcmesos.model import Chunk, JobId, NodeName, PendingReason, Placement, ReasonCode

_UNKNOWN = PendingReason(ReasonCode.INSUFFICIENT, "")
_NO_WAY = "no way was found to place them together"


class Explainer:
    """Answers for one cluster: ``installed`` is all it has, ``free`` what is free of it (shared with the ledger)."""

    def __init__(self, installed: Room, free: Room, up: Mask) -> None:
        self.installed = installed
        self.free = free
        self.up = up
        self._included: dict[frozenset[NodeName], Mask] = {}
        self._usable: dict[frozenset[NodeName], Mask] = {frozenset(): up}
        self._could: dict[Shape, bool] = {}

    def included(self, shape: Shape) -> Mask:
        """The rows that are not excluded for the shape."""
        names = shape.excluded
        if names not in self._included:
            rows = [self.free.site.rows[name] for name in names if name in self.free.site.rows]
            mask = np.ones(len(self.up), np.bool_)
            mask[rows] = False
            self._included[names] = mask
        return self._included[names]

    def usable(self, shape: Shape) -> Mask:
        """The rows that are up and not excluded for the shape."""
        mask = self._usable.get(shape.excluded)
        if mask is None:
            mask = self._usable[shape.excluded] = self.up & self.included(shape)
        return mask

    def could_start_on_empty(self, shape: Shape) -> bool:
        """True when only what other jobs hold can be in the shape's way."""
        if shape not in self._could:
            self._could[shape] = fits(shape, self.installed, self.usable(shape))
        return self._could[shape]

    def fits_now(self, shape: Shape) -> bool:
        """Whether what is free would do, were it not kept for others."""
        return fits(shape, self.free, self.usable(shape))

    def lacking(self, shape: Shape) -> PendingReason:
        """For a shape that does not fit into what is free."""
        if not self.could_start_on_empty(shape):
            return self._cannot(shape)
        return PendingReason(ReasonCode.INSUFFICIENT, self._lacking(shape), self.facts(shape))

    def facts(self, shape: Shape) -> dict[str, int | float | str]:
        """What it needs and what is free on the nodes that it may use, in numbers."""
        usable = self.usable(shape)
        figures: dict[str, int | float | str] = {}
        if shape.gpus:
            figures |= {"gpus_needed": shape.gpus, "gpus_free": int(self.free.gpus[usable].sum())}
        figures |= {"cpus_needed": shape.cpus, "cpus_free": int(self.free.cpus[usable].sum())}
        return figures

    def _cannot(self, shape: Shape) -> PendingReason:
        """For a shape that could not start even if the nodes that it may use now were empty."""
        request, needs = shape.request, words.needs(shape.request, shape.kinds)
        if not self.free.nodes:
            return PendingReason(ReasonCode.NO_NODES, f"needs {needs}; no node is known yet")
        never = can_ever_fit(request, self.installed.nodes)
        if never is not None:
            return never
        included = self.included(shape)
        everywhere = np.ones(len(self.up), np.bool_)
        if request.constraints and not fits(shape, self.installed, everywhere):
            return cannot_keep(shape)
        if find(shape, self.installed, included).lots is None and not bool(included.all()):
            names = self.names(~included)
            text = f"needs {needs}; excluded for this job after failures: {names}; the others do not suffice"
            return PendingReason(ReasonCode.EXCLUDED, text)
        down = np.zeros(len(self.up), np.bool_)
        for kind in shape.kinds:
            down |= self.installed.fits(kind, included & ~self.up)
        if not down.any():
            return PendingReason(ReasonCode.INSUFFICIENT, f"needs {needs}; {_NO_WAY}")
        text = f"needs {needs}; too few such nodes are in service, out of it: {self.names(down)}"
        first = ", ".join(self.installed.nodes[row].name for row in _first(down))
        return PendingReason(ReasonCode.NODES_DOWN, text, {"nodes_out": first})

    def names(self, mask: Mask) -> str:
        """The nodes of some rows, the first few by name."""
        return words.listed_of([self.installed.nodes[row].name for row in _first(mask)], int(mask.sum()))

    def _lacking(self, shape: Shape) -> str:
        request, usable = shape.request, self.usable(shape)
        short = short_kind(request, self.free, usable)
        if short is None:
            needs = words.needs(request, shape.kinds, free=True)
            sure = find(shape, self.free, usable).certain
            if request.constraints:
                return f"needs {needs}; not enough is free now on nodes that keep to {rules(request)}"
            return f"needs {needs}; each is free now, but {'not all at once' if sure else _NO_WAY}"
        kind, number = short
        text = f"needs {words.need(kind, request.placement, free=True)}; "
        fitting = self.free.fits(kind, usable)
        rows = _first(fitting)
        shown = words.listed_of([self._free_on(row, kind) for row in rows], int(fitting.sum()))
        if request.placement is Placement.FREE and kind.count > 1 and number:
            return f"{text}room for {number} is free now ({shown})"
        if number:
            return f"{text}{number} such {'node is' if number == 1 else 'nodes are'} free now ({shown})"
        nearest = self._nearest(kind, usable)
        if nearest is None:
            return f"{text}no such node is free now"
        return f"{text}no such node is free now (nearest is {self._free_on(nearest, kind)})"

    def _nearest(self, kind: Chunk, usable: Mask) -> int | None:
        """Of the rows that could hold a piece when empty, the one with the most free of what is asked."""
        free = self.free
        rows = np.flatnonzero(self.installed.fits(kind, usable))
        if not len(rows):
            return None
        main = np.minimum((free.gpus if kind.gpus else free.cpus)[rows], kind.gpus or kind.cpus)
        return int(rows[np.argmax((main << 32) + free.cpus[rows])])

    def _free_on(self, row: int, kind: Chunk) -> str:
        """``node3: 4 of 8 GPUs free``: of what refuses the piece there, or of the main thing that it asks for."""
        free, installed = self.free, self.installed
        lack = free.refusal(kind, row) or (Refusal.GPUS if kind.gpus else Refusal.CPUS)
        name = free.nodes[row].name
        if lack is Refusal.MEM:
            return f"{name}: {words.size(int(free.mem[row]))} of {words.size(int(installed.mem[row]))} memory free"
        if lack is Refusal.GPUS:
            return f"{name}: {free.gpus[row]} of {words.counted(int(installed.gpus[row]), 'GPU')} free"
        return f"{name}: {free.cpus[row]} of {words.counted(int(installed.cpus[row]), 'CPU')} free"


@dataclass(slots=True)
class Side:
    """The cluster as some jobs see it. ``open``: the rows that no window keeps from them at this moment."""

    horizon: Horizon
    open: Mask


@dataclass(frozen=True, slots=True)
class Waiting:
    """What one cycle leaves: the jobs (by slot), which of them wait, and what it decided about their places in time.

    ``shape_of``: by slot, a number in ``shapes``. ``done``: slots of the jobs that started whole. ``heads``: slots of
    those that the others have to respect. ``level``: what a job that starts now has to respect, None: it may not start
    behind the heads. ``side``: how the cluster looks to it. ``reserve`` gives the heads their places.
    ``limited``: by slot, jobs that a limit keeps waiting. ``levels``: ``level`` of many
    slots at once, if that can be. ``order``: all slots, first to start first.
    """

    jobs: Sequence[JobView | None]
    shape_of: Ints
    shapes: Sequence[Shape]
    done: Collection[int]
    heads: Sequence[int]
    limited: Mapping[int, PendingReason]
    stopped: frozenset[str]
    level: Callable[[JobView], int | None]
    side: Callable[[JobView], Side]
    walltime: Callable[[JobView], float]
    levels: Callable[[Ints], list[int] | None]
    order: Sequence[int]
    reserve: Callable[[], Sequence[Reservation]]
    explainer: Explainer


class Reasons(Mapping[JobId, PendingReason]):
    """The reason of every job that waits; worked out once for all that share it."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self._known: dict[tuple[int, int | None, int], PendingReason] = {}
        self._kept_rooms: dict[tuple[int, int], Room] = {}
        self._lacking: dict[int, PendingReason | None] = {}  # by shape; None: it would fit into what is free

    def __getitem__(self, job: JobId) -> PendingReason:
        known = self.__dict__.get("_everything")
        return known[job] if known is not None else self._reason(self._slots[job])

    def __iter__(self) -> Iterator[JobId]:
        return iter(self._everything)

    def __len__(self) -> int:
        return len(self._slots)

    def __repr__(self) -> str:
        return repr(dict(self))

    @cached_property
    def _everything(self) -> dict[JobId, PendingReason]:
        """All reasons; those of jobs with the same shape and level are the same."""
        waiting = self._waiting
        slots = np.fromiter(self._slots.values(), np.int64, len(self._slots))
        levels = waiting.levels(slots) if not waiting.limited and not waiting.stopped else None
        if levels is None:
            return {job: self._reason(slot) for job, slot in self._slots.items()}
        code = waiting.shape_of[slots] * (max(levels, default=0) + 1) + np.array(levels, np.int64)
        _, first, number = np.unique(code, return_index=True, return_inverse=True)
        reasons = [self._reason(slot) for slot in slots[first].tolist()]
        return dict(zip(self._slots, map(reasons.__getitem__, number.tolist()), strict=True))

    @cached_property
    def _numbers(self) -> list[int]:
        numbers: list[int] = self._waiting.shape_of.tolist()
        return numbers

    @cached_property
    def _slots(self) -> dict[JobId, int]:
        waiting = self._waiting
        return {
            job.id: slot
            for slot, job in enumerate(waiting.jobs)
            if job is not None and slot not in waiting.done
        }

    def _reason(self, slot: int) -> PendingReason:
        waiting = self._waiting
        job = waiting.jobs[slot]
        assert job is not None
        if job.queue in waiting.stopped:
            return PendingReason(ReasonCode.QUEUE_STOPPED, f"queue {job.queue} is stopped")
        if slot in waiting.limited:
            return waiting.limited[slot]
        number = self._numbers[slot]
        lacking = self._lacking.get(number, _UNKNOWN)
        if lacking is _UNKNOWN:
            shape = waiting.shapes[number]
            fits = waiting.explainer.fits_now(shape)
            lacking = self._lacking[number] = None if fits else waiting.explainer.lacking(shape)
        if lacking is not None:
            return lacking
        waiting.reserve()
        level, side = waiting.level(job), waiting.side(job)
        key = (number, level, id(side))
        if key not in self._known:
            self._known[key] = self._overtaken(waiting.shapes[number], level, side)
        return self._known[key]

    def _overtaken(self, shape: Shape, level: int | None, side: Side) -> PendingReason:
        """For a shape that would fit into what is free."""
        waiting = self._waiting
        usable = waiting.explainer.usable(shape)
        if not fits(shape, waiting.explainer.free, usable & side.open):
            names = waiting.explainer.names(usable & ~side.open)
            needs = words.needs(shape.request, shape.kinds, free=True)
            text = f"needs {needs}; kept for a reservation or for maintenance now: {names}"
            return PendingReason(ReasonCode.WINDOW, text, waiting.explainer.facts(shape))
        for upto in range(1, (level or 0) + 1):
            room = side.horizon.room(upto)
            if not fits(shape, room, usable & side.open):
                return self._kept(shape, side.horizon, upto)
        if not waiting.heads:
            return PendingReason(
                ReasonCode.BEHIND, "enough was started in this cycle; it is looked at again at once"
            )
        head = waiting.jobs[waiting.heads[0]]
        assert head is not None
        behind = words.needs(head.request, waiting.shapes[int(waiting.shape_of[waiting.heads[0]])].kinds)
        return PendingReason(
            ReasonCode.BEHIND, f"behind {head.id}, which needs {behind}", {"job": str(head.id)}
        )

    def _kept(self, shape: Shape, horizon: Horizon, level: int) -> PendingReason:
        """For a shape that only the room kept from ``level`` on keeps waiting."""
        explainer = self._waiting.explainer
        block, usable = horizon.holder(level), explainer.usable(shape)
        unit, column = ("GPU", "gpus") if shape.gpus else ("CPU", "cpus")
        free = int(getattr(explainer.free, column)[usable].sum())
        if (id(horizon), level) not in self._kept_rooms:
            self._kept_rooms[id(horizon), level] = horizon.kept(level)
        kept = getattr(self._kept_rooms[id(horizon), level], column)
        reserved = int(np.maximum(kept, 0)[usable].sum())
        text = (
            f"needs {words.needs(shape.request, shape.kinds, free=True)}; {words.counted(free, unit)} free, "
            f"{reserved} reserved for {block.holder} at {clock(block.starts)}, and it would not end before"
        )
        facts = explainer.facts(shape) | {"reserved": reserved, "holder": block.holder, "at": block.starts}
        return PendingReason(ReasonCode.WINDOW if block.window else ReasonCode.RESERVED, text, facts)


def clock(at: float) -> str:
    """``2026-11-27 14:05 UTC``."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _first(mask: Mask) -> list[int]:
    """The first rows of a mask, as many as a sentence lists."""
    first: list[int] = np.flatnonzero(mask)[: words.LISTED].tolist()
    return first
