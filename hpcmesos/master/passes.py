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
"""Seconds between passes over the whole queue."""

_REST = 4.0
"""Times as long as the last such pass took that the next one waits: events come first on a slow machine."""


class Passes:
    """Runs passes; ``again``: the last one stopped before the end of what could start."""

    def __init__(self, desk: Desk, reasons: Reasons) -> None:
        self.again = False
        self._desk = desk
        self._reasons = reasons
        self._policy = Policy(order="priority", backfill=Backfill.NONE)
        self._stale = True  # something has changed since the last pass over the whole queue
        self._took = 0.0  # seconds, the last one
        self._passed = desk.alarms.clock()  # a new leader lets the front of the queue start first

    def wanted(self) -> bool:
        """Whether something changed that a pass may make use of."""
        return bool(self._desk.cluster.pending) and (self._desk.cluster.changed or self.again)

    def full_due(self) -> bool:
        """Whether jobs behind the front of the queue have not been looked at for a while."""
        rest = max(FULL_PASS, _REST * self._took)
        return self._stale and self._desk.alarms.clock() - self._passed >= rest

    def decide(self, limit: int | None) -> list[StartRecord]:
        """What starts now; ``limit``: only so many jobs from the front of the queue are looked at."""
        cluster = self._desk.cluster
        if limit is not None and not self.wanted():
            return []
        cluster.changed = self.again = False
        snapshot, whole = cycle.snapshot(cluster, limit)
        self._stale = not whole
        began = self._desk.alarms.clock()
        plan = schedule(snapshot, self._policy, self._desk.now.timestamp())
        self._reasons.take(plan, whole)
        if whole or limit is None:
            self._passed = self._desk.alarms.clock()
            self._took = self._passed - began
        self.again = bool(plan.starts) and not whole
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
