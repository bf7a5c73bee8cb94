"""What the HTTP API takes and answers, as JSON.

Times are seconds since the epoch (UTC), sizes bytes, durations seconds. Fields are only ever added, with defaults.
"""

from __future__ import annotations

from typing import Any

import msgspec

MOST_AT_ONCE = 10_000
"""Jobs of one `Client.submit_many`."""
IDEMPOTENCY_KEY = "Idempotency-Key"
"""Header of requests without a body that would hold the ``key``."""


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


class GpuStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU for programs."""

    index: int
    uuid: str
    model: str
    state: str  # a model.GpuState
    simulated: bool = False
    job: str | None = None
    note: str = ""  # why it is not given out
    parent: str = ""  # of a MIG instance, as the next: the UUID of its card
    profile: str = ""
    memory: int = 0  # bytes; 0: not known
    numa: int | None = None  # NUMA node; None: not known
    nvlink_island: int | None = (
        None  # the same number for GPUs of a node that NVLink joins; None: it has no NVLink
    )
    figures: dict[str, float] = {}
    """As the card has them, of the last 10 s: utilization (percent), memory_used (bytes), temperature (Celsius),
    power (W), energy (J), ecc_errors, rows_failed, nvlink_errors. Empty of simulated ones, and without a leader.
    """


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A node for programs; ``memory`` in bytes. ``declared``: CPUs and memory were stated, not found."""

    name: str
    state: str  # free, busy, offline, draining (offline, and jobs still run), down, gone (down, and known to be off)
    cpus: int
    memory: int
    declared: bool = False
    address: str = ""
    features: list[str] = []
    gpus: list[GpuStatus] = []
    jobs: list[str] = []
    note: str = ""
