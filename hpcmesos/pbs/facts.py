"""What the status commands show, as plain values: the border between the queue's rows and the renderers.

Units: bytes, seconds; times are aware datetimes (any zone; the renderer converts to the client's).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from hpcmesos.queue.arrays import ArraySpec


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """One job, array parent or array element, with all that ``qstat -f`` shows. None or empty: not shown."""

    id: str  # full text form, e.g. "12.hpcm", "12[].hpcm", "12[3].hpcm"
    name: str
    owner: str  # the user's name alone
    submit_host: str
    state: str  # Torque's letter: Q H W R E C (renderers of the pbspro personality turn C into F)
    queue: str
    server: str
    ctime: datetime | None = None  # created
    qtime: datetime | None = None  # entered its present queue
    mtime: datetime | None = None  # last change
    etime: datetime | None = None  # became eligible
    start_time: datetime | None = None
    comp_time: datetime | None = None
    execution_time: datetime | None = None  # -a
    exec_host: tuple[tuple[str, int], ...] = ()  # (node, slots), head first
    exec_gpus: tuple[tuple[str, str, int], ...] = ()  # (node, uuid, index on the node)
    resource_list: Mapping[str, str] = field(default_factory=dict)
    resources_used: Mapping[str, str] = field(default_factory=dict)  # cput, mem, vmem, walltime as shown
    exit_status: int | None = None
    cause: str | None = None  # a model.Cause
    comment: str | None = None
    substate: int | None = None  # None: derived from the state
    session_id: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)  # Variable_List
    output_path: str = ""  # "host:/path"
    error_path: str = ""
    workdir: str = ""  # init_work_dir
    join: str = "n"
    keep: str = "n"
    checkpoint: str = "u"
    mail_points: str = "a"
    mail_users: str | None = None
    priority: int = 0
    rerunable: bool = True
    interactive: bool = False
    submit_args: str = ""
    hold_types: str = "n"
    depend: str | None = None
    project: str | None = None
    account: str | None = None
    group: str | None = None
    array: ArraySpec | None = None  # of an array's parent
    array_counts: Mapping[str, int] = field(
        default_factory=dict
    )  # of a parent: its elements, by state letter
    array_remaining: str = ""  # of a parent: the indexes that have not started, as users write them
    array_id: str | None = None  # of an array's element: its parent
    array_index: int | None = None  # of an array's element
    in_live_array: bool = False  # an element of an array that is not complete
    alike: tuple[int, ...] = ()  # this stands for these elements, which differ in nothing but index and paths
    run_count: int = 0
    earlier: tuple[
        Mapping[str, str], ...
    ] = ()  # attempts before the last, e.g. {"cause": "NODE_LOST", "culprit": "n2", "nodes": "n1+n2"}
    steps: tuple[
        Mapping[str, str], ...
    ] = ()  # e.g. {"step": "0.1", "command": "mpiexec -n 4 a.out", "code": "7"}
    ranks: tuple[Mapping[str, str], ...] = ()  # e.g. {"rank": "3", "node": "n2", "code": "7"}
    first_failed: Mapping[str, str] = field(
        default_factory=dict
    )  # the rank that failed first, in the last such step
    last_lines: str | None = None  # of what a job that failed has written
    walltime_used: int | None = None  # seconds since the start, for the Elap column
    walltime_remaining: int | None = None  # seconds
    pending_reason: str | None = None  # the sentence a user reads
    estimated_start: datetime | None = None
    extra: Mapping[str, str] = field(default_factory=dict)  # further attributes, shown last


def each(jobs: Iterable[JobFacts]) -> Iterator[JobFacts]:
    """The jobs, elements that are alike one by one."""
    for job in jobs:
        if not job.alike:
            yield job
        for index in job.alike:
            yield replace(job, id=element_id(job, index), array_index=index, alike=())


def element_id(job: JobFacts, index: int) -> str:
    """The id of another element of the same array."""
    return f"{job.id.partition('[')[0]}[{index}].{job.server}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """One GPU of a node."""

    index: int
    uuid: str
    model: str
    state: str  # a model.GpuState
    simulated: bool = False
    job_id: str | None = None
    note: str = ""  # why it is not given out
    parent: str = ""  # of a MIG instance, as the next: the UUID of its card
    profile: str = ""
    memory: int = 0  # bytes; 0: not known
    numa: int | None = None  # NUMA node; None: not known
    nvlink_island: int | None = None  # `gang.islands`
    figures: Mapping[str, float] = field(default_factory=dict)  # `agent.health.FIGURES`, of the last seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """One node as ``pbsnodes`` shows it."""

    name: str
    state: frozenset[str] = frozenset({"free"})  # free down offline busy job-exclusive ...
    np: int = 1
    features: tuple[str, ...] = ()
    jobs: tuple[tuple[int, str], ...] = ()  # (slot index, job id)
    gpus: tuple[GpuFacts, ...] = ()
    memory_total: int = 0  # bytes
    memory_available: int = 0  # bytes
    physical_memory: int = 0  # bytes
    load_average: float | None = None
    os_name: str = "linux"
    uname: str = ""
    isolation: str = ""
    rectime: datetime | None = None  # last report
    note: str | None = None
    declared: bool = False  # True: CPUs and memory were declared by the operator, not measured


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFacts:
    """One queue as ``qstat -Q`` and ``-q`` show it; ``counts`` is keyed by state letter.

    ``attributes``: all that are set, in qmgr's form and order, for -Q -f.
    """

    name: str
    enabled: bool = True
    started: bool = True
    max_running: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)  # resources_max: mem, cput, walltime, nodes
    attributes: Mapping[str, str] = field(default_factory=dict)
    routes: bool = False  # a route queue


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """The server as ``qstat -B`` shows it; ``counts`` is keyed by state letter."""

    name: str
    status: str = "Active"
    max_running: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)  # further ones, for -B -f
