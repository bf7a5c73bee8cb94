"""What the scheduler sees and what it answers, as values.

Frozen, without behaviour: the live leader and the simulator build a :class:`Snapshot`, ``schedule()`` answers
with a :class:`Plan`. Units: whole CPUs, whole GPUs, bytes, epoch seconds.

``Snapshot.nodes``, ``pending`` and ``running`` may be any collections of views. Who schedules often hands in the
tables of ``tables`` instead, which are such collections kept as columns between cycles.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from hpcmesos.model import GpuUuid, JobId, NodeName, PendingReason, Request
from hpcmesos.plugin import JobClass, NodeClass


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
    switch: str = ""  # its place in the switch tree, root first: "core1/row2/leaf7"; "": unknown
    ends_at: float | None = None  # when the node goes away (a foreign allocation's end); None: it stays


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
    user: str = ""
    project: str = ""
    group: str = ""  # the user's, that it is accounted to
    walltime: float | None = None  # seconds; None: the request's, else ``Policy.assumed_walltime``
    remaining: float | None = None  # seconds that it is known to need still; None: its walltime
    predicted: float | None = (
        None  # seconds that it will likely run, by the user's own history; for the order only
    )
    qos: int = 0  # quality of service, higher first
    may_preempt: bool = True  # False of one that was preempted itself: no cascades


@dataclass(frozen=True, slots=True)
class RunningView:
    """One attempt that holds shares of nodes."""

    id: JobId
    members: tuple[Member, ...]
    started_at: float
    ends_at: float | None  # by its walltime, at the latest; None: unknown
    queue: str = ""
    user: str = ""
    project: str = ""
    group: str = ""
    preemptible: bool = True  # False: it may not be run again
    saved_at: float | None = None  # its last checkpoint: work since then is lost with it; None: its start
    leaving: bool = False  # it was told to go: what it holds comes free soon
    priority: int = 0
    queued_at: float = 0.0
    request: Request | None = None  # what it asked for, for limits of plug-ins; None: not known


@dataclass(frozen=True, slots=True)
class QueueView:
    """One queue's rules. ``level``: jobs of a higher one may preempt those of a lower one, if the policy says so."""

    name: str
    started: bool = True
    priority: int = 0
    level: int = 0
    walltime: float | None = None  # of jobs that name none, in seconds


@dataclass(frozen=True, slots=True)
class Window:
    """A time in which nodes are kept: an advance reservation, or maintenance when nobody may use it.

    Jobs of ``users`` and of ``queues`` may run in it; all others neither start in it nor run into it.
    """

    name: str
    starts_at: float
    ends_at: float
    nodes: frozenset[NodeName]
    users: frozenset[str] = frozenset()
    queues: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Limit:
    """At most so much running at once for each user (group, project, queue) of that name, or for the whole server.

    ``scope``: user, group, project, queue or server. ``name`` "*": each one by itself, ``but`` those. ``queue``: only
    what runs in that queue counts; "": all. None: no limit. ``gpu_hours``: GPUs times the hours until their walltimes
    end. Who is of no known group is one by himself, of his own name.
    """

    scope: str
    name: str = "*"
    jobs: int | None = None
    gpus: int | None = None
    cpus: int | None = None
    queue: str = ""
    but: frozenset[str] = frozenset()
    gpu_hours: float | None = None


@dataclass(frozen=True, slots=True)
class Account:
    """Who fair share reckons with: ``usage`` GPU-seconds (CPU-seconds of jobs without GPUs / 8), decayed until now.

    ``project`` "" and ``user`` "" stand for none. ``shares``: the user's part among the users of the project.
    """

    project: str
    user: str
    usage: float
    shares: float = 1.0


@dataclass(frozen=True, slots=True)
class Promise:
    """A job was told that it starts at ``at`` at the latest (under ``Policy.hold_head`` it then stays first).

    ``shares``: the place that was kept for it, as in a Reservation. It is kept on while all that come before the job
    in the order have such a place, too, and until an earlier one is found that is in nobody's way.
    """

    job: JobId
    at: float
    shares: Mapping[NodeName, tuple[int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plugged:
    """What a site's plug-ins last told (``hpcmesos.plugin``); None: there is no such plug-in, or it is at fault.

    A class without an order key comes after all that have one, one without a limit waits until it is told.
    """

    order: Mapping[JobClass, float] | None = None
    rank: Mapping[JobClass, Mapping[NodeClass, float]] | None = None
    limits: Mapping[JobClass, int | None] | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that one decision depends on; the order within the collections means nothing."""

    nodes: Collection[NodeView]
    pending: Collection[JobView]
    stopped_queues: frozenset[str] = frozenset()
    running: Collection[RunningView] = ()
    queues: Mapping[str, QueueView] = field(default_factory=dict)
    windows: tuple[Window, ...] = ()
    limits: tuple[Limit, ...] = ()
    accounts: tuple[Account, ...] = ()
    project_shares: Mapping[str, float] = field(default_factory=dict)
    promises: tuple[Promise, ...] = ()
    plugged: Plugged = Plugged()


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
class Reservation:
    """A waiting job's place in time: from ``at`` on it could run on these shares, if nothing ends late."""

    job: JobId
    at: float
    shares: Mapping[NodeName, tuple[int, int, int]]  # CPUs, bytes, GPUs of each node


@dataclass(frozen=True, slots=True)
class Preemption:
    """Running jobs that have to go, whole, so that ``job`` can start when they are gone. ``lost``: GPU-seconds."""

    job: JobId
    victims: tuple[JobId, ...]
    lost: float


class Outlook(Protocol):
    """What a cycle saw, for those who ask later; unchanged by what happens to the tables meanwhile."""

    def reservations(self) -> tuple[Reservation, ...]:
        """Places in time of the first jobs that wait for room."""
        ...

    def estimates(self, first: int) -> Mapping[JobId, float]:
        """When the first so many waiting jobs start."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer: every pending job has as many ``starts`` (in order of decision) as its count, or a reason why not.

    ``reasons`` are worked out when they are looked at, and so is what ``outlook`` tells.
    """

    starts: tuple[Start, ...]
    reasons: Mapping[JobId, PendingReason]
    preemptions: tuple[Preemption, ...] = ()
    outlook: Outlook | None = field(default=None, compare=False, repr=False)

    @property
    def reservations(self) -> tuple[Reservation, ...]:
        return self.outlook.reservations() if self.outlook else ()

    def estimates(self, first: int = 1000) -> Mapping[JobId, float]:
        """When the first so many of the waiting jobs start (epoch seconds), if all that runs takes its walltime.

        Jobs whose start is not in sight are left out.
        """
        return self.outlook.estimates(first) if self.outlook else {}
