"""When the scheduler runs, and over how much of the queue."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping

from hpcmesos.gang.policy import Backfill, Policy
from hpcmesos.gang.schedule import schedule
from hpcmesos.gang.snapshot import Start
from hpcmesos.master import cycle
from hpcmesos.master.effects import Desk
from hpcmesos.master.reasons import Reasons
from hpcmesos.model import JobId
from hpcmesos.queue.records import StartRecord

log = logging.getLogger(__name__)

FULL_PASS = 5.0
"""Seconds between passes over the whole queue, while there is something new."""

_RARELY = 60.0
"""The same while there is nothing new but the time."""

_STARTS = 1000
"""At most so many gangs start in one pass: a transaction stays short."""

POLICY = Policy(order="priority", backfill=Backfill.EASY, max_starts=_STARTS)
"""As shipped: by priority, then first come, first served; with EASY backfill."""

_REST = 4.0
"""Times as long as the last such pass took that the next one waits: events come first on a slow machine."""


class Passes:
    """Runs passes; ``again``: the last one stopped before the end of what could start."""

    def __init__(self, desk: Desk, reasons: Reasons) -> None:
        self.again = False
        self._desk = desk
        self._reasons = reasons
        self._policy = POLICY
        self._stale = True  # something has changed since the last pass over the whole queue
        self._took = 0.0  # seconds, the last one
        self._passed = desk.alarms.clock()  # a new leader lets the front of the queue start first

    def wanted(self) -> bool:
        """Whether something changed that a pass may make use of."""
        return bool(self._desk.cluster.pending) and (self._desk.cluster.changed or self.again)

    def full_due(self) -> bool:
        """Whether jobs behind the front of the queue have not been looked at for a while."""
        since = self._desk.alarms.clock() - self._passed
        due = self._stale or (since >= _RARELY and bool(self._desk.cluster.pending))
        return due and since >= max(FULL_PASS, _REST * self._took)

    def decide(self, *, whole: bool) -> list[StartRecord]:
        """What starts now; ``whole`` False: only the front of a long queue is looked at, if anything has changed.

        What a pass over the front starts, one over the whole queue would start, too: those at the front come first.
        """
        cluster = self._desk.cluster
        if not whole and not self.wanted():
            return []
        cluster.changed = self.again = False
        began = self._desk.alarms.clock()
        now = self._desk.now.timestamp()
        snapshot, seen_all = cycle.snapshot(cluster, self._policy, now, whole=whole)
        plan = schedule(snapshot, self._policy, now)
        finished = seen_all and len(plan.starts) < self._policy.max_starts
        self._stale = not finished
        if seen_all:
            self._passed = self._desk.alarms.clock()
            self._took = self._passed - began
        self._reasons.take(plan, complete=seen_all)
        self.again = bool(plan.starts) and not finished
        indexes = self._indexes(plan.starts)
        records = [self._record(start, indexes) for start in plan.starts]
        return [record for record in records if record is not None]

    def _indexes(self, starts: Iterable[Start]) -> dict[JobId, Iterator[int]]:
        """Of each array in the plan, the indexes that start next."""
        found: dict[JobId, Iterator[int]] = {}
        for job in {start.job for start in starts if start.job.array}:
            record = self._desk.cluster.jobs[cycle.job_key(job)]
            if record.array_spec is not None:
                found[job] = record.array_spec.members(record.todo or ())
        return found

    def _record(self, start: Start, indexes: Mapping[JobId, Iterator[int]]) -> StartRecord | None:
        """The start with its ports; None when a host has not so many left: the job waits on."""
        cluster = self._desk.cluster
        job = cluster.jobs[cycle.job_key(start.job)]
        hosts = [cluster.nodes[member.node].host for member in start.members]
        needed = cycle.ports_needed(start, job.request)
        ports = [cluster.ports.grant(host, count) for host, count in zip(hosts, needed, strict=True)]
        if [len(granted) for granted in ports] == list(needed):
            index = next(indexes[start.job]) if start.job.array else None
            return cycle.start_record(start, job, ports, index)
        for host, granted in zip(hosts, ports, strict=True):
            cluster.ports.free(host, granted)
        log.warning("no ports left for %s on %s", start.job, ", ".join(m.node for m in start.members))
        return None
