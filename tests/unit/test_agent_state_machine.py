"""Single rules of the agent's machine that the property test cannot see from outside."""

from __future__ import annotations

from typing import Any

import pytest

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
    ProbeReport,
    ProbeSilent,
    Process,
    Reading,
    Remember,
    RememberFaults,
    ShepherdDown,
    Tick,
    ToLeader,
    ToShepherd,
)
from hpcmesos.agent.gpu_health import FAULT_CLEARS
from hpcmesos.agent.health import Fault
from hpcmesos.agent.state import REPEAT_ENDED
from hpcmesos.agent.state_machine import deadline, first_state, step
from hpcmesos.model import GpuState

CARD = wire.Gpu(uuid="GPU-0", index=0, model="g")
SHEPHERD = {"event": "hello", "pid": 1, "started_at": 0.0, "peer_port": 7, "attempts": []}
BOOT = 1000.0
"""What CLOCK_BOOTTIME is ahead of the agent's clock."""
ENDED = {"event": "ended", "attempt": "1.h#1", "head": True, "cause": "OK", "code": 0}


class Bench:
    """A machine with what it said since one last looked."""

    def __init__(self, obeyed: tuple[int, int] = (0, 0)) -> None:
        hello = wire.Hello(
            protocol=1, node="n", boot_id="b", address="a", peer_port=0, version="v",
            inventory=wire.Inventory(cpus=1, memory=1),
        )  # fmt: skip
        self.now = 100.0
        self.state = first_state(hello, 60.0, obeyed, self.now)
        self.effects: list[Effect] = []

    def feed(self, *events: Event) -> Bench:
        for event in events:
            self.state, effects = step(self.state, event, self.now, self.now + BOOT)
            self.effects += effects
        return self

    def told(self) -> list[wire.ToLeader]:
        messages = [e.message for e in self.effects if isinstance(e, ToLeader)]
        self.effects = [e for e in self.effects if not isinstance(e, ToLeader)]
        return messages

    def ops(self) -> list[str]:
        messages = [e.message["op"] for e in self.effects if isinstance(e, ToShepherd)]
        self.effects = [e for e in self.effects if not isinstance(e, ToShepherd)]
        return messages

    def look(self, *processes: Process, **changes: Any) -> Bench:
        return self.feed(ProbeReport(changes.pop("asked", self.now), (Reading(CARD, processes, **changes),)))

    def linked(self, link: int = 1, term: int = 5) -> Bench:
        welcome = wire.Welcome(protocol=1, cluster="c", timeline=1, term=term)
        return self.feed(LinkUp(link), FromLeader(link, welcome))

    def prepare(self, attempt: str = "1.h#1", *gpus: str, link: int = 1) -> Bench:
        members = [{"node": "n", "gpus": [{"uuid": u} for u in gpus]}]
        spec = {"attempt": attempt, "me": 0, "members": members}
        return self.feed(FromLeader(link, wire.Prepare(attempt=attempt, spec=spec)))


def ready(*gpus: str) -> Bench:
    """Shepherd, a clean card, a leader, and attempt 1.h#1 prepared."""
    bench = Bench().feed(FromShepherd(SHEPHERD)).look().linked().prepare("1.h#1", *gpus).look()
    bench.feed(FromShepherd({"event": "ready", "attempt": "1.h#1"}))
    bench.effects.clear()
    return bench


def test_messages_of_another_link_are_not_heard() -> None:
    bench = ready().feed(LinkDown(1)).linked(2)
    bench.effects.clear()
    bench.feed(FromLeader(1, wire.Go(attempt="1.h#1")))
    assert bench.effects == []


def test_nothing_is_obeyed_before_the_welcome() -> None:
    bench = Bench().feed(FromShepherd(SHEPHERD), LinkUp(1))
    bench.effects.clear()
    bench.prepare()
    assert bench.effects == [] and not bench.state.attempts


def test_the_pair_is_remembered_before_anything_is_done() -> None:
    bench = Bench((1, 4)).feed(FromShepherd(SHEPHERD)).linked(term=5)
    assert Remember(1, 5) in bench.effects
    bench.effects.clear()
    bench.linked(2, term=4)
    assert [type(e) for e in bench.effects if not isinstance(e, ToLeader)] == [CloseLink]


