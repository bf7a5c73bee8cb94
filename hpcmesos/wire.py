"""Versioned messages between master and agent, and between clients and the API.

Link (agent dials the leader, mutually authenticated TLS): frames of a 4-byte big-endian length and one msgpack message.
Every message is a tagged struct. A leader takes agents of its own ``PROTOCOL`` and of the one before, and speaks to
each as it knows; others part with a clear line. Fields are only ever added, with defaults.
Times are seconds since the epoch (UTC), sizes bytes, durations seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import msgspec

from hpcmesos.errors import ProtocolError

PROTOCOL = 2
"""1: the first. 2: a hello names the node's journal."""
SPOKEN = (PROTOCOL - 1, PROTOCOL)
MAX_FRAME = 16 * 1024 * 1024


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """Base of everything on the link; the class name is the tag."""


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One whole GPU, or one MIG instance, as its node sees it."""

    uuid: str
    index: int
    model: str
    memory: int = 0
    numa: int | None = None
    pci: str = ""
    simulated: bool = False
    state: str = "free"  # a GpuState value, as far as the node knows
    links: tuple[
        int, ...
    ] = ()  # quality to each GPU of this node, in index order; higher is better, empty: unknown
    note: str = ""
    minor: int | None = None  # N of /dev/nvidiaN; of an instance its card's
    parent: str = ""  # of a MIG instance: the UUID of its card
    profile: str = ""  # of a MIG instance: 1g.10gb, 1c.3g.40gb, 1g.10gb.me
    instance: tuple[int, ...] = ()  # of a MIG instance: the numbers of its GPU instance and compute instance


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """What a node has. ``declared``: CPUs and memory were stated, not found (several agents on one host)."""

    cpus: int
    memory: int
    gpus: tuple[Gpu, ...] = ()
    declared: bool = False
    features: tuple[str, ...] = ()
    os: str = ""
    hostname: str = ""
    isolation: tuple[
        str, ...
    ] = ()  # what holds jobs here: cgroup, memory, cpu, pids, devices; empty: nothing


# --- agent to leader ---------------------------------------------------------------------------------------------


class Ready(Message, frozen=True, kw_only=True):
    attempt: str


class Refused(Message, frozen=True, kw_only=True):
    """PREPARE failed here; ``culprit`` is the node at fault (not always the one that refuses)."""

    attempt: str
    culprit: str
    reason: str


class Started(Message, frozen=True, kw_only=True):
    """The script runs on the head."""

    attempt: str
    pid: int
    started_at: float
    stdout_path: str = ""
    stderr_path: str = ""


class Ended(Message, frozen=True, kw_only=True):
    """This node's part of an attempt is over and all its processes are gone. Repeated until acknowledged.

    Only the head's report carries code or signal. ``forced``: it took SIGKILL. ``ranks``: one mapping per rank
    {step, rank, node, code, signal, gpu, at}; ``steps``: {step, command, code, first_failed: a rank or None}.
    ``usage``: cput (s), mem (bytes peak), walltime (s). ``ended_boot``: when, by the node's CLOCK_BOOTTIME (0: not
    known), and ``ago``: seconds that this was before the report was sent, whatever clocks say.
    """

    attempt: str
    head: bool
    cause: str
    code: int | None = None
    signal: int | None = None
    forced: bool = False
    culprit: str | None = None  # several: joined by +, the likeliest first
    message: str = ""
    started_at: float | None = None
    ended_at: float = 0.0
    ended_boot: float = 0.0
    ago: float = 0.0
    usage: dict[str, float] = {}
    ranks: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    stdout_tail: bytes = b""
    stderr_tail: bytes = b""
    stdout_path: str = ""
    stderr_path: str = ""
    undelivered: str = ""  # why output is not at its final place; empty: it is


class GpuReport(Message, frozen=True, kw_only=True):
    """States of this node's GPUs that changed (clean again, quarantined, lost, back)."""

    gpus: tuple[Gpu, ...]


class GpuFigures(Message, frozen=True, kw_only=True):
    """Each 10 s, of real GPUs. ``gpus``: by UUID, what `agent.health.FIGURES` names. ``uses``: by attempt, what it has
    used of this node's GPUs since it runs: samples, busy (those with utilisation), busy_sum and busy_max (percent),
    memory_max (bytes), energy (J).
    """

    gpus: dict[str, dict[str, float]]
    uses: dict[str, dict[str, float]] = {}


