"""The words of the field as values: ids, requests, states, causes. Frozen; standard library only.

Units: bytes, seconds, whole CPUs, whole GPUs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NewType

from hpcmesos.errors import InvalidValue

NodeName = NewType("NodeName", str)
GpuUuid = NewType("GpuUuid", str)

HALF_LIFE = 7 * 86400.0
"""Seconds after which use counts half in fair share."""

SIMULATED_PREFIX = "SIM-"
"""UUIDs of simulated GPUs begin so, wherever they show."""

_JOB_ID = re.compile(r"(\d+)(?:\[(\d*)\])?(?:\.([A-Za-z0-9._-]+))?")


@dataclass(frozen=True, slots=True, order=True)
class JobId:
    """``SEQ.server``; an array's parent is ``SEQ[].server``, its element ``SEQ[INDEX].server``."""

    seq: int
    server: str
    index: int | None = None  # None: no array element
    array: bool = False  # True: the parent of an array

    def __str__(self) -> str:
        inner = f"[{self.index}]" if self.index is not None else "[]" if self.array else ""
        return f"{self.seq}{inner}.{self.server}"

    @classmethod
    def parse(cls, text: str, server: str) -> JobId:
        """Reads an operand as users write it; a missing ``.server`` is this server, ``@server`` at its end is dropped.

        Raises:
            InvalidValue: when the text is no job id.
        """
        match = _JOB_ID.fullmatch(text.strip().split("@")[0])
        if match is None:
            raise InvalidValue(f"illegally formed job identifier: {text}")
        seq, index, named = match.groups()
        return cls(int(seq), named or server, int(index) if index else None, index == "")


@dataclass(frozen=True, slots=True, order=True)
class AttemptId:
    """One try at running a job; ``number`` (from 1) is the fencing token. Text form ``12.hpcm#1``."""

    job: JobId
    number: int

    def __str__(self) -> str:
        return f"{self.job}#{self.number}"

    @classmethod
    def parse(cls, text: str) -> AttemptId:
        """Raises InvalidValue."""
        job, _, number = text.rpartition("#")
        if not job or not number.isdigit():
            raise InvalidValue(f"illegally formed attempt identifier: {text}")
        return cls(JobId.parse(job, ""), int(number))


class JobState(StrEnum):
    """The letters that qstat shows."""

    QUEUED = "Q"
    HELD = "H"
    WAITING = "W"  # until its execution time (-a)
    RUNNING = "R"  # from the commit of START
    EXITING = "E"  # ended, output not yet delivered
    COMPLETE = "C"


class Cause(StrEnum):
    """Why an attempt ended."""

    OK = "OK"
    APP = "APP"
    SIGNAL = "SIGNAL"
    WALLTIME = "WALLTIME"
    OOM = "OOM"
    DELETED = "DELETED"
    NODE_LOST = "NODE_LOST"
    GPU_LOST = "GPU_LOST"
    GPU_IDLE = "GPU_IDLE"  # its queue does not let GPUs lie idle
    PREEMPTED = "PREEMPTED"
    START_FAILED = "START_FAILED"


class GpuState(StrEnum):
    """FREE + ALLOCATED + CLEANING + QUARANTINED + LOST = installed, after any crash."""

    FREE = "free"
    ALLOCATED = "allocated"
    CLEANING = "cleaning"
    QUARANTINED = "quarantined"
    LOST = "lost"
    UNKNOWN_ATTEMPT = "unknown-attempt"  # held by an attempt that the database does not know


CONTAINERS = "docker"
"""Feature of nodes that serve containers, asked for by every job with an image."""


DOCKER_IN_JOBS = "docker_in_jobs"
"""Feature of nodes whose jobs find a Docker socket of their own."""


NVLINK_QUALITY = 10
"""Of the paths between two GPUs those above are NVLinks: by how many it is more; those over PCI are below."""


MIG_FEATURE = "mig-"
"""Begin of the feature of nodes whose GPUs are MIG instances: ``mig-1g.10gb``. Only jobs that name it get them."""


class Placement(StrEnum):
    FREE = "free"  # fewest nodes
    PACK = "pack"  # one node
    SCATTER = "scatter"  # every chunk on a host of its own


