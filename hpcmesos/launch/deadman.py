"""The control clock of a node: attempts of queues with ``silence=fence:T`` end when no leader was heard for T seconds.

The leader gives the node up T seconds and a margin after it heard it last, and may then run such a job elsewhere: what
runs here has to be gone by then, with or without an agent. All other attempts wait for a leader as long as it takes.

What counts is not when a word of a leader is read, which may have lain in a buffer for long, but when the node sent
what the leader is known to have heard: that is never later than the leader's own last word of this node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from hpcmesos.launch.attempt import Attempt
from hpcmesos.launch.clock import boottime
from hpcmesos.launch.order import Order

_LOOK = 1.0
"""Seconds between two looks at the clock."""


class DeadMan:
    """``attempts``: those that this node holds now; ``clock``: seconds, suspension included."""

    def __init__(
        self, node: str, attempts: Callable[[], Iterable[Attempt]], clock: Callable[[], float] = boottime
    ) -> None:
        self._node = node
        self._attempts = attempts
        self._clock = clock
        self._heard = clock()

    def contact(self, at: float) -> None:
        """A leader has heard what this node's agent sent at ``at`` (by this clock)."""
        self._heard = max(self._heard, min(at, self._clock()))

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_LOOK)

    def look(self) -> None:
        """Ends the attempts whose limit has passed."""
        silence = self._clock() - self._heard
        for attempt in list(self._attempts()):
            limit = attempt.spec.get("silence")
            if limit is not None and silence > limit and attempt.phase in ("preparing", "ready", "running"):
                text = f"no leader was heard for {limit:g} s"
                attempt.end(Order.lost(self._node, text, attempt.spec["kill_delay"]))
