"""The clock of a script: how long it has run, not counting the time it stood still, and what is due by that clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Walltime:
    """Of one script. Times are seconds."""

    def __init__(self, over: Callable[[], None], warn: Callable[[], None]) -> None:
        """``over``: the limit is reached; ``warn``: it soon will be."""
        self._over = over
        self._warn = warn
        self._since = 0.0  # monotonic; 0: the script has not begun
        self._still: float | None = None  # since when it stands still, monotonic
        self._ended = 0.0  # monotonic; 0: it has not
        self._warned = False
        self._timers: list[asyncio.TimerHandle] = []

    def begin(self) -> None:
        self._since = time.monotonic()

    def end(self) -> None:
        """The clock stops."""
        self._ended = time.monotonic()

    @property
    def elapsed(self) -> float:
        return (self._ended or time.monotonic()) - self._since

    @property
    def still(self) -> bool:
        return self._still is not None

    def stand_still(self, still: bool) -> None:
        """Time that a job stands still does not count."""
        if still and self._still is None:
            self._still = time.monotonic()
        elif not still and self._still is not None:
            self._since += time.monotonic() - self._still
            self._still = None

    def watch(self, limit: float | None, ahead: float | None) -> None:
        """Another limit from the start on, None: none; ``ahead``: how long before it the job is warned, None: never."""
        self.leave()
        if limit is None or not self._since or self.still:
            return
        left = limit - self.elapsed
        loop = asyncio.get_running_loop()
        self._timers.append(loop.call_later(max(0.0, left), self._over))
        if ahead is not None:
            left -= ahead
            if left > 0 or not self._warned:  # also a second time, when the end was put off
                self._timers.append(loop.call_later(max(0.0, left), self._warned_now))

    def leave(self) -> None:
        """Nothing is due any more."""
        while self._timers:
            self._timers.pop().cancel()

    def _warned_now(self) -> None:
        self._warned = True
        self._warn()
