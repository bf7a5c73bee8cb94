"""What goes into the agent's state machine and what comes out of it. Times: seconds, monotonic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from hpcmesos import wire
from hpcmesos.agent.health import Fault


@dataclass(frozen=True, slots=True)
class Process:
    """A process that computes on a GPU; ``user`` is empty when it cannot be known (another pid namespace)."""

    pid: int
    user: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user}" if self.user else f"process {self.pid}"


@dataclass(frozen=True, slots=True)
class Reading:
    """One GPU as the probe sees it now. ``error``: what NVML answered instead of the processes. ``xids``: since the
    last reading; ``figures``: see `health.FIGURES`.
    """

    gpu: wire.Gpu
    processes: tuple[Process, ...] = ()
    lost: bool = False
    error: str = ""
    xids: tuple[int, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)


# --- events ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The link numbered ``link`` to a leader is open; nothing was said on it yet."""

    link: int


@dataclass(frozen=True, slots=True)
class LinkDown:
    link: int


@dataclass(frozen=True, slots=True)
class FromLeader:
    link: int
    message: wire.ToAgent


@dataclass(frozen=True, slots=True)
class FromShepherd:
    """A message of control.sock; ``hello`` is the first of every connection."""

    message: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ShepherdDown:
    """The connection to the shepherd is closed."""


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """All real GPUs of this agent, answered to a question asked at ``asked``."""

    asked: float
    readings: tuple[Reading, ...]


@dataclass(frozen=True, slots=True)
class ProbeSilent:
    """NVML has not answered for ``seconds``; 0: the probe itself failed."""

    seconds: float


@dataclass(frozen=True, slots=True)
class HealthReport:
    """What the site's health program says of this node; empty: it is fit."""

    trouble: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; due whenever ``state_machine.deadline`` says so."""


Event: TypeAlias = (
    LinkUp
    | LinkDown
    | FromLeader
    | FromShepherd
    | ShepherdDown
    | ProbeReport
    | ProbeSilent
    | HealthReport
    | Tick
)


# --- effects -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ToLeader:
    link: int
    message: wire.ToLeader


@dataclass(frozen=True, slots=True)
class ToShepherd:
    message: dict[str, Any]


@dataclass(frozen=True, slots=True)
class AskProbe:
    """Wants a ProbeReport that is asked for from now on."""


@dataclass(frozen=True, slots=True)
class Remember:
    """This pair has to be on disk before any effect that follows, or on a full disk as soon as it has room."""

    timeline: int
    term: int


@dataclass(frozen=True, slots=True)
class RememberFaults:
    """Why GPUs (by UUID) are kept out of use, beyond the life of this agent."""

    faults: Mapping[str, Fault]


@dataclass(frozen=True, slots=True)
class CloseLink:
    link: int
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log."""

    text: str


Effect: TypeAlias = ToLeader | ToShepherd | AskProbe | Remember | RememberFaults | CloseLink | Note
