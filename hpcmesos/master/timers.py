"""Housekeeping by the clock: history, its partitions, old keys. A thread of the leader, beside the planner."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from hpcmesos.config import MasterSettings
from hpcmesos.errors import DatabaseUnavailable
from hpcmesos.queue.history import Place
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.schedules import fire_due

log = logging.getLogger(__name__)

_LOOK = 5.0  # seconds between two looks at the rules
_AGAIN = 60.0  # seconds until an action that the database did not let through is tried again
_SETTLED = timedelta(
    days=3
)  # after which a day's use is written down; an attempt that still runs then is not lost
_SWEEP = 500  # jobs a transaction: short enough not to hold the planner up
RULES: Mapping[str, str] = {"sweep": "* * * * *", "partitions": "17 3 * * *", "keys": "27 * * * *"}
"""Rules that every cluster has: name and crontab line (UTC)."""


class Timers:
    """Runs what is due; every due time once, whoever leads. What cannot be done now is done later.

    No action is worth the leadership: a backup that holds locks for an hour must not leave the cluster without a
    leader. Whether the database answers at all is for the lease to find out.
    """

    def __init__(
        self, store: LeaderStore, settings: MasterSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._stop = threading.Event()
        self._actions: Mapping[str, Callable[[datetime], None]] = {
            "sweep": self._sweep,
            "partitions": self._partitions,
            "keys": self._keys,
        }
        self._owed: dict[
            str, tuple[datetime, float]
        ] = {}  # rule: when it was due, when to try (on our clock)

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set. Raises what ends leadership."""
        self._stop = stop
        self.begin()
        while not stop.wait(_LOOK):
            self.look()

    def begin(self) -> None:
        """Writes the rules down; this leader looks at the partitions at once."""
        with self._store.transaction() as transaction:
            for name, rule in RULES.items():
                transaction.put_schedule(name, rule, "UTC")
            self._owed["partitions"] = transaction.now, self._clock()
        self._act()

    def look(self) -> list[str]:
        """Does what is due now; answers which rules' actions were done."""
        try:
            with self._store.transaction() as transaction:
                fired = fire_due(transaction)
        except DatabaseUnavailable as error:
            log.warning("the time rules are looked at later: %s", error)
            return []
        self._owed |= {rule.name: (rule.due, self._clock()) for rule in fired}
        return self._act()

    def _act(self) -> list[str]:
        done = []
        for name, (due, when) in list(self._owed.items()):
            if when > self._clock():
                continue
            if name not in self._actions:
                log.warning("a rule without an action name=%s", name)
                del self._owed[name]
                continue
            try:
                self._actions[name](due)
            except DatabaseUnavailable as error:
                log.warning("put off rule=%s: %s", name, error)
                self._owed[name] = due, self._clock() + _AGAIN
                continue
            del self._owed[name]
            done.append(name)
        return done

    def _sweep(self, due: datetime) -> None:
        """What some queue keeps in qstat's sight for longer stays where qstat finds it."""
        given = [self._store.server(), *(queue.attributes for queue in self._store.queues())]
        times = [float(one["keep_completed"]) for one in given if "keep_completed" in one]
        keep = timedelta(seconds=max(self._settings.keep_completed, *times, 0.0))
        place = Place()
        while self._store.sweep(due, keep, _SWEEP, place) == _SWEEP:
            pass

    def _partitions(self, due: datetime) -> None:
        self._store.make_partitions(due)
        oldest = due - timedelta(days=self._settings.keep_history_days)
        with self._store.transaction() as transaction:
            transaction.purge_runs(oldest)
        if self._store.write_usage(max(oldest, due - _SETTLED).date(), self._stop.is_set):
            self._store.drop_partitions(oldest)  # else the next leader does, once all use is written down

    def _keys(self, due: datetime) -> None:
        with self._store.transaction() as transaction:
            transaction.purge_keys()
