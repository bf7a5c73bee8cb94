"""What an agent knows (frozen values), and ``Draft``: the next state while a step is being taken.

Each step makes new values of old ones a dozen times: with msgspec's structs at a seventh of a data class's price.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

import msgspec
from msgspec.structs import replace

from hpcmesos import wire
from hpcmesos.agent.events import Effect, ToLeader, ToShepherd
from hpcmesos.agent.health import Fault, Use
from hpcmesos.model import GpuState

REMEMBERED = 1024  # attempts that are over here and known, so that a late message cannot start them again
REPEAT_ENDED = 5.0  # s until an end that is not acknowledged is told again, and each time twice as long
LONGEST_REPEAT = 600.0  # at most: a leader whose database does not know the attempt never takes it
NEVER_TOLD = ""  # state of a GPU of which the leader has never heard


class Phase(StrEnum):
    CHECKING = "checking"  # known to the agent only: the probe looks whether its GPUs are clean
    PREPARING = "preparing"
    READY = "ready"
    RUNNING = "running"
    ENDING = "ending"
    ENDED = "ended"


class Slot(msgspec.Struct, frozen=True):
    """One GPU. ``told``: what the leader knows of it; ``since``: when it got into its state."""

    told: wire.Gpu
    state: GpuState = GpuState.FREE
    attempt: str | None = None
    since: float = 0.0
    note: str = ""
    fault: Fault | None = None  # keeps it out of use, whoever has it now
    fault_at: float = 0.0  # when the fault was seen last
    energy: float | None = None  # J, at the last reading

    @property
    def now(self) -> wire.Gpu:
        """The GPU with the state that it has now."""
        note = self.note or (self.fault.text if self.fault else "")
        return replace(self.told, state=self.state.value, note=note)


class Attempt(msgspec.Struct, frozen=True):
    """This node's part of an attempt. What was asked of it stays here, to be asked again of a new shepherd."""

    name: str
    phase: Phase
    head: bool
    gpus: tuple[str, ...] = ()
    spec: Mapping[str, Any] | None = None  # None: from an agent before this one
    go: bool = False
    end: wire.End | None = None
    started: wire.Started | None = None
    untold: float | None = None  # since when the leader has not been told that it started; None: it was
    ended: wire.Ended | None = None
    use: Use = msgspec.field(default_factory=Use)
    since: float = 0.0  # checking: when the probe was asked; ended: when the leader was told last
    pause: float = REPEAT_ENDED  # ended: seconds from then on until it is told again


FIRST_OPERATIONS = frozenset({"hello", "prepare", "go", "end", "signal", "forget", "shutdown"})
"""What a shepherd can do whose hello does not say it."""


class Shepherd(msgspec.Struct, frozen=True):
    pid: int
    peer_port: int
    journal: str = ""  # names what it remembers; empty: of a release that did not say
    operations: frozenset[str] = FIRST_OPERATIONS
    configuration: str = ""  # names what it was started with; empty: it did not say, and may stay
    dismissed: bool = False  # it was told to end as soon as it holds nothing


class State(msgspec.Struct, frozen=True):
    """Everything that the agent knows. ``hello`` holds what never changes; its lists are filled in when it is sent.

    ``over``: attempts that are finished or refused here, oldest first. ``obeyed``: the highest (timeline, term).
    """

    hello: wire.Hello
    clean_timeout: float
    configuration: str = ""  # of a shepherd that is started now; empty: each is as good as another
    gpus: Mapping[str, Slot] = msgspec.field(default_factory=dict)
    attempts: Mapping[str, Attempt] = msgspec.field(default_factory=dict)
    over: Mapping[str, wire.Refused | None] = msgspec.field(default_factory=dict)
    obeyed: tuple[int, int] = (0, 0)
    link: int | None = None
    welcomed: bool = False
    shepherd: Shepherd | None = None
    probe_asked: float = 0.0
    trouble: str | None = None  # by the health program; None: there is none, or it has not said anything yet
    faults: Mapping[str, Fault] = msgspec.field(default_factory=dict)  # by UUID, also of GPUs that are away
    figures_told: float = float("-inf")


class Draft:
    """The next state and the effects, in their order."""

    def __init__(self, state: State, now: float, boot: float) -> None:
        self.state = state
        self.now = now
        self.boot = boot
        self.effects: list[Effect] = []

    def _tell(self, message: wire.ToLeader) -> None:
        if self.state.welcomed and self.state.link is not None:
            self.effects.append(ToLeader(self.state.link, message))

    def _command(self, op: str, attempt: str, **more: Any) -> None:
        """What is said to no shepherd is said again at its hello; one of an earlier release may not know it."""
        if self.state.shepherd is not None and op in self.state.shepherd.operations:
            who = {} if op == "prepare" else {"attempt": attempt}
            self.effects.append(ToShepherd({"op": op} | who | more))

    def _command_end(self, end: wire.End) -> None:
        self._command("end", end.attempt, cause=end.cause, kill_delay=end.kill_delay, message=end.message)

    def _set(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)

    def _set_attempt(self, attempt: Attempt) -> None:
        self._set(attempts={**self.state.attempts, attempt.name: attempt})

    def _drop_attempt(self, name: str) -> None:
        self._set(attempts={n: a for n, a in self.state.attempts.items() if n != name})

    def _forget(self, attempt: Attempt, answer: wire.Refused | None) -> None:
        self._drop_attempt(attempt.name)
        self._set_over(attempt.name, answer)
        self._command("forget", attempt.name)

    def _set_over(self, name: str, answer: wire.Refused | None) -> None:
        over = dict(self.state.over)
        over.pop(name, None)
        if len(over) >= REMEMBERED:
            del over[next(iter(over))]
        over[name] = answer
        self._set(over=over)

    def _set_slots(self, slots: Iterable[Slot]) -> None:
        self._set(gpus={**self.state.gpus, **{s.told.uuid: s for s in slots}})

    def _set_gpu(self, slot: Slot, state: GpuState, note: str = "", *, keep: bool = False) -> None:
        """``keep``: the attempt goes on holding it. One with a fault is not given out again."""
        holder = slot.attempt if keep else None
        if slot.fault and state in (GpuState.FREE, GpuState.CLEANING):
            state = GpuState.QUARANTINED
        self._set_slots([replace(slot, state=state, attempt=holder, since=self.now, note=note)])
