"""What an earlier shepherd left running: outside of its attempts' cgroups, or where there are none."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Container
from contextlib import suppress

from hpcmesos.launch import enclosure, own_log

_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_PAUSE = 60.0
"""Seconds until what could not be known is looked at again: at first, and from then on."""


class Strays:
    """Known by their environment, which the kernel may keep from us: then they are known later.

    ``marker``: as of `enclosure.Trees`. ``attempts``: those of this shepherd; their processes are no strays.
    """

    def __init__(self, marker: str, attempts: Container[str]) -> None:
        self._marker = marker
        self._attempts = attempts
        self._unknown: set[int] | None = None  # None: nobody has looked yet

    async def clear(self) -> dict[int, str]:
        """Kills them; answers what could not be killed, and whose it is."""
        deadline, pause = time.monotonic() + enclosure.UNKILLABLE, 0.01
        while True:
            begun = time.monotonic()
            left = await self._look()
            if not left or begun > deadline:
                return left
            for pid in left:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(max(pause, 5 * (time.monotonic() - begun)))

    async def _look(self) -> dict[int, str]:
        told = await enclosure.environments(enclosure.process_table())
        unknown = {pid for pid, entries in told.items() if entries is None}
        # Who is kept back only later was known before, or is of this shepherd's time.
        self._unknown = unknown if self._unknown is None else self._unknown & unknown
        named = {pid: enclosure.attempt_named(entries or (), self._marker) for pid, entries in told.items()}
        return {pid: name for pid, name in named.items() if name and name not in self._attempts}

    async def watch(self) -> None:
        """Once this shepherd serves: until nothing is unknown any more, as whatever it is may have children."""
        for pause in itertools.chain(_PAUSES, itertools.repeat(_PAUSE)):
            if not self._unknown:
                return
            await asyncio.sleep(pause)
            if found := await self._look():
                words = ", ".join(f"{pid} of {name}" for pid, name in found.items())
                own_log.write(f"left by an earlier shepherd, and killed: {words}")
                await self.clear()
