"""What the scheduler sees and what it answers, as values.

Frozen, without behaviour: the live leader and the simulator build a :class:`Snapshot`, ``schedule()`` answers
with a :class:`Plan`. Units: whole CPUs, whole GPUs, bytes, epoch seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hpcmesos.model import GpuUuid, JobId, NodeName, PendingReason, Request


@dataclass(frozen=True, slots=True)
class GpuView:
    """One installed GPU; ``free`` False covers allocated, cleaning, quarantined and lost."""

    uuid: GpuUuid
    index: int  # on its node, from 0
    free: bool
    numa: int | None = None  # None: unknown


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node: what is installed and what is free of it."""

    name: NodeName
    up: bool  # False: down, offline or silent
    cpus: int
    cpus_free: int
    mem: int  # bytes
    mem_free: int
    gpus: tuple[GpuView, ...]
    features: frozenset[str] = frozenset()
    links: tuple[tuple[int, ...], ...] = ()  # [i][j]: gpus[i] to gpus[j], higher better; (): unknown
    switch: str = ""  # label of the leaf switch; "": unknown


@dataclass(frozen=True, slots=True)
class JobView:
    """One waiting job that may start now, but for room; or the next elements of an array, which are all alike."""

    id: JobId
    request: Request
    priority: int  # higher first
    queued_at: float  # epoch seconds since which it may start
    queue: str
    excluded: frozenset[NodeName] = frozenset()  # nodes that this job's earlier attempts failed on
    count: int = 1  # of an array: so many of its elements may start now, its own slot limit considered


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that one decision depends on; the order within the tuples means nothing."""

    nodes: tuple[NodeView, ...]
    pending: tuple[JobView, ...]
    stopped_queues: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Policy:
    """The site's rules.

    ``strict`` True is first come, first served: no job starts while one before it in the order waits for room
    that running jobs hold. A job that could not start even if all up nodes were empty (too big, nodes down or excluded,
    queue stopped) holds nobody back. False lets every job start that fits now; big jobs may then starve.
    """

    strict: bool = True


@dataclass(frozen=True, slots=True)
class Member:
    """One job's whole share of one node."""

    node: NodeName
    cpus: int
    mem: int  # bytes
    slots: int  # ranks: lines in PBS_NODEFILE
    gpus: tuple[GpuUuid, ...]  # in the order of their index on the node


@dataclass(frozen=True, slots=True)
class Start:
    """One job to start, whole; ``members[0]`` is the head. An array (its parent's id) may have several, one for each
    element; whoever carries out the plan gives them the lowest indexes, in the order of the plan.
    """

    job: JobId
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer: every pending job has as many ``starts`` (in order of decision) as its count, or a reason why not."""

    starts: tuple[Start, ...]
    reasons: Mapping[JobId, PendingReason]
