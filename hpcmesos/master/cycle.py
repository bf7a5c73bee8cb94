"""Rows to a snapshot, a plan to starts: where queue and gang meet. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from hpcmesos.gang import frameworks
from hpcmesos.gang.snapshot import GpuView, JobView, NodeView, Snapshot, Start
from hpcmesos.model import GpuState, GpuUuid, JobId, NodeName, Request
from hpcmesos.queue.records import AttemptKey, JobKey, JobRecord, ShareRecord, StartRecord

if TYPE_CHECKING:
    from hpcmesos.master.cluster import Cluster, Node

QUICK = 500
"""Jobs from the front of the queue that a pass on an event looks at; a full pass looks at all."""


def job_view(job: JobRecord) -> JobView:
    """A waiting job as the scheduler sees it."""
    queued = job.queued_at or job.created_at
    return JobView(
        JobId(job.seq, job.server, job.index),
        job.request,
        job.priority,
        queued.timestamp(),
        job.queue,
        frozenset(NodeName(name) for name in job.excluded),
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
    )


def snapshot(cluster: Cluster, limit: int | None) -> Snapshot:
    """What one decision depends on; ``limit``: only so many jobs from the front of the queue."""
    return Snapshot(
        tuple(_views(cluster.nodes.values())),
        tuple(_candidates(cluster, limit)),
        cluster.stopped_queues(),
    )


def _views(nodes: Iterable[Node]) -> Iterable[NodeView]:
    for node in nodes:
        if node.view is None:
            node.view = node_view(node)
        yield node.view


def _candidates(cluster: Cluster, limit: int | None) -> Iterable[JobView]:
    left = len(cluster.pending) if limit is None else limit
    for key in cluster.pending.keys():  # noqa: SIM118
        if key in cluster.blocked:
            continue
        if left <= 0:
            return
        left -= 1
        yield cluster.pending.view(key)


def ports_needed(start: Start, request: Request) -> tuple[int, ...]:
    """How many ports each member is granted: the framework's; else one to meet at, where there are several ranks."""
    members = start.members
    if request.framework:
        shares = [frameworks.Share(member.node, member.slots, member.gpus) for member in members]
        return frameworks.ports_needed(frameworks.parse(request.framework), shares)
    return (int(sum(member.slots for member in members) > 1), *(0 for _ in members[1:]))


def start_record(start: Start, job: JobRecord, ports: Sequence[tuple[int, ...]]) -> StartRecord:
    """A decided start as rows; the attempt's number is the next one. ``ports``: what each member is granted."""
    key = AttemptKey(job.seq, job.index, job.attempt + 1)
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
    return StartRecord(attempt=key, shares=shares, payload={"attempt": key.number, "nodes": nodes})


def job_key(job: JobId) -> JobKey:
    return JobKey(job.seq, job.index)
