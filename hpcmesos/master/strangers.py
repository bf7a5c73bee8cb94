"""Attempts that nodes hold and the database does not know, after a restored backup say: nothing is started beside them.

Nobody ends them: whether they were meant to run, an operator decides.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection

from hpcmesos.master.cluster import WAITING_STATES
from hpcmesos.master.effects import Desk
from hpcmesos.model import AttemptId
from hpcmesos.queue.records import JobKey

log = logging.getLogger(__name__)


class Strangers:
    """The living ones, and on which nodes they are. Lives as long as its leader's picture."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._nodes: dict[str, set[str]] = {}  # by the attempt's name
        self._told: set[str] = set()
        self._holding: Counter[JobKey] = Counter()  # how many of them keep a job from starting

    def ended(self, node: str, name: str) -> None:
        """This node's part of it is over."""
        self._tell(node, name, "ended")
        self.gone(node, name)

    def lives(self, node: str, name: str, phase: str) -> None:
        """No new job gets the number of its job, and that job, if there is one, does not start, nor does anything of
        its array.
        """
        self._tell(node, name, phase)
        if name not in self._nodes:
            self._holding.update(_jobs(name))
        self._nodes.setdefault(name, set()).add(node)
        seq = AttemptId.parse(name).job.seq
        self._desk.effects.past_id = max(self._desk.effects.past_id, seq)
        self._desk.cluster.strange |= _jobs(name)
        self._desk.cluster.blocked |= _jobs(name)

    def reported(self, node: str, names: Collection[str]) -> None:
        """What a node that has just linked holds: of the others it has no part any more."""
        for name in [name for name, nodes in self._nodes.items() if node in nodes and name not in names]:
            self.gone(node, name)

    def gone(self, node: str, name: str) -> None:
        """The node has no part of it any more, if it had one."""
        nodes = self._nodes.get(name, set())
        nodes.discard(node)
        if name in self._nodes and not nodes:
            del self._nodes[name]
            self._let_go(node, AttemptId.parse(name))

    def _let_go(self, node: str, identity: AttemptId) -> None:
        """Its job may start, under a number that no node has seen."""
        cluster = self._desk.cluster
        key = JobKey(identity.job.seq, identity.job.index)
        job = cluster.jobs.get(key)
        if job is not None and job.state in WAITING_STATES and job.attempt < identity.number:
            told = {"attempt": str(identity), "node": node}
            self._desk.move(job, job.state, "unknown attempt", told, attempt=identity.number)
        self._holding.subtract(_jobs(str(identity)))
        for free in _jobs(str(identity)):
            if self._holding[free]:
                continue
            del self._holding[free]
            cluster.strange.discard(free)
            if not any(attempt.key.job == free for attempt in cluster.attempts.values()):
                cluster.unblock(free)

    def _tell(self, node: str, name: str, phase: str) -> None:
        if name not in self._told:
            self._told.add(name)
            log.error("unknown attempt node=%s attempt=%s phase=%s: left alone", node, name, phase)


def _jobs(name: str) -> set[JobKey]:
    """Of an attempt: its job, and the array of an element, which may wait there without a row."""
    job = AttemptId.parse(name).job
    return {JobKey(job.seq, job.index), JobKey(job.seq)}
