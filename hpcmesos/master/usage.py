"""Fair share as the leader keeps it: who has used how much, halved with every half-life, and whose share is what.

Use is GPU-seconds; of jobs without GPUs, CPU-seconds / 8. It counts from the start of an attempt until its nodes have
released it, whatever its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import TYPE_CHECKING, Any

from hpcmesos.gang.fair import decayed
from hpcmesos.gang.snapshot import Account

if TYPE_CHECKING:
    from hpcmesos.master.cluster import Attempt
    from hpcmesos.queue.records import ShareRecord

CPUS_A_GPU = 8
_NOTHING = 1.0  # GPU-seconds: less is forgotten


class Usage:
    """``at``: until when everything that runs has been counted."""

    def __init__(
        self, document: Mapping[str, Any] | None = None, ended: Iterable[tuple[str, str, float]] = ()
    ) -> None:
        """``document``: as it was written. ``ended``: (project, user, use) of what ended since then, or ever."""
        self.at = float(document["at"]) if document else -inf
        self._used: dict[tuple[str, str], float] = {}
        for project, user, used in [*(document["accounts"] if document else ()), *ended]:
            self._used[project, user] = self._used.get((project, user), 0.0) + float(used)

    def charge(self, project: str, user: str, rate: float, since: float, until: float) -> None:
        """Use at ``rate`` (GPUs) that is not counted yet: from ``since``, or ``at``, until ``until``."""
        seconds = until - max(since, self.at)
        if seconds > 0 and rate:
            key = (project, user)
            self._used[key] = self._used.get(key, 0.0) + rate * seconds

    def release(self, attempt: Attempt, share: ShareRecord, now: float) -> None:
        """A node's part of an attempt is over at ``now`` (epoch seconds)."""
        self.charge(*attempt.account, rate(share), attempt.begun, now)

    def accrue(self, attempts: Iterable[Attempt], now: float) -> None:
        """Counts what runs until now; what was used before weighs less by now."""
        if now <= self.at:
            return
        for attempt in attempts:
            held = sum(rate(share) for share in attempt.shares.values())
            self.charge(*attempt.account, held, attempt.begun, now)
        passed = 0.0 if self.at == -inf else now - self.at
        self._used = {
            key: left for key, used in self._used.items() if (left := decayed(used, passed)) >= _NOTHING
        }
        self.at = now

    def document(self) -> dict[str, Any]:
        """As it is kept in the database."""
        return {
            "at": self.at,
            "accounts": [[*key, round(used, 3)] for key, used in sorted(self._used.items())],
        }

    def accounts(self, shares: Mapping[str, Any], waiting: Iterable[tuple[str, str]]) -> tuple[Account, ...]:
        """All who have used something or wait."""
        return accounts({**dict.fromkeys(waiting, 0.0), **self._used}, shares)


def accounts(used: Mapping[tuple[str, str], float], shares: Mapping[str, Any]) -> tuple[Account, ...]:
    """With their shares, by (project, user). ``shares``: see queue/documents.py."""
    of_users = shares.get("users") or {}
    return tuple(
        Account(project, user, usage, float(of_users.get(f"{project}/{user}", 1.0)))
        for (project, user), usage in sorted(used.items())
    )


def rate(share: ShareRecord) -> float:
    """What a part of a job uses a second."""
    return float(len(share.gpus)) or share.cpus / CPUS_A_GPU
