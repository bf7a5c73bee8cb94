"""When the scheduler runs, and over how much of the queue."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from math import inf

from hpcmesos.gang.policy import SHIPPED, Preempt
from hpcmesos.gang.schedule import schedule
from hpcmesos.gang.snapshot import Preemption, Start
from hpcmesos.master import cycle, reservations
from hpcmesos.master.effects import Desk
from hpcmesos.master.gangs import Gangs
from hpcmesos.master.plugins import Plugins
from hpcmesos.master.reasons import Reasons
from hpcmesos.master.runs import Runs
from hpcmesos.model import JobId
from hpcmesos.queue.records import StartRecord

log = logging.getLogger(__name__)

FULL_PASS = 5.0
"""Seconds between passes over the whole queue, while there is something new."""

_RARELY = 60.0
"""The same while there is nothing new but the time."""

_STARTS = 1000
"""At most so many gangs start in one pass: a transaction stays short."""

POLICY = replace(SHIPPED, preempt=Preempt.LEVEL, max_starts=_STARTS)
"""As shipped; jobs of queues of a higher level preempt those of lower ones: where queues have levels at all."""

_REST = 4.0
"""Times as long as the last such pass took that the next one waits: events come first on a slow machine."""


class Passes:
    """Runs passes; ``again``: the last one stopped before the end of what could start."""

    def __init__(self, desk: Desk, gangs: Gangs, reasons: Reasons, runs: Runs, plugins: Plugins) -> None:
        self._runs = runs
        self.again = False
        self._desk = desk
        self._gangs = gangs
        self._reasons = reasons
        self._plugins = plugins
        self._policy = POLICY
        self._window = inf  # when the next reservation begins or ends
        self._stale = True  # something has changed since the last pass over the whole queue
        self._took = 0.0  # seconds, the last one
        self._passed = desk.alarms.clock()  # a new leader lets the front of the queue start first

    def wanted(self) -> bool:
        """Whether something changed that a pass may make use of, or a reservation begins or ends."""
        if self._runs:
            return True
        new = self._desk.cluster.changed or self.again or self._desk.now.timestamp() >= self._window
        return bool(self._desk.cluster.pending) and new

    def full_due(self) -> bool:
        """Whether jobs behind the front of the queue have not been looked at for a while."""
        since = self._desk.alarms.clock() - self._passed
        due = self._stale or (since >= _RARELY and bool(self._desk.cluster.pending))
        return due and since >= max(FULL_PASS, _REST * self._took)

    def decide(self, *, whole: bool) -> list[StartRecord]:
        """What starts now; ``whole`` False: only the front of a long queue is looked at, if anything has changed.

        What a pass over the front starts, one over the whole queue would start, too: those at the front come first.
        """
        if start := self._runs.take():  # alone: what else may start depends on it
            self.again = True
            record = self._record(start, {})
            return [record] if record else []
        cluster = self._desk.cluster
        if not whole and not self.wanted():
            return []
        cluster.changed = self.again = False
        began = self._desk.alarms.clock()
        now = self._desk.now.timestamp()
        self._window = reservations.next_change(cluster.reservations, now) or inf
        snapshot, seen_all = cycle.snapshot(cluster, self._policy, now, self._plugins.told, whole=whole)
        self._plugins.ask(snapshot, self._policy, now)
        plan = schedule(snapshot, self._policy, now)
        finished = seen_all and len(plan.starts) < self._policy.max_starts
        self._stale = not finished
        if seen_all:
            self._passed = self._desk.alarms.clock()
            self._took = self._passed - began
        self._reasons.take(plan, complete=seen_all)
        if plan.preemptions:
            self._desk.alarms.set(0.0, partial(self._preempt, plan.preemptions))
        self.again = bool(plan.starts) and not finished
        indexes = self._indexes(plan.starts)
        records = [self._record(start, indexes) for start in plan.starts]
        return [record for record in records if record is not None]

    def _preempt(self, preemptions: Iterable[Preemption]) -> None:
        """Tells whole gangs to go; those for whom they go start when they are gone."""
        for preemption in preemptions:
            for victim in preemption.victims:
                attempt = self._desk.cluster.current(cycle.job_key(victim))
                if attempt is not None:
                    self._gangs.preempt(attempt, str(preemption.job))

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
