"""qrun: a job that an operator starts now, whatever stands before it in the queue.

It needs room, as every job does: GPUs are never shared. Order, limits, holds, times, dependencies, reservations and a
stopped queue do not count.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from hpcmesos.gang.policy import Policy, Preempt
from hpcmesos.gang.schedule import schedule
from hpcmesos.gang.snapshot import Snapshot, Start
from hpcmesos.master import cycle
from hpcmesos.master.cluster import WAITING_STATES
from hpcmesos.master.effects import Desk
from hpcmesos.model import JobState
from hpcmesos.queue.records import InboxRow, JobKey, JobRecord

REFUSED = "Not Running: "
"""How the comment of a job begins that could not be started; the reason follows."""


class Runs:
    """Belongs to the planner's thread."""

    def __init__(self, desk: Desk, policy: Policy) -> None:
        self._desk = desk
        self._policy = replace(policy, preempt=Preempt.NEVER)
        self._wanted: list[tuple[JobKey, tuple[str, ...]]] = []

    def __bool__(self) -> bool:
        return bool(self._wanted)

    def on_wish(self, job: JobRecord, row: InboxRow) -> None:
        """A job that fits is made ready, and starts in this transaction or the next; else its comment tells why not."""
        nodes = tuple(str(name) for name in row.payload.get("nodes") or ())
        if job.state not in WAITING_STATES or job.array_spec is not None:
            self._refuse(job, f"invalid state for job - {job.state.name}", row.user)
            return
        _, reason = self._plan(job, nodes)
        if reason:
            self._refuse(job, reason, row.user)
            return
        payload = {"user": row.user, **({"nodes": list(nodes)} if nodes else {})}
        now = self._desk.now
        ready = {} if job.state is JobState.QUEUED else {"holds": "", "queued_at": now}
        self._desk.move(job, JobState.QUEUED, "run by hand", payload, comment="", **ready)
        self._wanted.append((job.key, nodes))

    def take(self) -> Start | None:
        """The next one that still fits."""
        while self._wanted:
            key, nodes = self._wanted.pop(0)
            job = self._desk.cluster.jobs.get(key)
            if job is None or job.state is not JobState.QUEUED:
                continue
            start, reason = self._plan(job, nodes)
            if start:
                return start
            self._desk.alarms.set(0.0, partial(self._refuse_later, key, reason))
        return None

    def _plan(self, job: JobRecord, nodes: tuple[str, ...]) -> tuple[Start | None, str]:
        """Where the job would run, or why it cannot."""
        cluster, now = self._desk.cluster, self._desk.now.timestamp()
        if job.key in cluster.blocked:
            return None, "its last attempt is not over on all nodes"
        view = replace(cycle.job_view(job), count=1)
        if nodes:  # who names them knows why
            view = replace(view, excluded=frozenset())
        known = [node for name, node in cluster.nodes.items() if not nodes or name in nodes]
        plan = schedule(
            Snapshot([node.view or cycle.node_view(node) for node in known], [view]), self._policy, now
        )
        if plan.starts:
            return plan.starts[0], ""
        return None, plan.reasons[job.id].text

    def _refuse(self, job: JobRecord, reason: str, user: str = "") -> None:
        payload = {"reason": reason, **({"user": user} if user else {})}
        self._desk.move(job, job.state, "not run", payload, comment=f"{REFUSED}{reason}"[:1000])

    def _refuse_later(self, key: JobKey, reason: str) -> None:
        if job := self._desk.cluster.jobs.get(key):
            self._refuse(job, reason)
