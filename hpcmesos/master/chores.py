"""What the leader does again and again beside its events: writing down who has used how much."""

from __future__ import annotations

from hpcmesos.master.effects import Desk
from hpcmesos.queue import documents

INTERVAL = 30.0
"""Seconds between two writes of the use of all accounts; the next leader works out what ran since the last one."""


class Chores:
    """Belongs to the planner; ``begin`` after each load of its picture."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def begin(self) -> None:
        self._desk.alarms.set(0.0, self._count_use)

    def _count_use(self) -> None:
        cluster = self._desk.cluster
        cluster.usage.accrue(cluster.attempts.values(), self._desk.now.timestamp())
        self._desk.effects.documents[documents.USAGE] = cluster.usage.document()
        self._desk.alarms.set(INTERVAL, self._count_use)
