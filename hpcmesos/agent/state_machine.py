"""What an agent does, without doing it: ``step(state, event, now)`` -> (new state, effects).

The agent decides little: it relays between the leader and the shepherd, answers for the cleanliness of its GPUs, and
repeats every end until the leader has it in the database. Nothing here ends an attempt because somebody is silent.

The rules lie upon each other: `state.Draft`, `gpu_health`, `attempts`, `readings`, and here what the leader and the
shepherd say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from hpcmesos import wire
from hpcmesos.agent.events import (
    CloseLink,
    Effect,
    Event,
    FromLeader,
    FromShepherd,
    HealthReport,
    LinkDown,
    LinkUp,
    Note,
    ProbeReport,
    ProbeSilent,
    Remember,
    ShepherdDown,
    Tick,
    ToLeader,
    ToShepherd,
)
from hpcmesos.agent.health import Fault
from hpcmesos.agent.readings import Readings
from hpcmesos.agent.state import (
    FIRST_OPERATIONS,
    LONGEST_REPEAT,
    NEVER_TOLD,
    Attempt,
    Phase,
    Shepherd,
    Slot,
    State,
)
from hpcmesos.model import MIG_FEATURE, Cause, GpuState

CHECK_TIMEOUT = 10.0  # s that NVML has to answer before PREPARE is refused
TELL_STARTED = 0.2  # s that a start is kept back when nobody waits for it: a short script is over by then
LOOK_WHILE_CLEANING = 0.5  # s between two questions to the probe while a GPU is being cleaned
LOOK_WHEN_IDLE = 10.0  # s between two questions otherwise
_PARTS_OF_SPECS = {"instances": "MIG", "mps": "MPS"}
"""Those that a shepherd may not understand, by the word of its hello that says that it does."""


def first_state(
    hello: wire.Hello,
    clean_timeout: float,
    obeyed: tuple[int, int] = (0, 0),
    now: float = 0.0,
    faults: Mapping[str, Fault] | None = None,
    configuration: str = "",
) -> State:
    """The state of an agent that has just started, with its simulated GPUs; real ones come with the probe's report.

    ``faults``: what was remembered of GPUs, by UUID. ``configuration``: the name of a shepherd's that starts now.
    """
    known = faults or {}
    gpus = {}
    for gpu in hello.inventory.gpus:
        fault = known.get(gpu.uuid)
        state = GpuState.QUARANTINED if fault else GpuState.FREE
        gpus[gpu.uuid] = Slot(gpu, state, fault=fault, fault_at=now)
    return State(hello, clean_timeout, configuration, gpus, obeyed=obeyed, probe_asked=now, faults=known)


def step(state: State, event: Event, now: float, boot: float = 0.0) -> tuple[State, list[Effect]]:
    """The one entry. ``now``: seconds on any clock that never goes back; ``boot``: the same moment by CLOCK_BOOTTIME
    (0: not known), for ends that are made here.
    """
    work = _Step(state, now, boot)
    work.on(event)
    return work.finish()


def deadline(state: State) -> float | None:
    """When the next ``Tick`` is due; None: not before the next event."""
    times = []
    for attempt in state.attempts.values():  # one look at each, for this is asked after every event
        if attempt.phase is Phase.CHECKING:
            times.append(attempt.since + CHECK_TIMEOUT)
        elif state.welcomed and attempt.phase is Phase.ENDED:
            times.append(attempt.since + attempt.pause)
        elif state.welcomed and attempt.untold is not None:
            times.append(attempt.untold + TELL_STARTED)
    real = [s for s in state.gpus.values() if not s.told.simulated]
    times += [s.since + state.clean_timeout for s in real if s.state is GpuState.CLEANING]
    if real:
        times.append(state.probe_asked + _look_interval(state.gpus.values()))
    return min(times, default=None)


def _look_interval(slots: Iterable[Slot]) -> float:
    return LOOK_WHILE_CLEANING if any(s.state is GpuState.CLEANING for s in slots) else LOOK_WHEN_IDLE


def _is_late(attempt: Attempt, now: float) -> bool:
    """Whether the leader has to hear of its start now."""
    untold = attempt.untold if attempt.phase is not Phase.ENDED else None
    return untold is not None and now >= untold + TELL_STARTED


def _job(attempt: str) -> str:
    return attempt.rpartition("#")[0]


class _Step(Readings):
    """One event's way through the rules."""

    def on(self, event: Event) -> None:
        match event:
            case FromLeader(link, message):
                self._on_leader(link, message)
            case FromShepherd(message):
                self._on_shepherd(message)
            case LinkUp(link):
                self._set(link=link, welcomed=False)
                self._say_hello(link)
            case LinkDown(link):
                if link == self.state.link:
                    self._set(link=None, welcomed=False)
            case ShepherdDown():
                self._set(shepherd=None)
            case ProbeReport(asked, readings):
                self._on_probe(asked, readings)
            case ProbeSilent(seconds):
                self._on_probe_silent(seconds)
            case HealthReport(trouble):
                if trouble != self.state.trouble:
                    self._set(trouble=trouble)
                    self._tell(wire.NodeHealth(trouble=trouble))
            case Tick():
                self._on_tick()

    def finish(self) -> tuple[State, list[Effect]]:
        """The leader hears of changed GPUs first: an end must not show as free what is not clean."""
        self._dismiss_old_shepherd()
        changed = self._untold()
        if changed and self.state.welcomed and self.state.link is not None:
            report: wire.ToLeader = wire.GpuReport(gpus=tuple(s.now for s in changed))
            if any(s.told.state == NEVER_TOLD for s in changed):
                report = wire.InventoryReport(inventory=self._inventory())
                changed = list(self.state.gpus.values())
            self._set_slots(replace(s, told=s.now) for s in changed)
            place = next(
                (i for i, e in enumerate(self.effects) if isinstance(e, ToLeader)), len(self.effects)
            )
            self.effects.insert(place, ToLeader(self.state.link, report))
        return self.state, self.effects

    def _dismiss_old_shepherd(self) -> None:
        """One of another release, or of settings that have changed, ends once it holds nothing; ours is started then.

        What it is asked to prepare in its last moment it serves to the end, or the next one is asked again.
        """
        shepherd, wanted = self.state.shepherd, self.state.configuration
        if shepherd is None or shepherd.dismissed or self.state.attempts:
            return
        if wanted and shepherd.configuration and shepherd.configuration != wanted:
            self.effects.append(ToShepherd({"op": "shutdown", "force": False}))
            self._set(shepherd=replace(shepherd, dismissed=True))

    def _untold(self) -> list[Slot]:
        """GPUs of which the leader should hear; that it has given one to an attempt it knows itself."""
        return [
            s
            for s in self.state.gpus.values()
            if s.now != s.told and (s.state is not GpuState.ALLOCATED or s.told.state == NEVER_TOLD)
        ]

    def _inventory(self) -> wire.Inventory:
        """What a layout of before has left behind names no feature, unless there is nothing else."""
        gpus = tuple(s.now for s in self.state.gpus.values())
        inventory = self.state.hello.inventory
        there = [gpu for gpu in gpus if gpu.state != GpuState.LOST] or gpus
        profiles = dict.fromkeys(f"{MIG_FEATURE}{gpu.profile}" for gpu in there if gpu.profile)
        return replace(inventory, gpus=gpus, features=(*inventory.features, *profiles))

    def _on_tick(self) -> None:
        for attempt in list(self.state.attempts.values()):
            if attempt.phase is Phase.CHECKING and self.now >= attempt.since + CHECK_TIMEOUT:
                self._refuse_checking(attempt, f"NVML has not answered for {CHECK_TIMEOUT:.0f} s")
            elif attempt.phase is Phase.ENDED and self.now >= attempt.since + attempt.pause:
                self._repeat(attempt, pause=min(2 * attempt.pause, LONGEST_REPEAT))
            elif _is_late(attempt, self.now):
                self._tell_started(attempt.name)
        for slot in list(self.state.gpus.values()):
            if (
                slot.state is GpuState.CLEANING
                and not slot.told.simulated
                and self.now >= slot.since + self.state.clean_timeout
            ):
                note = f"not clean after {self.state.clean_timeout:.0f} s: {slot.note or 'no answer of NVML'}"
                self.effects.append(Note(f"GPU {slot.told.index} ({slot.told.uuid}) is {note}"))
                self._set_gpu(slot, GpuState.QUARANTINED, note)
        real = any(not s.told.simulated for s in self.state.gpus.values())
        if real and self.now >= self.state.probe_asked + _look_interval(self.state.gpus.values()):
            self._ask_probe()

    # --- the leader ------------------------------------------------------------------------------------------

    def _say_hello(self, link: int) -> None:
        state = self.state
        self._set_slots(replace(s, told=s.now) for s in state.gpus.values())
        hello = replace(
            state.hello,
            inventory=self._inventory(),
            attempts=tuple(_report(a) for a in state.attempts.values()),
            seen_term=state.obeyed[1],
            peer_port=state.shepherd.peer_port if state.shepherd else 0,
            journal=state.shepherd.journal if state.shepherd else "",
            shepherd_pid=state.shepherd.pid if state.shepherd else 0,
        )
        self.effects.append(ToLeader(link, hello))

    def _on_leader(self, link: int, message: wire.ToAgent) -> None:
        if link != self.state.link:
            return
        if isinstance(message, wire.Welcome):
            self._on_welcome(link, message)
        elif self.state.welcomed:
            match message:
                case wire.Prepare():
                    self._on_prepare(message)
                case wire.Go():
                    self._on_go(message)
                case wire.End():
                    self._on_end(message)
                case wire.Signal():
                    if message.attempt in self.state.attempts:
                        self._command("signal", message.attempt, signal=message.signal)
                case wire.Alter():
                    if message.attempt in self.state.attempts:
                        given = {
                            "walltime": message.walltime,
                            "streams": message.streams,
                            "text": message.text,
                            "suspended": message.suspended,
                        }
                        self._command("alter", message.attempt, **given)
                case wire.SetGpu():
                    self._on_set_gpu(message)
                case wire.Acknowledged():
                    self._on_acknowledged(message.attempt)

    def _on_welcome(self, link: int, welcome: wire.Welcome) -> None:
        pair = (welcome.timeline, welcome.term)
        if pair < self.state.obeyed:
            reason = f"an old leader: timeline {pair[0]} term {pair[1]}, obeyed {self.state.obeyed}"
            self._set(link=None, welcomed=False)
            self.effects.append(CloseLink(link, reason))
            return
        if pair > self.state.obeyed:
            self.effects.append(Remember(*pair))
        self._set(obeyed=pair, welcomed=True)
        if self.state.trouble is not None:
            self._tell(wire.NodeHealth(trouble=self.state.trouble))
        for attempt in self.state.attempts.values():
            self._repeat(attempt)

    def _on_prepare(self, message: wire.Prepare) -> None:
        name = message.attempt
        if known := self.state.attempts.get(name):
            self._repeat(known)
            return
        if name in self.state.over:
            self._tell(
                self.state.over[name] or self._refused(name, "this attempt is already over on this node")
            )
            return
        spec = message.spec
        members, me = spec["members"], spec["me"]
        gpus = tuple(g["uuid"] for g in members[me].get("gpus", ()))
        if reason := self._why_not(name, members[me]["node"], gpus) or self._why_too_old(spec, gpus):
            self._refuse(name, reason)
            return
        attempt = Attempt(name, Phase.CHECKING, me == 0, gpus, spec, since=self.now)
        self._set_attempt(attempt)
        self._set_slots(
            replace(self.state.gpus[u], state=GpuState.ALLOCATED, attempt=name, since=self.now, note="")
            for u in gpus
        )
        if all(self.state.gpus[u].told.simulated for u in gpus):
            self._prepare(attempt)
        else:
            self._ask_probe()

    def _why_not(self, name: str, node: str, gpus: tuple[str, ...]) -> str:
        """Why PREPARE is refused at once; empty: it is not."""
        if node != self.state.hello.node:
            return f"it is meant for node {node}"
        if self.state.shepherd is None:
            return "its shepherd does not run"
        job = f"{_job(name)}#"
        for other in self.state.attempts.values():
            if other.name.startswith(job) and other.phase is not Phase.ENDED:
                return f"attempt {other.name} of the same job is still here"
        for uuid in gpus:
            slot = self.state.gpus.get(uuid)
            if slot is None:
                return f"it has no GPU {uuid}"
            if slot.state is not GpuState.FREE:
                holder = f" by {slot.attempt}" if slot.attempt else ""
                note = f": {slot.note}" if slot.note else ""
                return f"GPU {slot.told.index} ({uuid}) is {slot.state.value}{holder}{note}"
        return ""

    def _why_too_old(self, spec: Mapping[str, Any], gpus: tuple[str, ...]) -> str:
        """Why the shepherd, which may be of an earlier release, would do it wrong; empty: it would not."""
        asked = {
            "instances": any(self.state.gpus[uuid].told.parent for uuid in gpus),
            "mps": bool(spec.get("mps") and gpus),
        }
        shepherd = self.state.shepherd
        known = shepherd.operations if shepherd else asked
        what = next((_PARTS_OF_SPECS[word] for word in asked if asked[word] and word not in known), "")
        if not (shepherd and what):
            return ""
        return (
            f"its shepherd is of an earlier release, without {what}: once it has no job,"
            f" 'kill {shepherd.pid}' there makes way for a new one"
        )

    def _on_go(self, message: wire.Go) -> None:
        attempt = self.state.attempts.get(message.attempt)
        if attempt is None:
            self._tell_unknown(message.attempt, Cause.NODE_LOST)
        elif attempt.phase in (Phase.CHECKING, Phase.PREPARING, Phase.READY) and attempt.end is None:
            self._set_attempt(replace(attempt, go=True))
            if attempt.phase is not Phase.CHECKING:
                self._command("go", attempt.name)
        else:
            self._repeat(attempt)

    def _on_acknowledged(self, name: str) -> None:
        attempt = self.state.attempts.get(name)
        if attempt is not None and attempt.phase is Phase.ENDED:
            self._forget(attempt, None)

    # --- the shepherd ------------------------------------------------------------------------------------------

    def _on_shepherd(self, message: dict[str, Any]) -> None:
        attempt = self.state.attempts.get(message.get("attempt", ""))
        match message.get("event"):
            case "hello":
                self._on_shepherd_hello(message)
            case "ready" if attempt and attempt.phase is Phase.PREPARING:
                self._set_attempt(replace(attempt, phase=Phase.READY))
                self._tell(wire.Ready(attempt=attempt.name))
            case "refused" if attempt and attempt.phase is not Phase.ENDED:
                refused = self._refused(attempt.name, message["reason"], message["culprit"])
                self._release(attempt, dirty=False)
                self._tell(refused)
                self._forget(attempt, refused)
            case "started" if attempt and attempt.phase is not Phase.ENDED:
                started = msgspec.convert(message, wire.Started)
                phase = Phase.ENDING if attempt.end else Phase.RUNNING
                self._set_attempt(replace(attempt, phase=phase, started=started, untold=self.now))
                if not (attempt.spec and attempt.spec.get("go")):
                    self._tell_started(attempt.name)
            case "ended":
                self._on_ended(attempt, msgspec.convert(message, wire.Ended))
            case "unknown" if attempt and attempt.phase is not Phase.ENDED:
                self._end_here(attempt, Cause.NODE_LOST, "the shepherd does not know this attempt")

    def _on_shepherd_hello(self, message: dict[str, Any]) -> None:
        shepherd = Shepherd(
            message["pid"],
            message["peer_port"],
            message.get("journal", ""),
            frozenset(message.get("operations", FIRST_OPERATIONS)),
            message.get("configuration", ""),
        )
        if self.state.link is not None:
            self.effects.append(CloseLink(self.state.link, "another shepherd: the leader has to be told"))
            self._set(link=None, welcomed=False)
        self._set(shepherd=shepherd)
        reports = msgspec.convert(message["attempts"], list[wire.AttemptReport])
        held = {r.attempt for r in reports}
        for report in reports:
            self._take_over(report)
        for attempt in self.state.attempts.values():
            if attempt.name in held or attempt.phase in (Phase.CHECKING, Phase.ENDED):
                continue
            if attempt.phase is Phase.PREPARING and attempt.spec is not None:
                self._command("prepare", attempt.name, spec=self._with_minors(attempt))
            else:
                self._end_here(attempt, Cause.NODE_LOST, "the shepherd does not know this attempt any more")

    def _take_over(self, report: wire.AttemptReport) -> None:
        """Brings what a (new) shepherd holds and what we know of it together."""
        name = report.attempt
        if name in self.state.over:
            self._command("forget", name)
            return
        phase = Phase.ENDING if report.phase == Phase.ENDED else Phase(report.phase)
        attempt = self.state.attempts.get(name)
        if attempt is None:
            attempt = Attempt(name, phase, report.head, report.gpus)
            self._set_attempt(attempt)
            self._set_slots(
                replace(s, state=GpuState.ALLOCATED, attempt=name, since=self.now, note="")
                for u in report.gpus
                if (s := self.state.gpus.get(u)) and s.state is not GpuState.LOST
            )
        elif attempt.phase is not Phase.ENDED and report.phase != Phase.ENDED:
            self._set_attempt(replace(attempt, phase=Phase.ENDING if attempt.end else phase))
            if attempt.end is not None:
                self._command_end(attempt.end)
            elif attempt.go and phase in (Phase.PREPARING, Phase.READY):
                self._command("go", name)


def _report(attempt: Attempt) -> wire.AttemptReport:
    phase = Phase.PREPARING if attempt.phase is Phase.CHECKING else attempt.phase
    return wire.AttemptReport(attempt=attempt.name, phase=phase.value, head=attempt.head, gpus=attempt.gpus)