def test_a_higher_timeline_beats_a_higher_term() -> None:
    bench = Bench((2, 1)).feed(FromShepherd(SHEPHERD)).linked(term=9)
    assert not bench.state.welcomed and bench.state.obeyed == (2, 1)


def test_go_after_end_does_not_start() -> None:
    bench = ready()
    bench.feed(FromLeader(1, wire.End(attempt="1.h#1", cause="DELETED", kill_delay=1.0)))
    bench.feed(FromLeader(1, wire.Go(attempt="1.h#1")))
    assert bench.ops() == ["end"]


def test_how_far_an_attempt_is_is_told_again_on_a_new_link() -> None:
    bench = ready().feed(LinkDown(1)).linked(2)
    hello, again = bench.told()
    assert isinstance(hello, wire.Hello) and hello.attempts[0].phase == "ready"
    assert again == wire.Ready(attempt="1.h#1")


def test_an_end_is_told_again_in_time() -> None:
    bench = ready().feed(FromShepherd(ENDED))
    bench.told()
    assert deadline(bench.state) is not None
    bench.now += REPEAT_ENDED
    assert [type(m) for m in bench.feed(Tick()).told()] == [wire.Ended]


def test_an_end_that_no_leader_takes_is_told_ever_more_seldom_and_never_given_up() -> None:
    """Its database does not know the attempt, say."""
    bench = ready().feed(FromShepherd(ENDED))
    bench.told()
    for pause in (5, 10, 20, 40, 80, 160, 320, 600, 600):
        bench.now += pause - 0.1
        assert bench.feed(Tick()).told() == []
        bench.now += 0.1
        assert [type(m) for m in bench.feed(Tick()).told()] == [wire.Ended]
    bench.feed(LinkDown(1)).linked(2)
    assert [type(m) for m in bench.told()] == [wire.Hello, wire.Ended]
    bench.now += REPEAT_ENDED
    assert [type(m) for m in bench.feed(Tick()).told()] == [wire.Ended], "another leader may take it soon"


def test_what_was_asked_of_a_shepherd_is_asked_of_the_next_connection() -> None:
    bench = ready().feed(ShepherdDown())
    bench.feed(FromLeader(1, wire.Go(attempt="1.h#1")))
    assert bench.ops() == []
    held = {"attempt": "1.h#1", "phase": "ready", "head": True, "gpus": []}
    bench.feed(FromShepherd(SHEPHERD | {"attempts": [held]}))
    assert bench.ops() == ["go"]


def test_a_report_asked_for_before_the_end_does_not_clean() -> None:
    bench = ready("GPU-0")
    asked = bench.now
    bench.now += 1.0
    bench.feed(FromShepherd(ENDED)).look(asked=asked)
    assert bench.state.gpus["GPU-0"].state is GpuState.CLEANING
    assert bench.look().state.gpus["GPU-0"].state is GpuState.FREE


def test_the_leader_hears_of_the_dirt_before_the_end() -> None:
    kinds = [type(m) for m in ready("GPU-0").feed(FromShepherd(ENDED)).told()]
    assert kinds == [wire.GpuReport, wire.Ended]


def test_quarantine_names_the_process_and_ends_by_itself() -> None:
    bench = ready("GPU-0").feed(FromShepherd(ENDED)).look(Process(9, "eve"))
    bench.now += 60.0
    bench.feed(Tick())
    slot = bench.state.gpus["GPU-0"]
    assert (slot.state, slot.note) == (
        GpuState.QUARANTINED,
        "not clean after 60 s: process 9 of eve on it",
    )
    assert bench.look().state.gpus["GPU-0"].state is GpuState.FREE


def test_a_stranger_on_a_free_card_is_seen() -> None:
    bench = Bench().feed(FromShepherd(SHEPHERD)).look().linked().look(Process(9, "eve"))
    (report,) = [m for m in bench.told() if isinstance(m, wire.GpuReport)]
    assert (report.gpus[0].state, report.gpus[0].note) == ("cleaning", "process 9 of eve on it")