class NodeHealth(Message, frozen=True, kw_only=True):
    """What the site's health program says of the node; empty: it is fit for jobs."""

    trouble: str


class InventoryReport(Message, frozen=True, kw_only=True):
    inventory: Inventory


class AttemptReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a node holds of an attempt when it (re)connects. ``phase``: preparing ready running ending ended."""

    attempt: str
    phase: str
    head: bool
    gpus: tuple[str, ...] = ()


class Hello(Message, frozen=True, kw_only=True):
    """First message of a link."""

    protocol: int
    node: str
    boot_id: str
    address: str
    peer_port: int
    version: str
    inventory: Inventory
    attempts: tuple[AttemptReport, ...] = ()
    seen_term: int = 0  # the highest leader term this agent obeyed
    pid: int = 0
    shepherd_pid: int = 0
    journal: str = ""  # names the node's memory of attempts; another one: it has forgotten them


class Pong(Message, frozen=True, kw_only=True):
    nonce: int
    load: float = 0.0
    memory_free: int = 0


# --- leader to agent ---------------------------------------------------------------------------------------------


class Welcome(Message, frozen=True, kw_only=True):
    """``timeline`` and ``term`` fence old leaders: an agent refuses a pair lower than one it obeyed."""

    protocol: int
    cluster: str
    timeline: int
    term: int
    ping_interval: float = 2.0


class Rejected(Message, frozen=True, kw_only=True):
    """The leader parts: wrong protocol, unknown node, a second agent under one name, or not the leader (``leader``)."""

    reason: str
    leader: str | None = None


class Prepare(Message, frozen=True, kw_only=True):
    """``spec``: see docs/architecture.md, "The spec of an attempt"."""

    attempt: str
    spec: dict[str, Any]


class Go(Message, frozen=True, kw_only=True):
    attempt: str


class End(Message, frozen=True, kw_only=True):
    attempt: str
    cause: str
    kill_delay: float
    message: str = ""


class Signal(Message, frozen=True, kw_only=True):
    attempt: str
    signal: int


class Alter(Message, frozen=True, kw_only=True):
    """Of an attempt that runs or is about to: its walltime (s from its start, None: no limit) or a line for its output.

    ``streams``: "o", "e", both, or none: then it is the walltime that changes, and ``suspended`` (None: no word of it):
    whether its processes stand still.
    """

    attempt: str
    walltime: int | None = None
    streams: str = ""
    text: str = ""
    suspended: bool | None = None


class SetGpu(Message, frozen=True, kw_only=True):
    """An operator takes a GPU out of use (``fault`` says why), or with an empty ``fault`` lets it be used again."""

    uuid: str
    fault: str = ""


class Acknowledged(Message, frozen=True, kw_only=True):
    """The end of this node's part is durable in the database; the node may forget it."""

    attempt: str


class Ping(Message, frozen=True, kw_only=True):
    """``heard``: the nonce of the last pong that the leader has had on this link; 0: none yet. ``trusts``: digest of
    the cluster's certificate authorities; a node that has others asks for them.
    """

    nonce: int
    heard: int = 0
    trusts: str = ""


ToLeader: TypeAlias = (
    Hello | Ready | Refused | Started | Ended | GpuReport | GpuFigures | NodeHealth | InventoryReport | Pong
)
ToAgent: TypeAlias = Welcome | Rejected | Prepare | Go | End | Signal | Alter | SetGpu | Acknowledged | Ping

_encoder = msgspec.msgpack.Encoder()
_to_leader: msgspec.msgpack.Decoder[ToLeader] = msgspec.msgpack.Decoder(ToLeader)
_to_agent: msgspec.msgpack.Decoder[ToAgent] = msgspec.msgpack.Decoder(ToAgent)


def encode(message: ToLeader | ToAgent) -> bytes:
    """One frame, length included."""
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "big") + body


_BOUND = 2.0**1009
_PERHAPS_NO_NUMBER = (b"\xca\x7f", b"\xca\xff", b"\xcb\x7f", b"\xcb\xff")
"""How msgpack's floats begin that are not below ``_BOUND`` (those of 64 bits) or 2**127. A message without these bytes,
nearly every one, need not be walked through.
"""


