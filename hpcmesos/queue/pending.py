"""What a transaction leaves for later, since gangs that start in it may change the same rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class Pending:
    """What came free on nodes, and ends of arrays' elements, not written yet.

    Where elements follow one another what comes free is taken at once, and the node's row need not change; an array's
    row changes once for those that end and those that begin. A row that changes at every turn costs each look at it
    more for as long as anybody's transaction keeps what it was.
    """

    def __init__(self) -> None:
        self._freed: dict[str, tuple[int, int]] = {}  # CPUs and memory by node
        self._ended: dict[int, tuple[int, int]] = {}  # with exit status 0, and otherwise, by seq of an array

    def free(self, node: str, cpus: int, mem: int) -> None:
        """``mem``: bytes."""
        before = self._freed.get(node, (0, 0))
        self._freed[node] = before[0] + cpus, before[1] + mem

    def tally(self, counts: Mapping[int, tuple[int, int]]) -> None:
        """Elements that ended: with exit status 0, and otherwise, by ``seq``."""
        for seq, (good, bad) in counts.items():
            before = self._ended.get(seq, (0, 0))
            self._ended[seq] = before[0] + good, before[1] + bad

    def freed(self) -> list[dict[str, Any]]:
        """Rows of node, cpus and mem."""
        return [{"node": name, "cpus": cpus, "mem": mem} for name, (cpus, mem) in self._freed.items()]

    def ended(self) -> list[dict[str, Any]]:
        """Rows of seq, good and bad."""
        return [{"seq": seq, **self.ended_of(seq)} for seq in self._ended]

    def ended_of(self, seq: int) -> dict[str, int]:
        """``good`` and ``bad`` of an array; zeros: it has none."""
        good, bad = self._ended.get(seq, (0, 0))
        return {"good": good, "bad": bad}

    def begun(self, seqs: Iterable[int]) -> None:
        """Gangs have started, elements of these arrays among them: the arrays' ends and what came free are written."""
        self._freed.clear()
        for seq in seqs:
            self._ended.pop(seq, None)

    def clear(self) -> None:
        """All is written."""
        self._freed.clear()
        self._ended.clear()
