"""What is due later, by the monotonic clock."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from datetime import UTC, datetime


class Alarms:
    """Calls to make at a time; ``clock`` is any clock that never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def wall(self, offset: float) -> datetime:
        """This clock plus ``offset`` as a time of day."""
        return datetime.fromtimestamp(self.clock() + offset, UTC)

    def set(self, delay: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.clock() + delay, next(self._order), call))

    def next_delay(self, longest: float) -> float:
        """Seconds until something is due, at most ``longest``."""
        if not self._heap:
            return longest
        return min(longest, max(0.0, self._heap[0][0] - self.clock()))

    def due(self) -> list[Callable[[], None]]:
        """Takes the calls that are due, the earliest first."""
        now, calls = self.clock(), []
        while self._heap and self._heap[0][0] <= now:
            calls.append(heapq.heappop(self._heap)[2])
        return calls

    def clear(self) -> None:
        self._heap.clear()
