"""What the leader could not handle is tried once more after a reload of the picture, and then left out.

Agents repeat what is not acknowledged, so a message that always fails would else make the leader reload its picture
again and again. Pure but for the clock.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

log = logging.getLogger(__name__)

TRIES = 2
"""Failures of one and the same thing until it is left out."""

NODE_FAILURES = 10
"""Failures of a node's messages until nothing of it is looked at."""

SENTENCE = 600.0
"""Seconds after which it is tried again."""


class Quarantine:
    """Things are known by the label under which they are logged; ``node``: whose message it was, if one's."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: Counter[str] = Counter()
        self._until: dict[str, float] = {}

    def failed(self, label: str, node: str | None = None) -> None:
        """Notes a failure."""
        self._count(label, TRIES)
        if node is not None:
            self._count(_whole(node), NODE_FAILURES)

    def holds(self, label: str, node: str | None = None) -> bool:
        """Whether this is left out now."""
        return bool(self._until) and (self._held(label) or (node is not None and self._held(_whole(node))))

    def __len__(self) -> int:
        """How many things are left out."""
        return len(self._until)

    def _count(self, name: str, most: int) -> None:
        self._failures[name] += 1
        if self._failures[name] >= most:
            del self._failures[name]
            self._until[name] = self._clock() + SENTENCE
            log.error("left out for %.0f s, for it failed %d times: %s", SENTENCE, most, name)

    def _held(self, name: str) -> bool:
        until = self._until.get(name)
        if until is None:
            return False
        if self._clock() < until:
            return True
        del self._until[name]
        return False


def _whole(node: str) -> str:
    return f"everything of {node}"
