"""How long a job will likely run, from its user's own history.

Used for the order alone. What a job was promised rests on walltimes, so a wrong prediction breaks no promise.
Rule: the average run time of the user's last two jobs that ended (Tsafrir, Etsion, Feitelson, TPDS 2007), with the same
number of GPUs and CPUs if there are such, else of any.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

_LAST = 2


class History:
    """What jobs of each user have taken, in the order in which they ended."""

    def __init__(self) -> None:
        self._runs: dict[Hashable, deque[float]] = {}

    def ended(self, user: str, size: tuple[int, int], runtime: float) -> None:
        """``size``: GPUs and CPUs. Jobs of nobody in particular ("") teach nothing."""
        if user:
            for key in (user, (user, size)):
                self._runs.setdefault(key, deque(maxlen=_LAST)).append(runtime)

    def predict(self, user: str, size: tuple[int, int]) -> float | None:
        """Seconds; None: nothing is known of the user."""
        runs = self._runs.get((user, size)) or self._runs.get(user)
        return sum(runs) / len(runs) if runs else None
