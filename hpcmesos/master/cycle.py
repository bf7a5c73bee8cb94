"""Rows to a snapshot, a plan to starts: where queue and gang meet. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from hpcmesos.gang import frameworks
from hpcmesos.gang.order import ranked
from hpcmesos.gang.policy import Policy
from hpcmesos.gang.snapshot import GpuView, JobView, NodeView, Plugged, QueueView, Snapshot, Start
from hpcmesos.gang.tables import JobTable
from hpcmesos.master import limits, reservations
from hpcmesos.model import GpuState, GpuUuid, JobId, NodeName, Request
from hpcmesos.queue.records import AttemptKey, JobKey, JobRecord, QueueRecord, ShareRecord, StartRecord
from hpcmesos.units import parse_duration

if TYPE_CHECKING:
    from hpcmesos.master.cluster import Cluster, Node

LEVEL = 4096
"""Steps of quality of service in a level: more than users' priorities have, so that who preempts also starts."""

_SWITCH = "switch="
_NO_PLUGIN = Plugged()


def job_view(
    job: JobRecord, level: int = 0, *, may_preempt: bool = True, predicted: float | None = None
) -> JobView:
    """A waiting job as the scheduler sees it; of an array, all elements that have no row."""
    queued = job.queued_at or job.created_at
    return JobView(
        job.id,
        job.request,
        job.priority,
        queued.timestamp(),
        job.queue,
        frozenset(NodeName(name) for name in job.excluded),
        count=max(1, job.waiting_elements),
        user=job.owner,
        project=job.project,
        group=job.egroup,
        qos=level * LEVEL,
        may_preempt=may_preempt,
        predicted=predicted,
    )


def queue_view(queue: QueueRecord) -> QueueView:
    """A queue's rules as the scheduler sees them."""
    walltime = queue.attributes.get("resources_default.walltime")
    return QueueView(
        queue.name,
        queue.started,
        queue.priority,
        level=int(queue.attributes.get("level", "0")),
        walltime=None if walltime is None else float(parse_duration(walltime)),
    )


def node_view(node: Node) -> NodeView:
    """A node as the scheduler sees it; GPUs in the order of their index."""
    record = node.record
    gpus = sorted(node.gpus.values(), key=lambda gpu: gpu.index)
    gpus = [gpu for gpu in gpus if gpu.state is not GpuState.LOST]
    links = tuple(gpu.links for gpu in gpus)
    square = all(len(row) == len(gpus) for row in links)
    return NodeView(
        NodeName(record.name),
        node.usable,
        record.cpus,
        max(0, record.cpus - node.cpus_used),
        record.mem,
        max(0, record.mem - node.mem_used),
        tuple(GpuView(GpuUuid(g.uuid), g.index, g.state is GpuState.FREE, g.numa) for g in gpus),
        frozenset(record.features),
        links if square else (),
        switch(record.features),
        None if record.ends_at is None else record.ends_at.timestamp(),
    )


def switch(features: Iterable[str]) -> str:
    """A node's place in the tree of switches, which its features tell: ``switch=core1/leaf7``."""
    return next((word.removeprefix(_SWITCH) for word in sorted(features) if word.startswith(_SWITCH)), "")


def snapshot(
    cluster: Cluster, policy: Policy, now: float, plugged: Plugged = _NO_PLUGIN, *, whole: bool
) -> tuple[Snapshot, bool]:
    """What one decision depends on, and whether that is the whole queue; ``whole`` False: its front may do."""
    cluster.holdings.follow(cluster, now, policy.assumed_walltime)
    _recount(cluster)
    everything = Snapshot(
        cluster.holdings.nodes,
        cluster.pending.table,
        cluster.stopped_queues(now),
        cluster.holdings.running,
        cluster.queue_views(),
        reservations.windows(cluster.reservations, now),
        limits.limits(cluster.queues, cluster.attributes),
        cluster.usage.accounts(cluster.shares, cluster.pending.who()),
        cluster.shares.get("projects") or {},
        plugged=plugged,
    )
    rank = partial(_ranked, everything, policy, now)
    if whole:
        cluster.pending.rank(rank)
        return replace(everything, pending=cluster.pending.table), True
    front = cluster.pending.front(rank)
    return replace(everything, pending=front), front is cluster.pending.table


