"""The agent's machine between a leader behind a bad network and a shepherd that may die, on a virtual clock.

The model's network loses whole links with what was under way on them, delivers twice and out of order. The model's
shepherd keeps what the contract says that it keeps, and counts what it starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hpcmesos import wire
from hpcmesos.agent.events import (
    AskProbe,
    CloseLink,
    Event,
    FromLeader,
    FromShepherd,
    LinkDown,
    LinkUp,
    ProbeReport,
    Process,
    Reading,
    Remember,
    RememberFaults,
    ShepherdDown,
    Tick,
    ToLeader,
    ToShepherd,
)
from hpcmesos.agent.health import Fault
from hpcmesos.agent.state import Phase, State
from hpcmesos.agent.state_machine import deadline, first_state, step
from hpcmesos.launch.control import OPERATIONS
from hpcmesos.model import GpuState

CARD = "GPU-cut"  # in MIG mode: what befalls it befalls both of its instances
PARTS = tuple(
    wire.Gpu(uuid=f"MIG-{i}", index=i, model="g", parent=CARD, profile="3g.40gb", instance=(i, 0))
    for i in range(4, 6)
)
REAL = (*(wire.Gpu(uuid=f"GPU-{i}", index=i, model="g") for i in range(2)), *PARTS)
SIMULATED = tuple(wire.Gpu(uuid=f"SIM-{i}", index=i, model="s", simulated=True) for i in range(2, 4))
GPUS = REAL + SIMULATED
JOBS = ("1.h", "2.h", "3.h")


def hello() -> wire.Hello:
    inventory = wire.Inventory(cpus=4, memory=1, gpus=SIMULATED)
    return wire.Hello(
        protocol=1, node="n", boot_id="b", address="a", peer_port=0, version="v", inventory=inventory
    )


@dataclass
class Held:
    """An attempt in the model's shepherd."""

    phase: str
    gpus: tuple[str, ...]
    ended: dict[str, Any] | None = None