def test_a_lost_card_comes_back_through_cleaning() -> None:
    bench = Bench().feed(FromShepherd(SHEPHERD)).look().look(lost=True, error="gone")
    assert bench.state.gpus["GPU-0"].state is GpuState.LOST
    assert bench.look().state.gpus["GPU-0"].state is GpuState.CLEANING
    assert bench.look().state.gpus["GPU-0"].state is GpuState.FREE


def test_silent_nvml_is_quarantine_with_a_note_and_jobs_go_on() -> None:
    bench = ready("GPU-0").feed(ProbeSilent(8.0))
    slot = bench.state.gpus["GPU-0"]
    assert (slot.state, slot.note) == (GpuState.ALLOCATED, "NVML has not answered for 8 s")
    assert bench.ops() == []


def test_a_card_that_appears_late_is_told_with_the_inventory() -> None:
    bench = Bench().feed(FromShepherd(SHEPHERD)).linked()
    bench.told()
    (report,) = bench.look().told()
    assert isinstance(report, wire.InventoryReport)
    assert [g.state for g in report.inventory.gpus] == ["free"]


def test_a_second_attempt_of_a_job_waits_for_the_first_to_end() -> None:
    (refused,) = ready().prepare("1.h#2").told()
    assert isinstance(refused, wire.Refused)
    assert refused.reason == "node n: attempt 1.h#1 of the same job is still here"


def states(bench: Bench) -> list[tuple[str, str]]:
    """What the leader was told of the card, repetitions left out."""
    told = [
        gpu
        for m in bench.told()
        if isinstance(m, wire.GpuReport | wire.InventoryReport)
        for gpu in gpus_of(m)
    ]
    return [(gpu.state, gpu.note) for gpu in told]


def gpus_of(message: wire.GpuReport | wire.InventoryReport) -> tuple[wire.Gpu, ...]:
    return message.gpus if isinstance(message, wire.GpuReport) else message.inventory.gpus


def test_a_hardware_error_keeps_an_idle_card_out_of_use_until_it_has_not_come_back() -> None:
    bench = Bench().feed(FromShepherd(SHEPHERD)).look().linked()
    bench.look(xids=(43, 13))
    assert states(bench) == []
    bench.look(xids=(48,))
    assert states(bench) == [("quarantined", "XID 48: double-bit ECC error")]
    assert RememberFaults({"GPU-0": Fault("XID 48: double-bit ECC error")}) in bench.effects
    bench.now += FAULT_CLEARS - 1
    bench.look()
    assert bench.state.gpus["GPU-0"].state is GpuState.QUARANTINED
    bench.now += 1
    bench.look().look()
    assert bench.state.gpus["GPU-0"].state is GpuState.FREE
    assert bench.state.faults == {}


def test_a_hardware_error_under_a_job_counts_when_the_job_is_over() -> None:
    bench = ready("GPU-0").look(xids=(79,))
    assert bench.state.gpus["GPU-0"].state is GpuState.ALLOCATED
    bench.feed(FromShepherd(ENDED))
    assert bench.state.gpus["GPU-0"].state is GpuState.QUARANTINED


def test_rows_that_cannot_be_remapped_never_clear_by_themselves() -> None:
    bench = Bench().feed(FromShepherd(SHEPHERD)).look().linked()
    for _ in range(3):
        bench.now += FAULT_CLEARS
        bench.look(figures={"rows_failed": 1.0})
        assert bench.state.gpus["GPU-0"].state is GpuState.QUARANTINED


def test_what_an_operator_says_is_taken_back_by_an_operator_alone() -> None:
    bench = Bench().feed(FromShepherd(SHEPHERD)).look().linked()
    bench.feed(FromLeader(1, wire.SetGpu(uuid="GPU-0", fault="fan")))
    bench.now += 2 * FAULT_CLEARS
    bench.look(xids=(48,)).look()
    slot = bench.state.gpus["GPU-0"]
    assert (slot.state, slot.now.note) == (GpuState.QUARANTINED, "fan")
    bench.feed(FromLeader(1, wire.SetGpu(uuid="GPU-0"))).look()
    assert bench.state.gpus["GPU-0"].state is GpuState.FREE


