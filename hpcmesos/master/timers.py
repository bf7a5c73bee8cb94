"""Housekeeping by the clock: history, its partitions, old keys. A thread of the leader, beside the planner."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from hpcmesos.config import MasterSettings
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.schedules import fire_due

log = logging.getLogger(__name__)

_LOOK = 5.0  # seconds between two looks at the rules
_SWEEP = 500  # jobs a transaction: short enough not to hold the planner up
RULES: Mapping[str, str] = {"sweep": "* * * * *", "partitions": "17 3 * * *", "keys": "27 * * * *"}
"""Rules that every cluster has: name and crontab line (UTC)."""


class Timers:
    """Runs what is due; every due time once, whoever leads."""

    def __init__(self, store: LeaderStore, settings: MasterSettings) -> None:
        self._store = store
        self._settings = settings
        self._actions: Mapping[str, Callable[[datetime], None]] = {
            "sweep": self._sweep,
            "partitions": self._partitions,
            "keys": self._keys,
        }

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set. Raises what ends leadership."""
        with self._store.transaction() as transaction:
            for name, cron in RULES.items():
                transaction.put_schedule(name, cron, "UTC")
            now = transaction.now
        self._partitions(now)
        while not stop.wait(_LOOK):
            self.look()

    def look(self) -> list[str]:
        """Does what is due now; answers which rules fired."""
        with self._store.transaction() as transaction:
            fired = fire_due(transaction)
        for rule in fired:
            if action := self._actions.get(rule.name):
                action(rule.due)
            else:
                log.warning("a rule without an action name=%s", rule.name)
        return [rule.name for rule in fired]

    def _sweep(self, due: datetime) -> None:
        keep = timedelta(seconds=self._settings.keep_completed)
        while self._store.sweep(due, keep, _SWEEP) == _SWEEP:
            pass

    def _partitions(self, due: datetime) -> None:
        self._store.make_partitions(due)
        self._store.drop_partitions(due - timedelta(days=self._settings.keep_history_days))

    def _keys(self, due: datetime) -> None:
        with self._store.transaction() as transaction:
            transaction.purge_keys()
