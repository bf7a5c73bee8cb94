"""Nodes, and what running jobs hold of them until when, as the scheduler's tables; kept between passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcmesos.gang.snapshot import Member, NodeView, RunningView
from hpcmesos.gang.tables import NodeTable, RunningTable
from hpcmesos.master import cycle
from hpcmesos.model import GpuUuid, NodeName
from hpcmesos.queue.records import JobKey, ShareRecord

if TYPE_CHECKING:
    from hpcmesos.master.cluster import Attempt, Cluster


class Holdings:
    """``moved``: jobs of which something has changed that the tables show."""

    def __init__(self) -> None:
        self.nodes = NodeTable(())
        self.running = RunningTable(self.nodes)
        self.moved: set[JobKey] = set()
        self._attempts: dict[JobKey, set[str]] = {}

    def begin(self, attempt: Attempt) -> None:
        """An attempt holds something from now on."""
        self._attempts.setdefault(attempt.key.job, set()).add(attempt.name)
        self.moved.add(attempt.key.job)

    def follow(self, cluster: Cluster, now: float, assumed_walltime: float) -> None:
        """Brings the tables up to the picture."""
        changed = []
        for node in cluster.nodes.values():
            if node.view is None:
                node.view = cycle.node_view(node)
                changed.append(node.view)
        if changed:
            self._put_nodes(changed, cluster)
        for key in self.moved:
            view = self._running(cluster, key, now, assumed_walltime)
            if view is None:
                self.running.remove(cluster.job_id(key))
            else:
                self.running.put(view)
        self.moved.clear()

    def _put_nodes(self, changed: list[NodeView], cluster: Cluster) -> None:
        self.nodes.put(changed)
        if len(self.nodes) > len(cluster.nodes):
            self.nodes.remove([view.name for view in self.nodes if view.name not in cluster.nodes])

    def _running(
        self, cluster: Cluster, key: JobKey, now: float, assumed_walltime: float
    ) -> RunningView | None:
        """What attempts of a job hold together; None: nothing any more."""
        held = []
        for name in list(self._attempts.get(key, ())):
            attempt = cluster.attempts.get(name)
            if attempt is None or not attempt.shares:
                self._attempts[key].discard(name)
            else:
                held.append(attempt)
        if not held:
            self._attempts.pop(key, None)
            return None
        members = tuple(_member(share) for attempt in held for share in attempt.shares.values())
        job = cluster.jobs.get(key)
        if job is None or job.started_at is None or cluster.current(key) is None:
            return RunningView(cluster.job_id(key), members, now, now)  # over; what is left comes free soon
        started = job.started_at.timestamp()
        walltime = assumed_walltime if job.request.walltime is None else job.request.walltime
        return RunningView(
            job.id,
            members,
            started,
            started + walltime,
            job.queue,
            job.owner,
            job.project,
            job.egroup,
            preemptible=job.rerunable,
            leaving=any(attempt.end is not None or attempt.preempted_for for attempt in held),
            priority=job.priority,
            queued_at=(job.queued_at or job.created_at).timestamp(),
            request=job.request,
        )


def _member(share: ShareRecord) -> Member:
    gpus = tuple(GpuUuid(uuid) for uuid in share.gpus)
    return Member(NodeName(share.node), share.cpus, share.mem, share.slots, gpus)