def part(name: str, profile: str = "3g.40gb") -> wire.Gpu:
    return wire.Gpu(uuid=name, index=0, model="g", parent="GPU-cut", profile=profile, instance=(1, 0))


def see(bench: Bench, *gpus: wire.Gpu, **changes: Any) -> Bench:
    return bench.feed(ProbeReport(bench.now, tuple(Reading(gpu, **changes) for gpu in gpus)))


def state_of(bench: Bench, uuid: str) -> tuple[GpuState, str]:
    slot = bench.state.gpus[uuid]
    return slot.state, slot.now.note


def test_a_word_about_a_card_holds_for_instances_that_come_later() -> None:
    bench = see(Bench().feed(FromShepherd(SHEPHERD)).linked(), part("MIG-1"), part("MIG-2"))
    bench.feed(FromLeader(1, wire.SetGpu(uuid="GPU-cut", fault="fan")))
    fan = Fault("fan", clears=False)
    assert bench.state.faults == {"GPU-cut": fan, "MIG-1": fan, "MIG-2": fan}
    see(bench, part("MIG-3"))
    see(bench, part("MIG-3"))
    assert state_of(bench, "MIG-3") == (GpuState.QUARANTINED, "fan")
    bench.feed(FromLeader(1, wire.SetGpu(uuid="GPU-cut")))
    assert bench.state.faults == {}
    see(bench, part("MIG-3"), part("MIG-4"))
    see(bench, part("MIG-3"), part("MIG-4"))
    assert state_of(bench, "MIG-3") == state_of(bench, "MIG-4") == (GpuState.FREE, "")


def test_an_error_of_a_card_holds_for_instances_that_come_later() -> None:
    bench = see(Bench(), part("MIG-1"), xids=(48,))
    faults = bench.state.faults
    assert set(faults) == {"MIG-1", "GPU-cut"}
    again = Bench()
    again.state = first_state(again.state.hello, 60.0, now=again.now, faults=faults)
    see(again, part("MIG-2"))
    assert state_of(again, "MIG-2") == (GpuState.QUARANTINED, "XID 48: double-bit ECC error")
    again.now += FAULT_CLEARS
    see(see(again, part("MIG-2")), part("MIG-2"), part("MIG-3"))
    see(again, part("MIG-2"), part("MIG-3"))
    assert state_of(again, "MIG-2") == state_of(again, "MIG-3") == (GpuState.FREE, "")


def test_a_word_about_one_instance_is_not_about_the_others() -> None:
    bench = see(Bench().feed(FromShepherd(SHEPHERD)).linked(), part("MIG-1"))
    bench.feed(FromLeader(1, wire.SetGpu(uuid="MIG-1", fault="odd")))
    see(see(bench, part("MIG-1"), part("MIG-2")), part("MIG-1"), part("MIG-2"))
    assert state_of(bench, "MIG-1")[0] is GpuState.QUARANTINED
    assert state_of(bench, "MIG-2")[0] is GpuState.FREE


def test_a_layout_of_before_names_no_feature() -> None:
    bench = see(Bench().feed(FromShepherd(SHEPHERD)).linked(), part("MIG-1"))
    see(bench, part("MIG-2", "1g.10gb"))
    bench.told()
    (hello,) = bench.feed(LinkDown(1)).linked(2).told()
    assert isinstance(hello, wire.Hello)
    assert hello.inventory.features == ("mig-1g.10gb",)
    see(bench)
    (hello,) = (m for m in bench.feed(LinkDown(2)).linked(3).told() if isinstance(m, wire.Hello))
    assert hello.inventory.features, "lost instances are no whole cards"


