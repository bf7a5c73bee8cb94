"""The agent as a process on a node with cards (the fake NVML): they go to jobs clean, and only if they are there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcmesos import wire
from tests.nvml.plugin import FakeNvml

from . import daemon_kit as kit
from .daemon_kit import WAITS, Leader, Node, begin, release, spec

directory = kit.directory
fifo = kit.fifo
leader = kit.leader


@pytest.fixture
def with_cards(directory: Path, leader: Leader) -> Iterator[Node]:
    """``auto``: all cards that NVML shows."""
    node = Node(directory, leader, gpus="auto")
    yield node
    node.end()


def card(name: str, **changes: Any) -> dict[str, Any]:
    """One that no other test of this host claims."""
    return {"uuid": f"GPU-{os.getpid()}-{name}"} | changes


def test_a_foreign_process_refuses_the_attempt_by_name(
    with_cards: Node, leader: Leader, fake_nvml: FakeNvml
) -> None:
    a, b = card("a"), card("b")
    with_cards.environ = fake_nvml([a, b])
    with_cards.start()
    assert [g.state for g in leader.expect(wire.Hello).inventory.gpus] == ["free", "free"]
    fake_nvml([a, b | {"processes": {os.getpid(): 1}}])
    leader.say(wire.Prepare(attempt="7.hpcm#1", spec=spec("7.hpcm#1", (a["uuid"], b["uuid"]))))
    (dirty,) = leader.expect(wire.GpuReport).gpus
    assert (dirty.uuid, dirty.state) == (b["uuid"], "cleaning")
    refused = leader.expect(wire.Refused)
    assert refused.culprit == "node1"
    assert f"GPU 1 ({b['uuid']}) is not clean: process {os.getpid()}" in refused.reason
    fake_nvml([a, b])
    (clean,) = leader.expect(wire.GpuReport).gpus
    assert (clean.uuid, clean.state) == (b["uuid"], "free")


def test_a_lost_card_ends_its_attempt_and_costs_one_card(
    with_cards: Node, leader: Leader, fake_nvml: FakeNvml, fifo: Path
) -> None:
    a, b = card("a"), card("b")
    with_cards.environ = fake_nvml([a, b])
    with_cards.start()
    leader.expect(wire.Hello)
    begin(leader, (a["uuid"],), WAITS.format(fifo=fifo))
    fake_nvml([a | {"lost": True}, b])
    (lost,) = leader.expect(wire.GpuReport).gpus
    assert (lost.uuid, lost.state) == (a["uuid"], "lost")
    report = leader.expect(wire.Ended)
    assert report.cause == "GPU_LOST" and a["uuid"] in report.message
    leader.say(wire.Prepare(attempt="8.hpcm#1", spec=spec("8.hpcm#1", (b["uuid"],))))
    assert leader.expect(wire.Ready).attempt == "8.hpcm#1"


def test_a_card_is_free_only_when_nothing_computes_on_it(
    with_cards: Node, leader: Leader, fake_nvml: FakeNvml, fifo: Path
) -> None:
    a = card("a")
    with_cards.environ = fake_nvml([a])
    with_cards.start()
    leader.expect(wire.Hello)
    begin(leader, (a["uuid"],), WAITS.format(fifo=fifo))
    fake_nvml([a | {"processes": {os.getpid(): 1}}])
    release(fifo)
    assert leader.expect(wire.GpuReport).gpus[0].state == "cleaning"
    assert leader.expect(wire.Ended).code == 3
    leader.say(wire.Acknowledged(attempt="7.hpcm#1"))
    leader.say(wire.Prepare(attempt="8.hpcm#1", spec=spec("8.hpcm#1", (a["uuid"],))))
    assert "is cleaning" in leader.expect(wire.Refused).reason
    fake_nvml([a])
    leader.expect(wire.GpuReport, lambda r: r.gpus[0].state == "free")


def test_one_card_belongs_to_one_agent_of_the_host(
    with_cards: Node, leader: Leader, fake_nvml: FakeNvml, directory: Path
) -> None:
    a, b = card("a"), card("b")
    with_cards.environ = fake_nvml([a, b])
    with_cards.start()
    assert len(leader.expect(wire.Hello).inventory.gpus) == 2
    other = Node(
        directory, leader, node="node2", state=directory / "state2", sockets=directory / "s2", gpus="auto"
    )
    other.log = directory / "other.log"
    other.environ = with_cards.environ
    try:
        other.start()
        assert leader.expect(wire.Hello).inventory.gpus == ()
        assert f"GPU {a['uuid']} belongs to another agent of this host" in other.output()
    finally:
        other.end()


@pytest.mark.full  # the quick one is in test_agent_gpus.py
def test_a_blocked_card_does_not_block_the_agent(
    with_cards: Node, leader: Leader, fake_nvml: FakeNvml
) -> None:
    a = card("a")
    with_cards.environ = fake_nvml([a])
    with_cards.start()
    leader.expect(wire.Hello)
    fake_nvml([a], hang=["nvmlDeviceGetComputeRunningProcesses_v3"])
    leader.say(wire.Prepare(attempt="7.hpcm#1", spec=spec("7.hpcm#1", (a["uuid"],))))
    leader.say(wire.Prepare(attempt="8.hpcm#1", spec=spec("8.hpcm#1")))
    assert leader.expect(wire.Ready).attempt == "8.hpcm#1"
    (silent,) = leader.expect(wire.GpuReport).gpus
    assert (silent.state, silent.note) == ("quarantined", "NVML has not answered for 8 s")
    refused = leader.expect(wire.Refused)
    assert refused.attempt == "7.hpcm#1" and "NVML has not answered" in refused.reason
    fake_nvml([a])
    assert leader.expect(wire.GpuReport).gpus[0].state == "free"
