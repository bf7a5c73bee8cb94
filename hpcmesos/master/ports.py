"""Ports that are granted with gangs: each once on a host, whichever of its nodes has it."""

from __future__ import annotations

import random
from collections.abc import Iterable

FIRST, LAST = 20000, 29999  # below what kernels give to those who do not choose a port


class Ports:
    """What is granted on each host. ``host`` is whatever nodes with one port space have in common.

    Grants go round, so that one that turned out to be taken by somebody else is not tried again at once; they begin
    anywhere, for another cluster on the same hosts may begin too.
    """

    def __init__(self, begin: int | None = None) -> None:
        self._granted: dict[str, set[int]] = {}
        self._next = random.randint(FIRST, LAST) if begin is None else begin

    def grant(self, host: str, count: int) -> tuple[int, ...]:
        """``count`` ports that nobody has there; none at all when so many are not left."""
        granted = self._granted.setdefault(host, set())
        if count > LAST - FIRST + 1 - len(granted):
            return ()
        found: list[int] = []
        while len(found) < count:
            if self._next not in granted:
                found.append(self._next)
            self._next = FIRST if self._next >= LAST else self._next + 1
        granted.update(found)
        return tuple(found)

    def hold(self, host: str, ports: Iterable[int]) -> None:
        """Counts these as granted."""
        self._granted.setdefault(host, set()).update(ports)

    def free(self, host: str, ports: Iterable[int]) -> None:
        """They may be granted again."""
        self._granted.get(host, set()).difference_update(ports)
