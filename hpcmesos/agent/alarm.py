"""One alarm of an event loop, wound anew as what is due next changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """Calls ``ring`` when it is time; one call for each ``set`` at most."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._handle: asyncio.Handle | None = None
        self._due = 0.0  # kept here: a handle of uvloop that is due at once does not tell its time

    def set(self, due: float | None) -> None:
        """``due``: on the loop's clock, in seconds; in the past: at once. None: no call.

        An alarm that rings earlier stays: whoever is called too early sets it again, which costs less than to wind it
        anew for each later time.
        """
        if self._handle is not None and due is not None and self._due <= due:
            return
        self.cancel()
        if due is not None:
            self._due, self._handle = due, self._loop.call_at(due, self._on_time)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _on_time(self) -> None:
        self._handle = None
        self._ring()
