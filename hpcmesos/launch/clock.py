"""The clock of promises between nodes: it goes on while a machine is suspended, as everybody else's does."""

from __future__ import annotations

import time


def boottime() -> float:
    """Seconds since boot, suspension included (CLOCK_BOOTTIME); steps of the time of day do not move it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
