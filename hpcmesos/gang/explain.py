"""Why a job waits, in a true and specific sentence.

The reason is the first that holds of: no nodes, never fits, the fitting nodes are excluded, the fitting nodes are
down, not enough is free, behind another job.
"""

from __future__ import annotations

import numpy as np

from hpcmesos.gang import words
from hpcmesos.gang.feasible import (
    Mask,
    Refusal,
    Room,
    arrange,
    can_ever_fit,
    kinds_of,
    short_kind,
)
from hpcmesos.gang.snapshot import JobView
from hpcmesos.model import Chunk, PendingReason, Placement, ReasonCode, Request

_NO_WAY = "no way was found to place them together"


class Explainer:
    """Answers for one cluster: ``installed`` is all it has, ``free`` what is free of it (shared with the ledger)."""

    def __init__(self, installed: Room, free: Room) -> None:
        self.installed = installed
        self.free = free
        self.up = free.mask(lambda node: node.up)
        self._included: dict[frozenset[str], Mask] = {frozenset(): np.ones(len(free.nodes), np.bool_)}

    def included(self, job: JobView) -> Mask:
        """The rows that are not excluded for the job."""
        names = frozenset[str](job.excluded)
        if names not in self._included:
            self._included[names] = self.free.mask(lambda node: node.name not in names)
        return self._included[names]

    def usable(self, job: JobView) -> Mask:
        """The rows that are up and not excluded for the job."""
        return self.up & self.included(job)

    def could_start_on_empty(self, job: JobView) -> bool:
        """True when only what other jobs hold can be in the job's way."""
        return arrange(job.request, self.installed, self.usable(job)).lots is not None

    def waiting(self, job: JobView, blocker: JobView | None) -> PendingReason:
        """Why the job waits; ``blocker`` is the job that holds back all behind it, None when there is none."""
        if not self.could_start_on_empty(job):
            return self._cannot(job)
        if blocker is not None and arrange(job.request, self.free, self.usable(job)).lots is not None:
            return PendingReason(ReasonCode.BEHIND, f"behind {blocker.id}, which {_needs(blocker.request)}")
        return PendingReason(ReasonCode.INSUFFICIENT, self._lacking(job))

    def _cannot(self, job: JobView) -> PendingReason:
        """For a job that could not start even if the nodes that it may use now were empty."""
        if not self.free.nodes:
            return PendingReason(ReasonCode.NO_NODES, f"{_needs(job.request)}; no node is known yet")
        never = can_ever_fit(job.request, self.installed.nodes)
        if never is not None:
            return never
        included = self.included(job)
        if arrange(job.request, self.installed, included).lots is None and not bool(included.all()):
            names = words.listed([self.installed.nodes[row].name for row in np.flatnonzero(~included)])
            text = f"{_needs(job.request)}; excluded for this job after failures: {names}; the others do not suffice"
            return PendingReason(ReasonCode.EXCLUDED, text)
        down = np.zeros(len(self.free.nodes), np.bool_)
        for kind in kinds_of(job.request):
            down |= self.installed.fits(kind, included & ~self.up)
        if not down.any():
            text = f"{_needs(job.request)}; {_NO_WAY}"
            return PendingReason(ReasonCode.INSUFFICIENT, text)
        names = words.listed([self.installed.nodes[row].name for row in np.flatnonzero(down)])
        text = f"{_needs(job.request)}; too few such nodes are up, down: {names}"
        return PendingReason(ReasonCode.NODES_DOWN, text)

    def _lacking(self, job: JobView) -> str:
        request, usable = job.request, self.usable(job)
        short = short_kind(request, self.free, usable)
        if short is None:
            needs = words.needs(request, kinds_of(request), free=True)
            sure = arrange(request, self.free, usable).certain
            return f"needs {needs}; each is free now, but {'not all at once' if sure else _NO_WAY}"
        kind, number = short
        text = f"needs {words.need(kind, request.placement, free=True)}; "
        fitting = np.flatnonzero(self.free.fits(kind, usable)).tolist()
        shown = words.listed([self._free_on(row, kind) for row in fitting])
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
        rows = np.flatnonzero(self.installed.fits(kind, usable)).tolist()
        main = free.gpus if kind.gpus else free.cpus
        return max(
            rows, key=lambda row: (min(main[row], kind.gpus or kind.cpus), free.cpus[row]), default=None
        )

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


def queue_stopped(queue: str) -> PendingReason:
    """For jobs of a queue that starts none."""
    return PendingReason(ReasonCode.QUEUE_STOPPED, f"queue {queue} is stopped")


def _needs(request: Request) -> str:
    return f"needs {words.needs(request, kinds_of(request))}"
