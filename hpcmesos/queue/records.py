"""What the store takes and gives: frozen rows as values. Standard library, msgspec and floor 0 only.

A job is copied at each of its moves, and its key looked up at each turn, so these are structs of msgspec: to copy one
costs a seventh of a data class's.

Units: bytes, seconds, whole CPUs and GPUs; every time is an aware datetime in UTC. ``index`` is the element of an
array; None is the job itself (or the array's parent).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from hpcmesos.model import Cause, GpuState, JobId, JobState, Request, Scope
from hpcmesos.queue.arrays import ArraySpec, Ranges
from hpcmesos.queue.dependencies import Dependency


class JobKey(msgspec.Struct, frozen=True, gc=False):
    """A row of jobs."""

    seq: int
    index: int | None = None


class AttemptKey(msgspec.Struct, frozen=True, gc=False):
    """One try at running a job; ``number`` counts from 1."""

    seq: int
    index: int | None
    number: int

    @property
    def job(self) -> JobKey:
        return JobKey(self.seq, self.index)


class NewJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job to insert; its id is given by the database."""

    name: str
    owner: str
    server: str
    queue: str
    request: Request
    state: JobState = JobState.QUEUED  # Q, H or W
    priority: int = 0
    holds: str = ""  # of u, o, s, d (dependency); empty: none
    not_before: datetime | None = None
    rerunable: bool = True
    dependencies: tuple[Dependency, ...] = ()
    submit_host: str = ""
    project: str = ""  # whose share it uses, beside its owner's; empty: none
    egroup: str = ""  # the group of its owner that it is accounted to; empty: not known
    submission: Mapping[str, Any] = {}  # JSON: paths, environment, argv, umask...
    script: bytes | None = None
    array_spec: ArraySpec | None = None  # None: no array


IDLE, USED_AGAIN = "GPUs idle", "GPUs used again"
"""Kinds of events of a job that runs: it was warned, or is no longer."""


class JobRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A job, an array's parent or an array's element, as stored; an element has the submission of its parent."""

    seq: int
    index: int | None
    server: str
    name: str
    owner: str
    queue: str
    state: JobState
    priority: int
    request: Request
    holds: str
    not_before: datetime | None
    created_at: datetime
    modified_at: datetime
    queued_at: datetime | None  # since when it may start; None: it may not
    started_at: datetime | None  # of the last attempt
    ended_at: datetime | None  # set exactly in state C
    exit_status: int | None  # None: not ended, or never ran
    cause: Cause | None
    comment: str
    attempt: int  # number of the last attempt; 0: none
    charged_attempts: int
    rerunable: bool
    excluded: tuple[str, ...]  # nodes that earlier attempts failed on
    dependencies: tuple[Dependency, ...]
    submit_host: str
    submission: Mapping[str, Any]
    array_spec: ArraySpec | None = None  # of an array's parent, as all that follows
    todo: Ranges | None = None  # elements that wait and have no row; of them the members of array_spec
    deleted: Ranges | None = None  # elements that were deleted before they started, and never get a row
    succeeded: int | None = None  # how many elements are complete with exit status 0
    failed: int | None = None  # how many are complete otherwise, but for those in deleted
    project: str = ""
    egroup: str = ""
    suspended: bool = False  # of a job that runs: its processes stand still

    @property
    def key(self) -> JobKey:
        return JobKey(self.seq, self.index)

    @property
    def id(self) -> JobId:
        """As users see it."""
        return JobId(self.seq, self.server, self.index, array=self.array_spec is not None)

    @property
    def waiting_elements(self) -> int:
        """How many elements of an array's parent have no row yet."""
        return self.array_spec.count(self.todo or ()) if self.array_spec else 0

    @property
    def outcome(self) -> Outcome:
        """What dependents need to know of it as it is now."""
        if self.array_spec is None:
            return Outcome(self.state, self.exit_status)
        size, deleted = self.array_spec.size, self.array_spec.count(self.deleted or ())
        started = size - self.waiting_elements - deleted
        progress = Progress(size, started, self.succeeded or 0, self.failed or 0, deleted)
        return Outcome(self.state, self.exit_status, progress)

    @property
    def attempt_key(self) -> AttemptKey:
        """Key of the last attempt."""
        return AttemptKey(self.seq, self.index, self.attempt)


