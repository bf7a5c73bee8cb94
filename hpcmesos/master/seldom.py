"""Warnings that every request repeats while something is out of order."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from math import inf

_EVERY = 60.0
_MOST = 256
"""Different warnings that are remembered."""


class Seldom:
    """Warns of the same thing at once, and then once a minute with how often it was so since. For any thread."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()
        self._said: dict[str, tuple[float, int]] = {}  # when, and how often it was passed over since

    def warn(self, what: str, about: str = "") -> None:
        """``what`` is the matter; ``about``: with what it was met this time, of which there are many."""
        now = self._clock()
        with self._lock:
            at, passed = self._said.get(what, (-inf, 0))
            if now - at < _EVERY:
                self._said[what] = at, passed + 1
                return
            if len(self._said) >= _MOST:
                self._said.clear()
            self._said[what] = now, 0
        again = f" ({passed} times more in the last {now - at:.0f} s)" if passed else ""
        self._log.warning("%s%s%s", f"{about}: " if about else "", what, again)
