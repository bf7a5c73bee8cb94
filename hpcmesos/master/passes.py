"""When the scheduler runs, and over how much of the queue."""

from __future__ import annotations

from hpcmesos.gang.schedule import schedule
from hpcmesos.gang.snapshot import Policy
from hpcmesos.master import cycle
from hpcmesos.master.effects import Desk
from hpcmesos.master.reasons import Reasons
from hpcmesos.queue.records import StartRecord

FULL_PASS = 5.0
"""Seconds between passes over the whole queue."""


class Passes:
    """Runs passes; ``again``: the last one stopped before the end of what could start."""

    def __init__(self, desk: Desk, reasons: Reasons) -> None:
        self.again = False
        self._desk = desk
        self._reasons = reasons
        self._policy = Policy()
        self._stale = True  # something has changed since the last pass over the whole queue
        self._passed = float("-inf")

    def wanted(self) -> bool:
        """Whether something changed that a pass may make use of."""
        return bool(self._desk.cluster.pending) and (self._desk.cluster.changed or self.again)

    def full_due(self) -> bool:
        """Whether jobs behind the front of the queue have not been looked at for a while."""
        return self._stale and self._desk.alarms.clock() - self._passed >= FULL_PASS

    def decide(self, limit: int | None) -> list[StartRecord]:
        """What starts now; ``limit``: only so many jobs from the front of the queue are looked at."""
        cluster = self._desk.cluster
        if limit is not None and not self.wanted():
            return []
        whole = limit is None or len(cluster.pending) <= limit
        self._stale = not whole
        if whole:
            self._passed = self._desk.alarms.clock()
        cluster.changed = self.again = False
        snapshot = cycle.snapshot(cluster, limit)
        plan = schedule(snapshot, self._policy, self._desk.now.timestamp())
        self._reasons.take(plan, whole)
        self.again = bool(plan.starts) and not whole
        return [cycle.start_record(start, cluster.jobs[cycle.job_key(start.job)]) for start in plan.starts]
