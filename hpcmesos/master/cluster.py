"""The leader's picture of queue and cluster. PostgreSQL is the truth; this is what decisions are made from.

Touched by the planner's thread only. Changes nothing in the database and decides nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from msgspec import structs

from hpcmesos import wire
from hpcmesos.gang.predict import History
from hpcmesos.gang.snapshot import NodeView, QueueView
from hpcmesos.master import cycle
from hpcmesos.master.holdings import Holdings
from hpcmesos.master.idleness import Watch
from hpcmesos.master.ports import Ports
from hpcmesos.master.usage import Usage
from hpcmesos.master.waiting import Waiting
from hpcmesos.model import AttemptId, Cause, GpuState, JobId, JobState
from hpcmesos.queue import arrays, documents
from hpcmesos.queue.opening import is_open, next_opening
from hpcmesos.queue.records import (
    AttemptKey,
    Ending,
    GpuRecord,
    JobKey,
    JobRecord,
    LeaderState,
    NodeRecord,
    QueueRecord,
    ShareRecord,
)

WAITING_STATES = frozenset({JobState.QUEUED, JobState.HELD, JobState.WAITING})
HOLDING_STATES = frozenset({JobState.RUNNING, JobState.EXITING})
FINAL = frozenset({Cause.DELETED, Cause.GPU_IDLE})
"""Causes for which members were told to end, and the job does not run again, whatever comes."""


class Phase(StrEnum):
    """Where an attempt stands, as far as this leader knows."""

    UNSURE = "unsure"  # begun under an earlier leader; its head has not told yet
    PREPARING = "preparing"
    STARTING = "starting"  # GO was sent
    RUNNING = "running"
    OVER = "over"  # ended in the database; some nodes still hold their share


@dataclass(slots=True)
class Attempt:
    """An attempt of which at least one share is not released. ``nodes``: all its members, head first."""

    key: AttemptKey
    name: str
    nodes: tuple[str, ...]
    shares: dict[str, ShareRecord]
    phase: Phase
    placed: tuple[ShareRecord, ...] = ()  # as it began
    ready: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)  # members that denied it while it was UNSURE
    released: float = 0.0  # by the leader's clock, when a node gave its share back last
    ending: Ending | None = None  # as the database has it
    end: wire.End | None = None  # what members were told, for those that were away
    silence: int | None = None  # s without a leader after which its nodes end it; None: never
    started_at: float | None = None
    spec: dict[str, Any] | None = None  # until it runs, to send PREPARE again
    account: tuple[str, str] = ("", "")  # project and user whose use it is
    hold: str = ""  # letters of the holds with which its job waits again
    untold: list[wire.Signal | wire.Alter] = field(
        default_factory=list
    )  # what its head hears once its script runs
    begun: float = 0.0  # epoch seconds since which it holds its shares
    billing: Mapping[str, Any] = field(default_factory=dict)  # what accounting wants of the submission
    uses: dict[str, Mapping[str, float]] = field(default_factory=dict)  # by node, see wire.GpuFigures
    watch: Watch | None = None  # of idle GPUs; None: its queue has never minded

    @property
    def head(self) -> str:
        return self.nodes[0]

    @property
    def culprit(self) -> str | None:
        """The node for whose sake its members were told to end."""
        return self.ending.culprit if self.ending else None

    @property
    def preempted_for(self) -> str:
        """The job for which it has to go; empty: for none."""
        return self.ending.preempted_for if self.ending else ""

    @property
    def final(self) -> Cause | None:
        """DELETED or GPU_IDLE, if its members were told to end for it: its job does not run again, whatever comes."""
        cause = Cause(self.end.cause) if self.end is not None else None
        return cause if cause in FINAL else None

    @property
    def deleted(self) -> bool:
        """Whether its members were told to end because a user wants it."""
        return self.end is not None and self.end.cause == Cause.DELETED


@dataclass(slots=True)
class Node:
    """A node; ``record`` without GPUs and used counters, which live here. ``link`` None: its agent is not linked."""

    record: NodeRecord
    gpus: dict[str, GpuRecord]
    cpus_used: int
    mem_used: int
    link: int | None = None
    away_since: float = 0.0  # by the leader's clock, while there is no link
    words: dict[str, GpuState] = field(default_factory=dict)  # what the node itself said last of each GPU
    view: NodeView | None = None  # cached; None: has changed
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # of its GPUs, as told last

    @property
    def host(self) -> str:
        """The same for nodes that share one kernel, and so its ports."""
        return self.record.boot_id or self.record.address

    @property
    def usable(self) -> bool:
        return self.link is not None and not self.record.offline


class Arrays:
    """Of each array, its elements that have a row and are not complete."""

    def __init__(self) -> None:
        self.live: defaultdict[int, set[JobKey]] = defaultdict(set)
        self.running: Counter[int] = Counter()  # what counts against the slot limit: elements in R and E
        self.queued: Counter[int] = Counter()  # elements that wait to run again

    def take_in(self, job: JobRecord) -> None:
        if job.index is not None:
            self.live[job.seq].add(job.key)
            self._count(job, 1)

    def forget(self, job: JobRecord) -> None:
        """That record of an element holds no longer."""
        if job.index is not None:
            self.live[job.seq].discard(job.key)
            self._count(job, -1)
            if not self.live[job.seq]:
                del self.live[job.seq], self.running[job.seq], self.queued[job.seq]

    def _count(self, job: JobRecord, change: int) -> None:
        if job.state in HOLDING_STATES:
            self.running[job.seq] += change
        elif job.state is JobState.QUEUED:
            self.queued[job.seq] += change


def may_start(job: JobRecord) -> bool:
    """Whether the job, or elements of the array, wait for nothing but room."""
    if job.array_spec is None:
        return job.state is JobState.QUEUED
    return bool(job.todo) and not job.holds and job.state in (JobState.QUEUED, JobState.RUNNING)


class Cluster:
    """Jobs that are not complete, attempts that hold something, nodes, queues."""

    def __init__(self, state: LeaderState, server: str) -> None:
        self.server = server
        self.jobs: dict[JobKey, JobRecord] = {}
        self.pending = Waiting()
        self.holdings = Holdings()
        self.arrays = Arrays()
        self.dependents: dict[int, set[JobKey]] = {}
        self.attempts: dict[str, Attempt] = {}
        self.nodes: dict[str, Node] = {}
        self.queues: dict[str, QueueRecord] = {}
        self.named_queues: set[str] = set()  # by jobs; one of them may be no more
        self.attributes: dict[str, str] = {}  # of the server, as qmgr sets them
        self.reservations: Mapping[str, Any] = {}  # see queue/documents.py, as for shares
        self.shares: Mapping[str, Any] = {}
        self.gpu_words: Mapping[str, Mapping[str, str]] = {}
        self.usage = Usage()
        self.history = History()  # of what this leader has seen end
        self.preempted: set[JobKey] = (
            set()
        )  # jobs that were; they preempt nobody while they wait to run again
        self.blocked: set[JobKey] = set()  # an earlier attempt's parts may still run somewhere
        self.blocked_until: dict[JobKey, float] = {}  # by the leader's clock
        self.strange: set[JobKey] = (
            set()
        )  # of those, jobs of which a node holds an attempt that we do not know
        self.changed = True  # something that scheduling looks at
        self.ports = Ports()
        for job in state.jobs:
            self.put(job)
        self.take_in(state)

    def take_in(self, state: LeaderState) -> None:
        """Everything but the jobs, which are there already; once."""
        self.queues = {queue.name: queue for queue in state.queues}
        for queue in state.queues:
            if self.level(queue.name):
                self._wait_all(queue.name)
        self.attributes = dict(state.server)
        self.reservations = state.documents.get(documents.RESERVATIONS) or {}
        self.shares = state.documents.get(documents.SHARES) or {}
        self.gpu_words = state.documents.get(documents.GPU_WORDS) or {}
        self.usage = Usage(state.documents.get(documents.USAGE), state.used)
        for record in state.nodes:
            gpus = {gpu.uuid: gpu for gpu in record.gpus}
            self.nodes[record.name] = Node(
                structs.replace(record, gpus=()), gpus, record.cpus_used, record.mem_used
            )
        self._load_attempts(state.shares, {a.key: a.ending for a in state.attempts})
        for attempt in state.attempts:
            if attempt.cause is Cause.PREEMPTED and attempt.ending and attempt.ending.preempted_for:
                self.preempted.add(attempt.key.job)
                if may_start(job := self.jobs[attempt.key.job]):
                    self._wait(job)

    def _load_attempts(
        self, shares: Iterable[ShareRecord], endings: Mapping[AttemptKey, Ending | None]
    ) -> None:
        gangs: dict[AttemptKey, list[ShareRecord]] = {}
        for share in shares:
            gangs.setdefault(share.attempt, []).append(share)
        for key, parts in gangs.items():
            parts.sort(key=lambda share: share.position)
            for share in parts:
                self.ports.hold(self.nodes[share.node].host, share.ports)
            job = self.jobs.get(key.job)
            live = job is not None and job.state in (JobState.RUNNING, JobState.EXITING)
            live = live and job is not None and job.attempt == key.number
            self.attempts[self.name(key)] = Attempt(
                key,
                self.name(key),
                tuple(share.node for share in parts),
                {share.node: share for share in parts},
                Phase.UNSURE if live else Phase.OVER,
                tuple(parts),
                ending=endings.get(key),
                silence=job.request.silence if job else None,
                account=_account(job),
                begun=_begun(job),
            )
            self.holdings.begin(self.attempts[self.name(key)])
            if not live:
                self.blocked.add(key.job)

    # --- names

    def job_id(self, key: JobKey) -> JobId:
        job = self.jobs.get(key)
        return job.id if job else JobId(key.seq, self.server, key.index)

    def name(self, key: AttemptKey) -> str:
        """How the wire calls an attempt."""
        return str(AttemptId(self.job_id(key.job), key.number))

    # --- jobs

    def put(self, job: JobRecord) -> None:
        """Takes in a job as it is now; a complete one is forgotten."""
        if job.state is JobState.COMPLETE:
            self.forget(job.key)
            return
        self._forget(job.key)
        self.jobs[job.key] = job
        self.named_queues.add(job.queue)
        self.arrays.take_in(job)
        for dependency in job.dependencies:
            self.dependents.setdefault(dependency.seq, set()).add(job.key)
        if job.state in HOLDING_STATES:
            self.holdings.moved.add(job.key)
        if may_start(job):
            self._wait(job)

    def _wait(self, job: JobRecord) -> None:
        limit = job.array_spec is not None and job.array_spec.limit is not None
        view = cycle.job_view(
            job,
            self.level(job.queue),
            may_preempt=job.key not in self.preempted,
            predicted=self.history.predict(job.owner, (job.request.gpus, job.request.cpus)),
        )
        self.pending.put(job.key, view, special=limit or job.index is not None)
        self.changed = True

    def forget(self, key: JobKey) -> None:
        """As put() of a complete job."""
        self._forget(key)
        self.blocked.discard(key)
        self.preempted.discard(key)

    def _forget(self, key: JobKey) -> None:
        old = self.jobs.pop(key, None)
        self.pending.remove(key)
        if old:
            self.arrays.forget(old)
        for dependency in old.dependencies if old else ():
            waiting = self.dependents.get(dependency.seq, set())
            waiting.discard(key)
            if not waiting:
                self.dependents.pop(dependency.seq, None)

    def tally(self, seq: int, succeeded: int, failed: int) -> None:
        """So many more elements of an array are complete."""
        parent = self.jobs[JobKey(seq)]
        # Nothing that scheduling looks at: the rest of the picture stays.
        self.jobs[parent.key] = structs.replace(
            parent, succeeded=(parent.succeeded or 0) + succeeded, failed=(parent.failed or 0) + failed
        )

    def take_elements(self, seq: int, indexes: list[int], now: datetime) -> JobRecord:
        """Elements of an array get rows; answers the parent, without them."""
        parent = self.jobs[JobKey(seq)]
        left = arrays.subtract(parent.todo or (), arrays.of(indexes))
        begun = structs.replace(
            parent, state=JobState.RUNNING, todo=left, started_at=parent.started_at or now, modified_at=now
        )
        self.put(begun)
        return begun

    def current(self, key: JobKey) -> Attempt | None:
        """The attempt that the job runs in now."""
        job = self.jobs.get(key)
        attempt = self.attempts.get(self.name(job.attempt_key)) if job else None
        return attempt if attempt and attempt.phase is not Phase.OVER else None

    # --- attempts

    def begin(self, job: JobRecord, shares: tuple[ShareRecord, ...]) -> Attempt:
        """An attempt whose start is committed. ``job``: with the attempt's number."""
        self.put(job)
        attempt = Attempt(
            job.attempt_key,
            self.name(job.attempt_key),
            tuple(share.node for share in shares),
            {share.node: share for share in shares},
            Phase.PREPARING,
            shares,
            silence=job.request.silence,
            account=_account(job),
            begun=_begun(job),
        )
        self.attempts[attempt.name] = attempt
        self.holdings.begin(attempt)
        for share in shares:
            node = self.nodes[share.node]
            node.cpus_used += share.cpus
            node.mem_used += share.mem
            for uuid in share.gpus:
                self.set_gpu(node, uuid, GpuState.ALLOCATED)
            node.view = None
        return attempt

    def release(self, attempt: Attempt, name: str) -> dict[str, GpuState]:
        """A node's part is over; answers what its GPUs become."""
        share = attempt.shares.pop(name)
        node = self.nodes[name]
        node.cpus_used -= share.cpus
        node.mem_used -= share.mem
        self.ports.free(node.host, share.ports)
        states = {uuid: _released(node.words.get(uuid)) for uuid in share.gpus}
        for uuid, state in states.items():
            self.set_gpu(node, uuid, state)
        node.view = None
        self.holdings.moved.add(attempt.key.job)
        self.changed = True
        if not attempt.shares and attempt.phase is Phase.OVER:
            self.drop(attempt)
        return states

    def drop(self, attempt: Attempt) -> None:
        """Forgets an attempt that is over and holds nothing."""
        self.attempts.pop(attempt.name, None)
        if attempt.key.job in self.blocked and not any(
            other.key.job == attempt.key.job for other in self.attempts.values()
        ):
            self.unblock(attempt.key.job)

    def unblock(self, key: JobKey) -> None:
        """The attempts that we know are over; one that we do not know may run for as long as its node says."""
        if key not in self.strange:
            self.blocked.discard(key)
            self.changed = True

    # --- nodes

    def set_gpu(self, node: Node, uuid: str, state: GpuState, note: str | None = None) -> None:
        """``note`` None: as it was. A GPU that the node does not have is passed over."""
        gpu = node.gpus.get(uuid)
        if gpu is not None:
            node.gpus[uuid] = structs.replace(gpu, state=state, note=gpu.note if note is None else note)
            node.view = None
            self.changed = True

    def held(self, node: str) -> dict[str, Attempt]:
        """The GPUs of a node that attempts hold, by UUID."""
        return {
            uuid: attempt
            for attempt in self.attempts.values()
            if node in attempt.shares
            for uuid in attempt.shares[node].gpus
        }

    def put_queue(self, name: str, queue: QueueRecord | None) -> None:
        """Takes in a queue as it is now; None: it is deleted."""
        before = self.level(name)
        if queue is None:
            self.queues.pop(name, None)
            self.named_queues.discard(name)
        else:
            self.queues[name] = queue
        if self.level(name) != before:
            self._wait_all(name)
        self.changed = True

    def level(self, queue: str) -> int:
        """Jobs of queues of a higher level come first, and preempt those of lower ones."""
        known = self.queues.get(queue)
        return int(known.attributes.get("level", "0")) if known else 0

    def _wait_all(self, queue: str) -> None:
        """The waiting jobs of a queue anew: their level has changed."""
        for key in list(self.pending.keys()):
            if self.jobs[key].queue == queue:
                self._wait(self.jobs[key])

    def stopped_queues(self, now: float) -> frozenset[str]:
        """Queues whose jobs do not start (``now``: epoch seconds); all of them while the server's scheduling is off.

        Also those that are no more: a job may come in while its queue is deleted, and nobody's rules hold for it then.
        """
        idle = self.attributes.get("scheduling") == "False"
        when = datetime.fromtimestamp(now).astimezone()
        stopped = {name for name, queue in self.queues.items() if idle or _is_stopped(queue, when)}
        return frozenset(stopped | (self.named_queues - self.queues.keys()))

    def why_stopped(self, name: str, now: float) -> str:
        """Why no job of the queue starts now; empty: they may. Times are those of this host's zone."""
        queue = self.queues.get(name)
        when = datetime.fromtimestamp(now).astimezone()
        if queue is None:
            return f"queue {name} is no more; qmove the job to another one"
        if not _is_stopped(queue, when):
            return ""
        if queue.attributes.get("queue_type") == "Route":
            return f"no destination of route queue {name} takes it now; it is tried again"
        if not queue.started:
            return f"queue {name} is stopped"
        times = queue.attributes["start_times"]
        opens = next_opening(times, when)
        return f"queue {name} starts jobs {times}" + (f", next at {opens:%a %H:%M}" if opens else "")

    def queue_views(self) -> dict[str, QueueView]:
        """The queues as the scheduler sees them."""
        return {name: cycle.queue_view(queue) for name, queue in self.queues.items()}


def _account(job: JobRecord | None) -> tuple[str, str]:
    return (job.project, job.owner) if job else ("", "")


def _begun(job: JobRecord | None) -> float:
    return job.started_at.timestamp() if job and job.started_at else 0.0


def _released(word: GpuState | None) -> GpuState:
    """A GPU after its share's end: what its node last said, and not clean when it has said nothing about it."""
    if word in (GpuState.FREE, GpuState.QUARANTINED, GpuState.LOST):
        return word
    return GpuState.CLEANING


def _is_stopped(queue: QueueRecord, when: datetime) -> bool:
    """Whether no job of the queue starts at that time."""
    if not queue.started or queue.attributes.get("queue_type") == "Route":
        return True
    times = queue.attributes.get("start_times")
    return bool(times) and not is_open(str(times), when)