@pytest.mark.parametrize(("gpu", "more", "what"), [("MIG-1", {}, "MIG"), ("GPU-0", {"mps": True}, "MPS")])
def test_a_shepherd_of_an_earlier_release_gets_no_work_that_it_would_do_wrong(
    gpu: str, more: dict[str, Any], what: str
) -> None:
    def prepared(*operations: str) -> list[wire.ToLeader]:
        bench = Bench().feed(FromShepherd(SHEPHERD | {"operations": ["prepare", *operations]}))
        see(see(bench, CARD, part("MIG-1")).linked(), CARD, part("MIG-1")).told()
        spec = {"attempt": "1.h#1", "me": 0, "members": [{"node": "n", "gpus": [{"uuid": gpu}]}]} | more
        bench.feed(FromLeader(1, wire.Prepare(attempt="1.h#1", spec=spec)))
        return bench.told()

    (refused,) = prepared()
    assert isinstance(refused, wire.Refused) and refused.culprit == "n"
    assert refused.reason == (
        f"node n: its shepherd is of an earlier release, without {what}: once it has no job,"
        " 'kill 1' there makes way for a new one"
    )
    assert prepared("instances", "mps") == []


def test_what_a_job_uses_is_counted_and_told_with_its_end() -> None:
    bench = ready("GPU-0").look(figures={"energy": 1000.0, "utilization": 99.0})
    bench.feed(FromShepherd({"event": "started", "attempt": "1.h#1", "pid": 1, "started_at": 0.0}))
    for busy, memory, energy in ((20.0, 5e9, 1300.0), (60.0, 3e9, 1500.0)):
        bench.now += 10.0
        bench.look(figures={"energy": energy, "utilization": busy, "memory_used": memory})
    (figures,) = [m for m in bench.told() if isinstance(m, wire.GpuFigures)][-1:]
    use = {
        "samples": 2.0,
        "busy": 2.0,
        "busy_sum": 80.0,
        "busy_max": 60.0,
        "memory_max": 5e9,
        "energy": 500.0,
    }
    assert figures.uses == {"1.h#1": use}
    bench.feed(FromShepherd(ENDED))
    (ended,) = [m for m in bench.told() if isinstance(m, wire.Ended)]
    assert ended.usage == {f"gpu_{name}": value for name, value in use.items()}


def test_what_the_health_program_says_is_told_once_and_again_to_a_new_leader() -> None:
    bench = Bench().feed(FromShepherd(SHEPHERD)).linked()
    bench.told()
    bench.feed(HealthReport("no fan"), HealthReport("no fan"))
    assert bench.told() == [wire.NodeHealth(trouble="no fan")]
    bench.feed(LinkDown(1)).linked(2)
    assert wire.NodeHealth(trouble="no fan") in bench.told()
    assert bench.feed(HealthReport("")).told() == [wire.NodeHealth(trouble="")]


def test_an_end_that_the_agent_makes_says_when() -> None:
    """It may have to wait for a leader, and the loss counts from when it was seen."""
    bench = ready("GPU-0").feed(LinkDown(1))
    bench.feed(ShepherdDown())
    bench.now += 5.0
    bench.feed(FromShepherd(SHEPHERD | {"pid": 2}))
    seen = bench.now
    bench.now += 60.0
    bench.effects.clear()
    bench.linked(2)
    (ended,) = [message for message in bench.told() if isinstance(message, wire.Ended)]
    assert (ended.cause, ended.ended_boot) == ("NODE_LOST", seen + BOOT)


def test_a_shepherd_of_other_settings_ends_once_it_holds_nothing() -> None:
    def asked(bench: Bench) -> list[dict[str, Any]]:
        said = [effect.message for effect in bench.effects if isinstance(effect, ToShepherd)]
        return [message for message in said if message["op"] == "shutdown"]

    bench = Bench()
    bench.state = first_state(bench.state.hello, 60.0, now=bench.now, configuration="new")
    report = {"attempt": "1.h#1", "phase": "running", "head": True, "gpus": []}
    bench.feed(FromShepherd(SHEPHERD | {"configuration": "old", "attempts": [report]}))
    assert asked(bench) == []
    bench.linked().feed(FromShepherd(ENDED))
    assert asked(bench) == []  # the leader has not heard of the end
    bench.feed(FromLeader(1, wire.Acknowledged(attempt="1.h#1")), Tick())
    assert asked(bench) == [{"op": "shutdown", "force": False}]
    bench.feed(ShepherdDown(), FromShepherd(SHEPHERD | {"configuration": "new"}), Tick())
    assert len(asked(bench)) == 1