def decode_to_leader(body: bytes) -> ToLeader:
    """What an agent says. Numbers that are none (NaN, infinite, past all bounds) become 0, "not known": JSON, in which
    they would be stored, has no such numbers, and who computes with them gets more of them.
    """
    message = _to_leader.decode(body)
    if any(sign in body for sign in _PERHAPS_NO_NUMBER):
        message = msgspec.convert(_numbers(msgspec.msgpack.decode(body)), ToLeader)
    return message


def _numbers(value: Any) -> Any:
    """With 0.0 for floats that are not below ``_BOUND``, at any depth."""
    if isinstance(value, float):
        return value if abs(value) < _BOUND else 0.0
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    return value


def decode_to_agent(body: bytes) -> ToAgent:
    return _to_agent.decode(body)


def frames(buffer: bytearray) -> Iterator[bytes]:
    """Takes the bodies of whole frames off the front of ``buffer``.

    Raises:
        ProtocolError: a frame is larger than MAX_FRAME.
    """
    while len(buffer) >= 4:
        size = int.from_bytes(buffer[:4], "big")
        if size > MAX_FRAME:
            raise ProtocolError(f"a frame of {size} bytes")
        if len(buffer) < 4 + size:
            return
        body = bytes(buffer[4 : 4 + size])
        del buffer[: 4 + size]
        yield body


# --- the HTTP API (JSON) -----------------------------------------------------------------------------------------


class CommandRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A q-command as typed. ``environ`` holds HOME LOGNAME PATH MAIL SHELL TZ LANG where set; more on ``need``."""

    argv: list[str]
    cwd: str = "/"
    umask: int = 0o022
    host: str = ""
    environ: dict[str, str] = {}
    script: str | None = None  # base64 of the job script's bytes
    script_path: str | None = None  # the operand that ``script`` was read from; "-" for standard input
    key: str | None = None  # idempotency key
    personality: str = "torque"
    submit_filter: str | None = None  # the site has this program on the submit host: it sees the script first
    filtered: bool = False  # and it has
    terminal: bool = False  # the caller has a terminal for an interactive job, and stays with it


class Submission(msgspec.Struct, frozen=True):
    """One job of many. ``argv``: qsub's words, such as ``["-l", "nodes=1:gpus=2", "--", "prog", "7"]``; ``script``: the
    content of the job script where the words have no ``--``.
    """

    argv: list[str]
    script: bytes | None = None  # base64 on the wire


class SubmitRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Many jobs of one user, all or none. What they share stands here once, as in CommandRequest."""

    jobs: list[Submission]
    cwd: str = "/"
    umask: int = 0o022
    host: str = ""
    environ: dict[str, str] = {}
    key: str | None = None
    personality: str = "torque"


class SubmitReply(msgspec.Struct, frozen=True, kw_only=True):
    """Ids in the order of the jobs."""

    ids: list[str]


class ScheduleRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule: a rule, and what qsub would get. ``rule``: a crontab line, ``R[N]/[START]/PERIOD``, or ``after:A,B``
    for one that runs whenever A and B have each ended well. What the job shares with SubmitRequest is as there.
    """

    name: str
    rule: str
    job: Submission
    timezone: str = "UTC"
    missed: str = "once"  # skip, once, all
    overlap: str = "allow"  # allow, skip, replace
    deadline: int = 60  # s; a due time that is later than that was missed
    retries: int = 0
    retry_delay: int = 60  # s
    paused: bool = False
    cwd: str = "/"
    umask: int = 0o022
    host: str = ""
    environ: dict[str, str] = {}
    personality: str = "torque"


class ScheduleStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule. ``next_due``: seconds since the epoch; None: never, paused, or it follows others."""

    owner: str
    name: str
    rule: str
    timezone: str
    paused: bool
    missed: str
    overlap: str
    deadline: int
    retries: int
    retry_delay: int
    job_name: str
    queue: str
    next_due: float | None = None
    parents: list[str] = []


class ScheduleRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a due time became. ``job`` None: there was none, and ``outcome`` says why."""

    due: float
    fired_at: float
    number: int  # of the try, from 0
    job: str | None
    outcome: str  # "exit N" once the job has ended; empty: it has not
    retry_at: float | None = None


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """What was used. ``key``: values of what was asked for (user, project, queue, month, day), in that order. ``runs``:
    attempts that began; ``lost_gpu_hours``: of attempts that ended by no fault of the job's.
    """

    key: list[str]
    runs: int
    gpu_hours: float
    cpu_hours: float
    lost_gpu_hours: float


class EventStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a job; ``id`` grows in the order in which it was decided. ``at``: seconds since the
    epoch; ``before`` and ``state``: letters of the job's state, the same where only something else changed.
    """

    id: int
    at: float
    kind: str
    job: str | None = None  # None: of the cluster
    before: str | None = None
    state: str | None = None


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What the command has to send along before it can be done: the same request again, completed."""

    script: str | None = None  # read this file; "-": standard input
    terminal: list[str] | None = None  # full-client argv to run instead, if standard input is a terminal
    environ: list[str] | None = None  # these variables; ["*"]: all
    filter: bool = False  # what the site's submit filter makes of the script, nothing where there is none


class CommandReply(msgspec.Struct, frozen=True, kw_only=True):
    """What the command prints and how it exits. ``then``: full-client argv to run after printing (block)."""

    stdout: str = ""
    stderr: str = ""
    code: int = 0
    need: Need | None = None
    then: list[str] | None = None


class ErrorReply(msgspec.Struct, frozen=True, kw_only=True):
    """Body of every answer >= 400; ``code`` is the leaf's code in errors.py."""

    code: str
    message: str
    exit_code: int


class RankStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One rank; neither ``code`` nor ``signal``: it has not been seen to end."""

    rank: int
    node: str
    code: int | None = None
    signal: int | None = None
    gpus: list[str] = []


class StepStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One launch inside an attempt. ``first_failed``: the rank that was the first to fail by itself."""

    step: str
    command: list[str]
    code: int | None = None
    first_failed: int | None = None
    ranks: list[RankStatus] = []


class AttemptStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One try at running a job; ``steps`` are known once it has ended. Times are seconds since the epoch."""

    number: int
    nodes: list[str] = []
    started_at: float | None = None
    ended_at: float | None = None
    cause: str | None = None
    code: int | None = None
    signal: int | None = None
    culprit: str | None = None
    message: str = ""
    steps: list[StepStatus] = []


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A job for programs. ``exit_status`` is None until it has ended, and for a job deleted before it ran.

    ``attempts``: oldest first; in lists of jobs they are left out.
    """

    id: str
    name: str
    owner: str
    state: str
    queue: str
    exit_status: int | None = None
    cause: str | None = None
    attempt: int = 0
    nodes: list[str] = []
    reason: str | None = None
    comment: str = ""
    attempts: list[AttemptStatus] = []