@dataclass(frozen=True, slots=True)
class ArrayElements:
    """An array's parent, and how many of its elements are in each state that have a row and are not complete."""

    parent: JobRecord
    live: Mapping[JobState, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an attempt is told to end, from the decision until its head has reported; a later leader goes on from here.

    ``at``: epoch seconds from which its members are told; before, a preempted attempt may save its work.
    """

    cause: Cause
    at: float
    kill_delay: float  # s between SIGTERM and SIGKILL
    culprit: str | None = None
    message: str = ""
    preempted_for: str = ""  # the job for which it has to go; empty: for none


class AttemptRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One attempt; everything from ``ended_at`` on is known when its head has reported.

    ``usage``: cput (s), mem (bytes, peak), walltime (s). ``ranks``: {step, rank, node, code, signal, gpu, at} each;
    ``steps``: {step, command, code, first_failed} each, the last being a rank or None. Tails hold at most the last
    64 KiB of a stream.
    """

    key: AttemptKey
    created_at: datetime | None = None  # None when finishing: keep what is stored
    started_at: datetime | None = None  # the script's start as its node saw it
    ended_at: datetime | None = None
    cause: Cause | None = None
    code: int | None = None
    signal: int | None = None
    forced: bool = False  # True: it took SIGKILL
    culprit: str | None = None  # node at fault; several, the likeliest first, joined by +
    message: str = ""
    usage: Mapping[str, float] = {}
    ranks: tuple[Mapping[str, Any], ...] = ()
    steps: tuple[Mapping[str, Any], ...] = ()
    stdout_tail: bytes = b""
    stderr_tail: bytes = b""
    stdout_path: str = ""
    stderr_path: str = ""
    undelivered: str = ""  # why output is not at its final place; empty: it is
    ending: Ending | None = None  # None: nobody has told it to end


class ShareRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One attempt's part of one node. ``released_at`` None: the node still holds it."""

    attempt: AttemptKey
    node: str
    position: int  # 0: the head
    cpus: int
    mem: int
    slots: int
    gpus: tuple[str, ...] = ()  # UUIDs
    ports: tuple[int, ...] = ()
    released_at: datetime | None = None


class StartRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One gang to start: applied whole or not at all. ``shares[0]`` is the head."""

    attempt: AttemptKey
    shares: tuple[ShareRecord, ...]
    payload: Mapping[str, Any] = {}  # of the "started" event
    new: bool = False  # an element that waits in its parent's todo, and gets its row now


class Release(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A node's part of an attempt is over; its GPUs that are still allocated become ``gpu_state``."""

    attempt: AttemptKey
    node: str
    gpu_state: GpuState = GpuState.CLEANING


class GpuRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One installed GPU. ``links``: quality to each GPU of the node in index order; empty: unknown."""

    uuid: str
    node: str
    index: int
    model: str = ""
    memory: int = 0
    numa: int | None = None
    pci: str = ""
    simulated: bool = False
    state: GpuState = GpuState.FREE
    links: tuple[int, ...] = ()
    note: str = ""
    parent: str = ""  # of a MIG instance, as the next: the UUID of its card
    profile: str = ""


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A node as its agent last described it, and what is given out of it.

    ``up``: its agent is linked. ``offline``: an operator keeps jobs off it. ``gone``: an operator, or the site's fence,
    says that it is off; until it comes back. ``ends_at``: when a foreign allocation
    that the agent lives in ends; None: never.
    """

    name: str
    cpus: int
    mem: int
    up: bool = True
    offline: bool = False
    gone: bool = False
    cpus_used: int = 0
    mem_used: int = 0
    gpus: tuple[GpuRecord, ...] = ()
    address: str = ""
    peer_port: int = 0
    boot_id: str = ""
    journal: str = ""  # names the node's memory of attempts
    version: str = ""
    hostname: str = ""
    os: str = ""
    isolation: str = ""  # what holds jobs there, joined by +; empty: nothing but their environment
    features: tuple[str, ...] = ()
    declared: bool = False
    note: str = ""
    changed_at: datetime | None = None  # of the last change between up and down
    ends_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRecord:
    """``enabled``: takes jobs; ``started``: its jobs start. ``attributes``: all others that are set, by PBS' names, as
    qmgr shows them: {"resources_default.walltime": "01:00:00", "acl_users": "ann,bob", "ring": "check"}.
    """

    name: str
    enabled: bool = True
    started: bool = True
    priority: int = 0
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxRow:
    """What an API process told the leader; ``kind`` is ``submit`` for a new job, else a user's wish."""

    id: int
    kind: str
    seq: int | None
    user: str
    payload: Mapping[str, Any]
    via: str = ""  # by which credential, and from where


@dataclass(frozen=True, slots=True)
class CertificateRecord:
    """A node's certificate that has not run out. ``serial``: hex, as TLS shows it."""

    serial: str
    node: str
    issued_at: datetime
    expires_at: datetime
    issued_via: str
    revoked_at: datetime | None = None
    revoked_by: str | None = None
    authority: str = ""  # fingerprint of the one that signed it
    trusts: str = ""  # digest of the authorities that the node had when it asked for it
    role: str = "agent"  # or "gateway"


@dataclass(frozen=True, slots=True)
class AuthorityRecord:
    """A certificate authority. It is trusted until it is dropped; of those that sign, the last one does."""

    fingerprint: str
    certificate: str  # PEM
    sealed_key: bytes | None  # see master/vault.py; None: dropped
    made_at: datetime
    not_before: datetime  # it does not sign earlier
    signs_since: datetime | None = None
    dropped_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class SecretRecord:
    """A user's secret, sealed; see master/vault.py."""

    name: str
    sealed: bytes
    changed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderRecord:
    """Who leads. ``timeline``: PostgreSQL's when the leader took over. ``live``: the lease has not run out."""

    term: int
    holder: str
    address: str  # host:port of the link listener; empty: nobody ever led
    timeline: int
    expires_at: datetime
    live: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRecord:
    """What the PostgreSQL server says of itself. ``standbys``: its synchronous_standby_names; empty: none is waited
    for, and a failover may lose the last commits.
    """

    version: int  # e.g. 180000
    timeline: int
    fsync: bool
    synchronous_commit: str
    standbys: str


class Move(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One change of one job: from ``source`` to ``target`` (the same: only fields change), with its event.

    ``changes``: new values by the names of JobRecord's fields; see ``store.CHANGEABLE``.
    """

    seq: int
    index: int | None
    source: JobState
    target: JobState
    event: str
    payload: Mapping[str, Any] = {}
    changes: Mapping[str, Any] = {}

    @property
    def key(self) -> JobKey:
        return JobKey(self.seq, self.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """One line of the public order of events; ``source``/``target`` are the job's states around it."""

    id: int
    at: datetime
    seq: int | None
    index: int | None
    kind: str
    source: JobState | None
    target: JobState | None
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """A credential; only its SHA-256 is stored. ``kind``: "user" (bearer), "join" or "gateway" (one host, once)."""

    id: str
    kind: str
    user: str | None
    node: str | None
    scope: Scope
    created_by: str
    created_via: str
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None
    revoked_at: datetime | None = None
    revoked_by: str | None = None


@dataclass(frozen=True, slots=True)
class RequestKey:
    """Idempotency key of a request that may come again, and the digest of what it asks for."""

    key: str
    digest: bytes

    def of(self, part: str) -> RequestKey:
        """The key of one of the several things that the request asks for; of a length that an index holds."""
        hashed = hashlib.sha256(f"{self.key}\n{part}".encode())
        return RequestKey(hashed.hexdigest(), self.digest)


@dataclass(frozen=True, slots=True)
class Submitted:
    """``replayed``: the idempotency key came before; nothing was inserted now."""

    seq: int
    replayed: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """How many elements an array has, of each fate. ``started``: their first attempt was; ``failed``: complete, and
    not with 0; ``deleted``: before they started.
    """

    total: int
    started: int
    succeeded: int
    failed: int
    deleted: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What dependents need to know of a job; ``progress``: of an array."""

    state: JobState
    exit_status: int | None
    progress: Progress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs to list; None: no restriction. ``history``: also those that the sweeper has moved away.

    ``brief``: leaves ``submission`` empty, which saves most of the work on long lists.
    """

    seqs: tuple[int, ...] | None = None
    owners: tuple[str, ...] | None = None
    states: frozenset[JobState] | None = None
    queues: tuple[str, ...] | None = None
    history: bool = False
    brief: bool = False
    elements: bool = True  # False: whole jobs and arrays only
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderState:
    """Everything that a new leader starts from, from one snapshot of the database.

    ``jobs``: all that are not complete, without their ``submission``; ``attempts``: of each the last;
    ``shares``: not released.
    """

    jobs: tuple[JobRecord, ...]
    attempts: tuple[AttemptRecord, ...]
    shares: tuple[ShareRecord, ...]
    nodes: tuple[NodeRecord, ...]
    queues: tuple[QueueRecord, ...]
    server: Mapping[str, str] = field(default_factory=dict)  # its attributes that are set
    documents: Mapping[str, Any] = field(default_factory=dict)  # see documents.py
    used: tuple[tuple[str, str, float], ...] = ()  # see use.py: since what documents say of usage