@dataclass
class Shepherd:
    """What outlives the agent; ``journal`` outlives the shepherd too. ``runs``: how often each script was started."""

    pid: int = 1
    journal: dict[str, Held] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)

    def obey(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        name = message.get("attempt") or message["spec"]["attempt"]
        held = self.journal.get(name)
        if message["op"] == "prepare" and held is None:
            spec = message["spec"]
            gpus = tuple(g["uuid"] for g in spec["members"][0]["gpus"])
            self.journal[name] = Held("ready", gpus)
            return [{"event": "ready", "attempt": name}]
        if message["op"] == "forget":
            if held and held.ended:
                del self.journal[name]
            return []
        if held is None:
            return [{"event": "unknown", "attempt": name}]
        if message["op"] == "go" and held.phase == "ready":
            held.phase = "running"
            self.runs[name] = self.runs.get(name, 0) + 1
        if message["op"] == "end" and held.ended is None:
            return [self.end(name, message["cause"])]
        return self.events(name)

    def end(self, name: str, cause: str) -> dict[str, Any]:
        held = self.journal[name]
        held.phase = "ended"
        held.ended = {"event": "ended", "attempt": name, "head": True, "cause": cause}
        return held.ended

    def events(self, name: str) -> list[dict[str, Any]]:
        held = self.journal[name]
        if held.ended:
            return [held.ended]
        found = [{"event": "ready", "attempt": name}]
        if held.phase == "running":
            found.append({"event": "started", "attempt": name, "pid": 1, "started_at": 0.0})
        return found

    def hello(self) -> list[dict[str, Any]]:
        reports = [
            {"attempt": n, "phase": h.phase, "head": True, "gpus": list(h.gpus)}
            for n, h in self.journal.items()
        ]
        first = {
            "event": "hello",
            "pid": self.pid,
            "started_at": 0.0,
            "peer_port": self.pid,
            "operations": OPERATIONS,
            "attempts": reports,
        }
        return [first, *(e for n in self.journal for e in self.events(n))]


class AgentBetweenTwo(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.disk = (0, 0)
        self.shepherd = Shepherd()
        self.shepherd_up = False
        self.link = 0
        self.to_agent: list[tuple[int, wire.ToAgent]] = []
        self.to_leader: list[wire.ToLeader] = []
        self.foreign: set[str] = set()
        self.lost: set[str] = set()
        self.xids: dict[str, tuple[int, ...]] = {}
        self.faults: dict[str, Fault] = {}  # on disk
        self.number = dict.fromkeys(JOBS, 0)
        self.current: dict[str, str] = {}  # the leader's live attempts, by job
        self.over: set[str] = set()  # ends that the leader has in its database
        self.known: set[str] = set()
        self.state: State = first_state(hello(), 60.0, self.disk, self.now)

    @initialize()
    def begin(self) -> None:
        self.feed(ProbeReport(self.now, self.readings()))
        self.shepherd_comes()
        self.link_comes(0)

    # --- plumbing ------------------------------------------------------------------------------------------------

    def feed(self, event: Event) -> None:
        self.state, effects = step(self.state, event, self.now)
        for effect in effects:
            match effect:
                case ToShepherd(message) if self.shepherd_up:
                    for answer in self.shepherd.obey(message):
                        self.feed(FromShepherd(msgspec.json.decode(msgspec.json.encode(answer))))
                case ToLeader(link, message) if link == self.link:
                    self.to_leader.append(message)
                case Remember(timeline, term):
                    assert (timeline, term) > self.disk
                    self.disk = (timeline, term)
                case RememberFaults(faults):
                    self.faults = dict(faults)
                case CloseLink(link, _) if link == self.link:
                    self.link_breaks()
                case AskProbe():
                    pass

    def readings(self) -> tuple[Reading, ...]:
        busy = (Process(9, "eve"),)
        xids, self.xids = self.xids, {}
        return tuple(
            Reading(
                g,
                busy if g.uuid in self.foreign else (),
                lost=g.uuid in self.lost,
                xids=xids.get(g.parent or g.uuid, ()),
            )
            for g in REAL
        )

    def running_on(self) -> dict[str, list[str]]:
        """Who the shepherd runs on which GPU."""
        users: dict[str, list[str]] = {}
        for name, held in self.shepherd.journal.items():
            if held.phase == "running":
                for uuid in held.gpus:
                    users.setdefault(uuid, []).append(name)
        return users

    # --- what the network does -----------------------------------------------------------------------------------

    @precondition(lambda self: not self.shepherd_up or self.state.link is None)
    @rule(term=st.sampled_from([0, 0, 0, -1, 1]))
    def recovery(self, term: int) -> None:
        if not self.shepherd_up:
            self.shepherd_comes()
        self.link_comes(term)

    def link_comes(self, term: int) -> None:
        """A leader of the same, a lower or a higher term answers; what was said on the last link may still come."""
        self.to_leader.clear()
        self.link += 1
        self.feed(LinkUp(self.link))
        pair = (1, max(1, self.disk[1] + term))
        number = self.link
        before = self.disk
        welcome = wire.Welcome(protocol=1, cluster="c", timeline=1, term=pair[1])
        self.feed(FromLeader(number, welcome))
        assert self.state.welcomed == (pair >= before)

    def link_breaks(self) -> None:
        number, self.link = self.link, self.link + 1
        self.to_leader.clear()
        self.feed(LinkDown(number))

    @precondition(lambda self: self.to_agent or self.to_leader)
    @rule(turns=st.sampled_from([3, 2, 1]), again=st.booleans())
    def all_is_delivered(self, turns: int, again: bool) -> None:
        """In order, as on most days; each turn is a way there and back. ``again``: all of it will come once more."""
        for _ in range(turns):
            sent = list(self.to_agent)
            if not again:
                self.to_agent.clear()
            for link, message in sent:
                self.feed(FromLeader(link, message))
            self.feed(ProbeReport(self.now, self.readings()))
            told, self.to_leader = self.to_leader, []
            for answer in told:
                self.leader_hears(answer)

    @precondition(lambda self: self.to_agent or self.to_leader)
    @rule(data=st.data(), keep=st.booleans())
    def one_is_delivered(self, data: st.DataObject, keep: bool) -> None:
        """Any one, early or late; ``keep``: it comes once more."""
        place = data.draw(st.integers(0, len(self.to_agent) + len(self.to_leader) - 1))
        if place < len(self.to_agent):
            link, message = self.to_agent[place] if keep else self.to_agent.pop(place)
            self.feed(FromLeader(link, message))
        else:
            place -= len(self.to_agent)
            self.leader_hears(self.to_leader[place] if keep else self.to_leader.pop(place))

    def leader_hears(self, message: wire.ToLeader) -> None:
        match message:
            case wire.Ready(attempt=name) if name not in self.over:
                self.say(wire.Go(attempt=name))
            case wire.Ended(attempt=name) | wire.Refused(attempt=name):
                held = self.shepherd.journal.get(name)
                assert held is None or held.ended, f"{name} is told as over while it is {held}"
                self.over.add(name)
                self.current.pop(name.partition("#")[0], None)
                if isinstance(message, wire.Ended):
                    self.say(wire.Acknowledged(attempt=name))

    def say(self, message: wire.ToAgent) -> None:
        self.to_agent.append((self.link, message))

    # --- what the leader does ------------------------------------------------------------------------------------

    @rule(job=st.sampled_from(JOBS), gpus=st.sets(st.sampled_from([g.uuid for g in GPUS]), max_size=2))
    def leader_prepares(self, job: str, gpus: set[str]) -> None:
        """Also on GPUs that are not free, as a leader with a wrong view would."""
        if job in self.current or self.state.link is None:
            return
        self.number[job] += 1
        name = f"{job}#{self.number[job]}"
        self.current[job] = name
        self.known.add(name)
        members = [{"node": "n", "gpus": [{"uuid": u} for u in sorted(gpus)]}]
        self.say(wire.Prepare(attempt=name, spec={"attempt": name, "me": 0, "members": members}))

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def leader_ends(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.known)))
        self.say(wire.End(attempt=name, cause="DELETED", kill_delay=1.0))

    @rule(gpu=st.sampled_from([CARD, *(g.uuid for g in GPUS)]), fault=st.sampled_from(["", "fan"]))
    def operator_says(self, gpu: str, fault: str) -> None:
        self.say(wire.SetGpu(uuid=gpu, fault=fault))

    # --- what the node does --------------------------------------------------------------------------------------

    @precondition(lambda self: any(h.ended is None for h in self.shepherd.journal.values()))
    @rule(data=st.data())
    def script_exits(self, data: st.DataObject) -> None:
        live = sorted(n for n, h in self.shepherd.journal.items() if h.phase == "running")
        if live:
            event = self.shepherd.end(data.draw(st.sampled_from(live)), "OK")
            if self.shepherd_up:
                self.feed(FromShepherd(event))

    def shepherd_comes(self) -> None:
        self.shepherd_up = True
        for message in self.shepherd.hello():
            self.feed(FromShepherd(message))

    @precondition(lambda self: self.shepherd_up and self.state.link is not None)
    @rule(what=st.sampled_from(["", "", "", "link", "link", "shepherd", "death", "agent"]))
    def disaster(self, what: str) -> None:
        if what == "link":
            self.link_breaks()
        elif what == "agent":
            self.agent_restarts()
        elif what:
            self.shepherd_goes(dies=what == "death")

    def shepherd_goes(self, dies: bool) -> None:
        """The connection breaks; if the shepherd died, the next one finds its attempts lost."""
        self.shepherd_up = False
        if dies:
            self.shepherd.pid += 1
            for name, held in self.shepherd.journal.items():
                if held.ended is None:
                    self.shepherd.end(name, "NODE_LOST")
        self.feed(ShepherdDown())

    def agent_restarts(self) -> None:
        """kill -9 and a new one; what lay on the network for the old links never reaches it."""
        self.state = first_state(hello(), 60.0, self.disk, self.now, self.faults)
        self.to_agent.clear()
        self.to_leader.clear()
        self.link += 1
        self.shepherd_up = False
        self.feed(ProbeReport(self.now, self.readings()))
        self.shepherd_comes()

    @rule(
        card=st.sampled_from([g.uuid for g in REAL]),
        what=st.sampled_from(["", "foreign", "lost", "card lost", "application", "hardware"]),
        seconds=st.sampled_from([0.1, 1.0, 10.0, 70.0, 4000.0]),
        stale=st.booleans(),
    )
    def time_passes(self, card: str, what: str, seconds: float, stale: bool) -> None:
        """A card changes, the probe answers (late, when ``stale``), timers run."""
        asked = self.now
        if what in ("application", "hardware"):
            parent = next(g.parent for g in REAL if g.uuid == card)
            self.xids[parent or card] = (43,) if what == "application" else (48,)
        elif what == "card lost":
            self.lost.symmetric_difference_update({g.uuid for g in PARTS})
        elif what:
            cards = self.foreign if what == "foreign" else self.lost
            cards.symmetric_difference_update({card})
        self.now += seconds
        self.feed(ProbeReport(asked if stale else self.now, self.readings()))
        if what == "hardware" and card in {g.uuid for g in PARTS}:
            assert all(self.state.gpus[g.uuid].fault for g in PARTS), (
                "the card's fault is that of its instances"
            )
        due = deadline(self.state)
        if due is not None and due <= self.now:
            self.feed(Tick())

    # --- promises ------------------------------------------------------------------------------------------------

    @invariant()
    def an_attempt_runs_once(self) -> None:
        assert all(count == 1 for count in self.shepherd.runs.values()), self.shepherd.runs

    @invariant()
    def no_gpu_runs_two_attempts(self) -> None:
        assert all(len(users) == 1 for users in self.running_on().values()), self.running_on()

    @invariant()
    def every_gpu_is_in_one_state(self) -> None:
        if len(self.state.gpus) == len(GPUS):
            counts = [sum(s.state is state for s in self.state.gpus.values()) for state in GpuState]
            assert sum(counts) == len(GPUS)
        for slot in self.state.gpus.values():
            assert (slot.state is GpuState.ALLOCATED) <= (slot.attempt in self.state.attempts)
            if slot.attempt is not None:
                assert slot.state in (GpuState.ALLOCATED, GpuState.LOST)

    @invariant()
    def what_has_a_fault_is_not_given_out(self) -> None:
        """And it is remembered."""
        for uuid, slot in self.state.gpus.items():
            assert slot.fault is None or slot.state not in (GpuState.FREE, GpuState.CLEANING), slot
            assert self.faults.get(uuid) == slot.fault

    @invariant()
    def what_runs_is_held(self) -> None:
        """A GPU under a running attempt is not given away."""
        for uuid, users in self.running_on().items():
            slot = self.state.gpus.get(uuid)
            if slot is not None:
                assert slot.state in (GpuState.ALLOCATED, GpuState.LOST), (uuid, users, slot)

    @invariant()
    def no_end_is_forgotten(self) -> None:
        """What ended and is not in the leader's database is still known here."""
        if self.shepherd_up:
            for name, held in self.shepherd.journal.items():
                if held.ended and name not in self.over:
                    assert self.state.attempts[name].phase is Phase.ENDED

    def teardown(self) -> None:
        """On a good network all ends arrive, and all healthy GPUs become free."""
        if not self.state.gpus:
            return
        if not self.shepherd_up:
            self.shepherd_comes()
        self.foreign.clear()
        self.lost.clear()
        self.to_agent.clear()
        for name, held in list(self.shepherd.journal.items()):
            if held.ended is None:
                self.feed(FromShepherd(self.shepherd.end(name, "OK")))
        self.link_comes(0)
        for gpu in GPUS:
            self.feed(FromLeader(self.link, wire.SetGpu(uuid=gpu.uuid)))
        for _ in range(3):
            self.now += 11.0
            self.feed(Tick())
            self.feed(ProbeReport(self.now, self.readings()))
            for message in list(self.to_leader):
                if isinstance(message, wire.Ended):
                    self.feed(FromLeader(self.link, wire.Acknowledged(attempt=message.attempt)))
        assert self.state.attempts == {}
        assert self.shepherd.journal == {}
        assert {s.state for s in self.state.gpus.values()} == {GpuState.FREE}


AgentBetweenTwo.TestCase.settings = settings(
    max_examples=600, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAgentBetweenTwo = AgentBetweenTwo.TestCase