@dataclass(frozen=True, slots=True)
class Chunk:
    """``count`` equal pieces of a request; each piece lies whole on one node."""

    count: int = 1
    cpus: int = 1
    gpus: int = 0
    mem: int = 0  # bytes a piece; 0: none asked
    slots: int = 1  # ranks a piece: lines in PBS_NODEFILE
    features: tuple[str, ...] = ()
    host: str | None = None  # a named node; None: any


@dataclass(frozen=True, slots=True)
class Constraint:
    """A rule on the nodes of one gang by one of their attributes, in Marathon's words (``gang/constraints.py``).

    ``field``: an attribute (a feature ``name=value``; a feature without a value has the value "true"), or hostname or
    switch. ``operator``: LIKE, UNLIKE (regular expression), IS, UNIQUE, CLUSTER, GROUP_BY or MAX_PER.
    """

    field: str
    operator: str
    value: str = ""

    def __str__(self) -> str:
        """As ``-W constraints=`` has it: ``rack:MAX_PER:2``."""
        return ":".join(part for part in (self.field, self.operator, self.value) if part)


@dataclass(frozen=True, slots=True)
class Request:
    """What a job asks for. ``nodes=N`` is N distinct hosts, always (SCATTER)."""

    chunks: tuple[Chunk, ...] = (Chunk(),)
    placement: Placement = Placement.SCATTER
    walltime: int | None = None  # seconds; None: no limit
    framework: str = ""  # -W framework=, in its shortest form: decides how many ports come with the gang
    silence: int | None = None  # seconds without a leader after which its nodes end it; None: never
    constraints: tuple[Constraint, ...] = ()  # -W constraints=, all of which hold

    @property
    def pieces(self) -> int:
        return sum(c.count for c in self.chunks)

    @property
    def cpus(self) -> int:
        return sum(c.count * c.cpus for c in self.chunks)

    @property
    def gpus(self) -> int:
        return sum(c.count * c.gpus for c in self.chunks)

    @property
    def slots(self) -> int:
        return sum(c.count * c.slots for c in self.chunks)

    @property
    def mem(self) -> int:
        return sum(c.count * c.mem for c in self.chunks)

    @property
    def contained(self) -> bool:
        """Whether it runs in containers."""
        return any(CONTAINERS in chunk.features for chunk in self.chunks)

    def in_containers(self) -> Request:
        """The same, on nodes that serve containers."""
        chunks = (
            c if CONTAINERS in c.features else replace(c, features=(*c.features, CONTAINERS))
            for c in self.chunks
        )
        return replace(self, chunks=tuple(chunks))


class ReasonCode(StrEnum):
    """Why a job waits."""

    NO_NODES = "no-nodes"  # no node is known yet
    NODES_DOWN = "nodes-down"  # would fit if nodes that are down or out of service were not
    INSUFFICIENT = "insufficient"  # names the resource, the need and what is free
    BEHIND = "behind"  # an earlier job has to start first
    NEVER_FITS = "never-fits"
    EXCLUDED = "excluded"  # the only fitting nodes are excluded for this job after failures
    HELD = "held"
    WAITING = "waiting"
    DEPENDENCY = "dependency"
    QUEUE_STOPPED = "queue-stopped"
    RESERVED = "reserved"  # what is free is kept for a job that comes before; names it and the time
    WINDOW = "window"  # nodes are kept for a reservation or for maintenance
    LIMIT = "limit"  # a limit of the user, project, queue or server
    ARRAY_LIMIT = "array-limit"  # as many elements run as the array's slot limit lets


@dataclass(frozen=True, slots=True)
class PendingReason:
    """A typed reason and the sentence that a user reads.

    ``facts``: the same for programs: numbers and names such as needs, free, reserved, job, at (epoch seconds).
    """

    code: ReasonCode
    text: str
    facts: Mapping[str, int | float | str] = field(default_factory=dict)


class Role(StrEnum):
    USER = "user"
    OPERATOR = "operator"
    MANAGER = "manager"


class Scope(StrEnum):
    """What a credential is good for, at most; its user's role is the other limit."""

    READ = "read"  # changes nothing
    JOBS = "jobs"  # also the user's own jobs
    ALL = "all"  # whatever the user may do
