"""The agent as a process with the real shepherd, which outlives it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from hpcmesos import wire
from hpcmesos.agent.control import living, stop_shepherd

from . import daemon_kit as kit
from .daemon_kit import WAITS, Leader, Node, release, running, spec

directory = kit.directory
fifo = kit.fifo
leader = kit.leader
node = kit.node


def test_true_exit_arrives_after_the_agent_was_killed(node: Node, leader: Leader, fifo: Path) -> None:
    gpus = running(node, leader, WAITS.format(fifo=fifo))
    assert node.stop(signal.SIGKILL) == -signal.SIGKILL
    node.start()
    hello = leader.expect(wire.Hello)
    assert [(a.attempt, a.phase, a.head, a.gpus) for a in hello.attempts] == [
        ("7.hpcm#1", "running", True, gpus)
    ]
    assert [g.state for g in hello.inventory.gpus] == ["allocated", "allocated"]
    leader.say(wire.Prepare(attempt="8.hpcm#1", spec=spec("8.hpcm#1", gpus[:1])))
    assert "is allocated by 7.hpcm#1" in leader.expect(wire.Refused).reason
    release(fifo)
    assert [g.state for g in leader.expect(wire.GpuReport).gpus] == ["free", "free"]
    report = leader.expect(wire.Ended)
    assert (report.attempt, report.head, report.cause, report.code) == ("7.hpcm#1", True, "APP", 3)
    leader.say(wire.Acknowledged(attempt="7.hpcm#1"))
    leader.say(wire.Prepare(attempt="8.hpcm#2", spec=spec("8.hpcm#2", gpus[:1])))
    assert leader.expect(wire.Ready).attempt == "8.hpcm#2"


def test_end_while_the_agent_was_away_is_reported(node: Node, leader: Leader, fifo: Path) -> None:
    running(node, leader, WAITS.format(fifo=fifo))
    assert node.stop() == 0
    release(fifo)
    node.start()
    leader.expect(wire.Hello)
    assert leader.expect(wire.Ended).code == 3


def test_a_killed_shepherd_is_replaced_and_its_attempt_is_lost(
    node: Node, leader: Leader, fifo: Path
) -> None:
    running(node, leader, WAITS.format(fifo=fifo))
    before = living(node.settings)
    assert before
    os.kill(before, signal.SIGKILL)
    hello = leader.expect(wire.Hello)
    assert hello.shepherd_pid not in (0, before)
    report = leader.expect(wire.Ended)
    assert (report.attempt, report.cause, report.code) == ("7.hpcm#1", "NODE_LOST", None)


def test_a_shepherd_of_other_settings_is_replaced_once_its_jobs_are_over(
    node: Node, leader: Leader, fifo: Path
) -> None:
    gpus = running(node, leader, WAITS.format(fifo=fifo))
    before = living(node.settings)
    assert node.stop() == 0
    node.environ["HPCMESOS_GANG_SILENCE"] = "25"
    node.start()
    assert leader.expect(wire.Hello).shepherd_pid == before
    release(fifo)
    assert leader.expect(wire.Ended).code == 3
    assert living(node.settings) == before
    leader.say(wire.Acknowledged(attempt="7.hpcm#1"))
    assert leader.expect(wire.Hello).shepherd_pid not in (0, before)
    leader.say(wire.Prepare(attempt="8.hpcm#1", spec=spec("8.hpcm#1", gpus)))
    assert leader.expect(wire.Ready).attempt == "8.hpcm#1"


def test_end_signal_and_delete(node: Node, leader: Leader, fifo: Path) -> None:
    running(node, leader, WAITS.format(fifo=fifo))
    leader.say(wire.End(attempt="7.hpcm#1", cause="DELETED", kill_delay=1.0))
    report = leader.expect(wire.Ended)
    assert (report.cause, report.signal) == ("DELETED", signal.SIGTERM)


def test_stop_shepherd_waits_for_attempts_unless_forced(node: Node, leader: Leader, fifo: Path) -> None:
    running(node, leader, WAITS.format(fifo=fifo))
    assert stop_shepherd(node.settings, force=False) is False
    assert node.stop() == 0
    assert living(node.settings) is not None
    assert stop_shepherd(node.settings, force=True) is True
    assert living(node.settings) is None


def test_end_for_an_attempt_that_is_not_here_is_answered(node: Node, leader: Leader) -> None:
    node.start()
    leader.expect(wire.Hello)
    leader.say(wire.End(attempt="9.hpcm#1", cause="DELETED", kill_delay=1.0))
    report = leader.expect(wire.Ended)
    assert (report.attempt, report.cause) == ("9.hpcm#1", "DELETED")
    assert report.message == "node node1 holds nothing of 9.hpcm#1"


def test_cgroups_are_used_where_they_can_be_and_go_with_the_shepherd(
    directory: Path, leader: Leader, fifo: Path
) -> None:
    node = Node(directory, leader, cgroups="auto")
    try:
        running(node, leader, WAITS.format(fifo=fifo))
        cgroup = json.loads((node.settings.state / "shepherd.json").read_text())["cgroup"]
        assert cgroup is None or list(Path(cgroup).glob("*/cgroup.procs"))
        leader.say(wire.End(attempt="7.hpcm#1", cause="DELETED", kill_delay=1.0))
        assert leader.expect(wire.Ended).cause == "DELETED"
    finally:
        node.end()
    assert cgroup is None or not Path(cgroup).exists()
