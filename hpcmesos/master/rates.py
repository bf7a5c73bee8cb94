"""How fast each user may submit: a bucket of tokens for each, so that a loop gone wild costs its owner alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from hpcmesos.errors import TooFast

_MOST = 10_000  # users that are remembered; those whose buckets are full need not be


@dataclass(slots=True)
class _Bucket:
    jobs: float
    at: float


class Rates:
    """Thread-safe. ``rate``: jobs a second, 0: no limit; ``burst``: jobs at once after a rest."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._lock = threading.Lock()
        self._buckets: dict[str, _Bucket] = {}

    def take(self, user: str, jobs: int) -> None:
        """Counts a submission of so many jobs.

        Raises:
            TooFast: the user has to wait first; nothing is counted.
        """
        if self._rate <= 0:
            return
        with self._lock:
            now = self._clock()
            bucket = self._buckets.get(user) or _Bucket(self._burst, now)
            have = min(self._burst, bucket.jobs + (now - bucket.at) * self._rate)
            wanted = min(jobs, self._burst)  # a call larger than the burst passes alone
            if have < wanted:
                wait = (wanted - have) / self._rate
                raise TooFast(
                    f"more than {self._rate:g} jobs a second from {user}; try again in {max(1.0, wait):.0f} s"
                )
            self._buckets[user] = _Bucket(have - jobs, now)
            if len(self._buckets) > _MOST:
                self._forget(now)

    def _forget(self, now: float) -> None:
        """Those who have rested long enough start afresh as well."""
        full = [
            user
            for user, bucket in self._buckets.items()
            if bucket.jobs + (now - bucket.at) * self._rate >= self._burst
        ]
        for user in full:
            del self._buckets[user]
