"""Rows to a snapshot, a plan to starts: where queue and gang meet. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hpcmesos.gang import frameworks
from hpcmesos.gang.snapshot import GpuView, JobView, NodeView, Snapshot, Start
from hpcmesos.model import GpuState, GpuUuid, JobId, NodeName, Request
from hpcmesos.queue.records import AttemptKey, JobKey, JobRecord, ShareRecord, StartRecord

if TYPE_CHECKING:
    from hpcmesos.master.cluster import Cluster, Node

QUICK = 500
"""Jobs from the front of the queue that a pass on an event looks at; a full pass looks at all."""

MOST_ELEMENTS = 1000
"""Elements of one array that start in one pass: a transaction stays short."""


def job_view(job: JobRecord) -> JobView:
    """A waiting job as the scheduler sees it; an array's count is found when its turn comes."""
    queued = job.queued_at or job.created_at
    return JobView(
        job.id,
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


def snapshot(cluster: Cluster, limit: int | None) -> tuple[Snapshot, bool]:
    """What one decision depends on, and whether that is the whole queue; ``limit``: only so many jobs, or elements of
    arrays, from the front of the queue.
    """
    jobs, whole = _candidates(cluster, limit)
    return Snapshot(tuple(_views(cluster.nodes.values())), jobs, cluster.stopped_queues()), whole


def _views(nodes: Iterable[Node]) -> Iterable[NodeView]:
    for node in nodes:
        if node.view is None:
            node.view = node_view(node)
        yield node.view


def _candidates(cluster: Cluster, limit: int | None) -> tuple[tuple[JobView, ...], bool]:
    views: list[JobView] = []
    left = limit
    slots = Slots(cluster)
    whole = True
    for key in cluster.pending.keys():  # noqa: SIM118
        if key in cluster.blocked:
            continue
        if left is not None and left <= 0:
            return tuple(views), False
        view = cluster.pending.view(key)
        if view.id.array or key.index is not None:
            wanted = slots.take(key)
            count = min(wanted, MOST_ELEMENTS if left is None else left)
            whole = whole and count == wanted
            if not count:
                continue
            view = replace(view, count=count)
        if left is not None:
            left -= view.count
        views.append(view)
    return tuple(views), whole


class Slots:
    """How many elements of arrays may start in one pass, by the slot limits of the arrays (``-t 0-99%5``).

    An element counts from its start until its attempt is over everywhere. Those that wait to run again come first.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._given: Counter[int] = Counter()  # to elements that have a row
        self._unsure = Counter(key.seq for key in cluster.blocked if key.index is not None)

    def take(self, key: JobKey) -> int:
        """Of an element: 1, or 0; of an array, for the elements that have no row."""
        parent = self._cluster.jobs[JobKey(key.seq)]
        waiting = parent.waiting_elements if key.index is None else 1
        if parent.array_spec is None or parent.array_spec.limit is None:
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
