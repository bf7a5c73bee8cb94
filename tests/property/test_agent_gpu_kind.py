"""Whatever the probe answers, and in whatever order: a node tells of GPUs of one kind, and a job keeps those it has."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hpcmesos import wire
from hpcmesos.agent.events import FromLeader, FromShepherd, LinkUp, ProbeReport, Reading, ToLeader
from hpcmesos.agent.inventory import Claims, Ours
from hpcmesos.agent.state import State
from hpcmesos.agent.state_machine import first_state, step
from hpcmesos.launch.control import OPERATIONS
from hpcmesos.model import MIG_FEATURE, GpuState

WHOLE = [wire.Gpu(uuid=f"GPU-{n}", index=n, model="g") for n in range(2)]
PARTS = [
    wire.Gpu(uuid=f"MIG-{n}", index=n, model="g", parent="GPU-cut", profile=profile, instance=(n, 0))
    for n, profile in enumerate(["1g.10gb", "1g.10gb", "3g.40gb", "3g.40gb", "3g.40gb"])
]
ANSWERS = st.lists(st.sets(st.sampled_from(range(len(WHOLE + PARTS)))), min_size=1, max_size=8)
SETTINGS = st.sampled_from(["auto", "uuid:GPU-cut,GPU-0", "mig:1g.10gb"])


@given(setting=SETTINGS, answers=ANSWERS, choice=st.integers(0, 9))
def test_one_kind_and_a_job_keeps_what_it_has(setting: str, answers: list[set[int]], choice: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        node = Node(Ours(setting, Claims(Path(directory) / "locks")))
        node.look(answers[0])
        node.look(answers[0])
        node.prepare(choice)
        for answer in answers:
            node.look(answer)
        node.ours.close()
    for inventory in node.told:
        cut = {gpu.profile for gpu in inventory.gpus}
        assert len(cut) < 2, "one kind"
        assert set(inventory.features) == {f"{MIG_FEATURE}{profile}" for profile in cut if profile}


class Node:
    """An agent that is linked, with what it has told of all it has."""

    def __init__(self, ours: Ours) -> None:
        self.ours = ours
        self.now = 100.0
        self.told: list[wire.Inventory] = []
        hello = wire.Hello(
            protocol=1, node="n", boot_id="b", address="a", peer_port=0, version="v",
            inventory=wire.Inventory(cpus=4, memory=1),
        )  # fmt: skip
        self.state: State = first_state(hello, 60.0, now=self.now)
        shepherd = {"event": "hello", "pid": 1, "peer_port": 7, "operations": OPERATIONS, "attempts": []}
        self.feed(FromShepherd(shepherd))
        self.feed(LinkUp(1))
        self.feed(FromLeader(1, wire.Welcome(protocol=1, cluster="c", timeline=1, term=1)))

    def feed(self, event: FromShepherd | LinkUp | FromLeader | ProbeReport) -> None:
        self.state, effects = step(self.state, event, self.now)
        messages = [effect.message for effect in effects if isinstance(effect, ToLeader)]
        self.told += [m.inventory for m in messages if isinstance(m, wire.Hello | wire.InventoryReport)]

    def look(self, answer: set[int]) -> None:
        """A probe that may be a new one answers with these."""
        self.now += 1.0
        found = [gpu for number, gpu in enumerate(WHOLE + PARTS) if number in answer]
        held = {uuid for attempt in self.state.attempts.values() for uuid in attempt.gpus}
        ours = self.ours.of(found, held)
        self.feed(ProbeReport(self.now, tuple(Reading(gpu) for gpu in found if gpu.uuid in ours)))
        for uuid in held & {gpu.uuid for gpu in found}:
            assert self.state.gpus[uuid].state is GpuState.ALLOCATED, "it answers, so it is not lost"

    def prepare(self, choice: int) -> None:
        """A job on one of its GPUs, if it has any."""
        free = [uuid for uuid, slot in self.state.gpus.items() if slot.state is GpuState.FREE]
        if free:
            members = [{"node": "n", "gpus": [{"uuid": free[choice % len(free)]}]}]
            spec = {"attempt": "1.h#1", "me": 0, "members": members}
            self.feed(FromLeader(1, wire.Prepare(attempt="1.h#1", spec=spec)))
            assert self.state.attempts