class JoinRequest(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    node: str
    csr: str  # PEM
    role: str = "agent"  # or "gateway": what the certificate is to be for


class JoinReply(msgspec.Struct, frozen=True, kw_only=True):
    certificate: str  # PEM
    ca: str  # PEM
    cluster: str


class TokenRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``kind``: "user" (bearer token for ``user``), "join" (one agent, once) or "gateway" (one login host, once)."""

    kind: str
    user: str | None = None
    node: str | None = None  # join, gateway: only this host; None: any name
    lifetime: float = 86400.0  # seconds
    scope: str = "all"  # user: "read" changes nothing, "jobs" also own jobs, "all" whatever the user may do


class TokenReply(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    kind: str
    expires_at: float


class TokenStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A token that is still good; not the secret. Times in epoch seconds."""

    id: str
    kind: str
    user: str | None
    node: str | None
    scope: str
    created_by: str
    created_via: str
    created_at: float
    expires_at: float
    used_at: float | None = None


class RevokeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``ids`` of tokens as listed; what was made by them ends with them."""

    ids: list[str]


class RenewRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``csr``: PEM. ``node``: for a manager on the master's own host; an agent's certificate names its node.
    ``trusts``: digest of the authorities (PEM) that the node has by now.
    """

    csr: str
    node: str | None = None
    trusts: str = ""


class CertificateStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A node's certificate; times in epoch seconds."""

    serial: str
    node: str
    issued_at: float
    expires_at: float
    revoked_at: float | None = None
    authority: str = ""  # fingerprint of the one that signed it
    trusts: str = ""  # digest of the authorities that the node had when it asked for it


class RotateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A new certificate authority: ``certificate`` and ``key`` of a site's own (PEM), or one that is made here.

    It signs once all nodes trust it, and not within ``wait`` seconds, in which clients get it.
    """

    certificate: str = ""
    key: str = ""
    wait: float = 0.0


class AuthorityStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate authority that is trusted. ``state``: "signs", "next" (it will) or "old" (it has, and goes).
    ``lacking``: the nodes for which the next step waits.
    """

    fingerprint: str
    state: str
    expires_at: float
    signs_from: float | None = None
    lacking: list[str] = []


class SecretRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``value``: base64."""

    value: str


class OutputReply(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a stream the log store has (bytes). ``gateway``: who writes it at ``path``; empty: nobody.

    ``soon``: it is no use to wait for that unless this is set.
    """

    have: int
    gateway: str = ""
    path: str = ""
    pending: bool = False  # the gateway has not written it yet
    soon: bool = True
    trouble: str = ""  # why it cannot be written


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A stream that a gateway has to write at ``path``, as its owner, with this umask.

    ``name``: the file's name where ``path`` is a directory; ``append``: behind what is there.
    """

    attempt: str
    stream: str
    owner: str
    path: str
    name: str
    umask: int
    append: bool
    size: int


class Delivered(msgspec.Struct, frozen=True, kw_only=True):
    """``trouble``: why it cannot be written; empty: it is."""

    trouble: str = ""


class SecretStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A secret that is kept; ``changed_at``: epoch seconds."""

    name: str
    changed_at: float


class AuditStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A change: when, what, of which job, by whom, and how that one came."""

    at: float
    action: str
    job: str | None
    user: str
    via: str
    details: dict[str, Any] = {}


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes kept for a time (epoch seconds), for the jobs of some users and queues; for nobody: maintenance."""

    name: str
    starts_at: float
    ends_at: float
    nodes: list[str]
    users: list[str] = []
    queues: list[str] = []
    note: str = ""
    by: str = ""


class ReservationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``nodes`` empty: all that there are; ``starts_at`` 0: now."""

    name: str
    ends_at: float
    starts_at: float = 0.0
    nodes: list[str] = []
    users: list[str] = []
    queues: list[str] = []
    note: str = ""


class ShareRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``user`` None: of the project among the projects; else of the user among the project's. ``shares`` None: one."""

    project: str = ""
    user: str | None = None
    shares: float | None = None


class ShareStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One user in one project ("": none). ``usage`` and ``target``: parts of all, 0 to 1; ``factor``: 1 without use,
    1/2 at what is due. ``gpu_hours``: used, halved with every week.
    """

    project: str
    user: str
    project_shares: float
    shares: float
    gpu_hours: float
    usage: float
    target: float
    factor: float


class HealthReply(msgspec.Struct, frozen=True, kw_only=True):
    """``status``: "ok", or "no leader": jobs are taken, none starts. A database that is away is an error, 503."""

    status: str
    database: bool
    leader: bool
    timeline: int = 0
    fsync: bool = True
    synchronous_commit: str = "on"
    plugins: list[str] = []  # what is wrong with the site's plug-ins, a line each
    standbys: str = ""  # synchronous_standby_names; empty: a failover may lose the last commits


class Factor(msgspec.Struct, frozen=True, kw_only=True):
    """One of those that the order of the queue adds up: what it is for a job, and the points that it gives."""

    value: float
    points: float


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A job that runs, and what it holds; ``until``: seconds since the epoch, by its walltime; None: unknown."""

    job: str
    user: str
    gpus: int
    cpus: int
    nodes: list[str]
    until: float | None = None


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job waits and when it starts. ``code``: one of ReasonCode ("": it does not wait); ``facts``: the text's
    numbers and names. ``place``: 1 is the first of the ``waiting``. ``starts_at``: estimated, seconds since the epoch;
    None: not in sight. ``nodes``: of a job that would start now.
    """

    id: str
    state: str
    code: str
    text: str
    facts: dict[str, int | float | str] = {}
    place: int | None = None
    waiting: int | None = None
    starts_at: float | None = None
    factors: dict[str, Factor] = {}
    holders: list[Holder] = []
    nodes: list[str] = []


class LeaderReply(msgspec.Struct, frozen=True, kw_only=True):
    """Where agents dial. ``address``: host:port of the leader's link listener; None while there is no leader."""

    address: str | None
    term: int
    timeline: int