def ranked_jobs(cluster: Cluster, policy: Policy, now: float, plugged: Plugged = _NO_PLUGIN) -> list[JobId]:
    """All that wait, first to start first."""
    everything, _ = snapshot(cluster, policy, now, plugged, whole=False)
    return _ranked(everything, policy, now, cluster.pending.table)


def _ranked(snapshot: Snapshot, policy: Policy, now: float, table: JobTable) -> list[JobId]:
    slots: list[int] = ranked(snapshot, table, policy.order, policy, now).tolist()
    return [job.id for slot in slots if (job := table.jobs[slot]) is not None]


def _recount(cluster: Cluster) -> None:
    """How much passes see of arrays with slot limits, of elements, and of jobs that may still run somewhere."""
    pending, slots = cluster.pending, Slots(cluster)
    special = pending.special | (cluster.blocked & pending.keys())
    for key in sorted(special, key=lambda key: (key.seq, -1 if key.index is None else key.index)):
        pending.show(key, 0 if key in cluster.blocked else slots.take(key))


class Slots:
    """How many elements of arrays may start in one pass, by the slot limits of the arrays (``-t 0-99%5``).

    An element counts from its start until its attempt is over everywhere. Those that wait to run again come first.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._given: Counter[int] = Counter()  # to elements that have a row
        self._unsure = Counter(key.seq for key in cluster.blocked if key.index is not None)

    def take(self, key: JobKey) -> int:
        """Of an element: 1, or 0; of an array, for the elements that have no row; of any other job 1."""
        parent = self._cluster.jobs[JobKey(key.seq)]
        if parent.array_spec is None:
            return 1
        waiting = parent.waiting_elements if key.index is None else 1
        if parent.array_spec.limit is None:
            return waiting
        arrays = self._cluster.arrays
        used = arrays.running[key.seq] + (
            arrays.queued[key.seq] if key.index is None else self._unsure[key.seq]
        )
        free = max(0, parent.array_spec.limit - used - self._given[key.seq] * (key.index is not None))
        if key.index is not None and free:
            self._given[key.seq] += 1
        return min(waiting, free)


def ports_needed(start: Start, request: Request) -> tuple[int, ...]:
    """How many ports each member is granted: the framework's; else one to meet at, where there are several ranks."""
    members = start.members
    if request.framework:
        shares = [frameworks.Share(member.node, member.slots, member.gpus) for member in members]
        return frameworks.ports_needed(frameworks.parse(request.framework), shares)
    return (int(sum(member.slots for member in members) > 1), *(0 for _ in members[1:]))


def start_record(
    start: Start, job: JobRecord, ports: Sequence[tuple[int, ...]], index: int | None = None
) -> StartRecord:
    """A decided start as rows; the attempt's number is the next one. ``ports``: what each member is granted.
    ``index``: the element to start, when ``job`` is an array.
    """
    key = AttemptKey(job.seq, job.index if index is None else index, job.attempt + 1)
    shares = tuple(
        ShareRecord(
            attempt=key,
            node=member.node,
            position=position,
            cpus=member.cpus,
            mem=member.mem,
            slots=member.slots,
            gpus=tuple(member.gpus),
            ports=granted,
        )
        for position, (member, granted) in enumerate(zip(start.members, ports, strict=True))
    )
    nodes = [member.node for member in start.members]
    payload = {"attempt": key.number, "nodes": nodes}
    return StartRecord(attempt=key, shares=shares, payload=payload, new=index is not None)


def job_key(job: JobId) -> JobKey:
    return JobKey(job.seq, job.index)
