"""Attempts that the database does not know, or not as their nodes do: after a restore, or under the next leader."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hpcmesos import wire
from hpcmesos.model import GpuState, JobState
from tests.integration.leader_kit import Bench, ended, hello, kinds, report, request

if TYPE_CHECKING:
    pass

pytest_plugins = ["tests.integration.database_kit", "tests.integration.leader_kit"]


def a_job_on_one_of_two(bench: Bench) -> tuple[int, str, str, str]:
    """The job, its node, the other node, and the attempt that runs."""
    bench.up("node1", "node2")
    seq = bench.submit()
    bench.turn()
    (node,) = bench.run(seq)
    return seq, node, "node1" if node == "node2" else "node2", bench.attempt(seq)


def test_an_unknown_attempt_is_left_alone(bench: Bench) -> None:
    held = wire.AttemptReport(attempt="77.hpcm#1", phase="running", head=True, gpus=("SIM-node1-0",))
    sent = bench.turn(bench.link_up(hello("node1", attempts=[held])))
    assert sent == []
    assert bench.node("node1").gpus[0].state is GpuState.UNKNOWN_ATTEMPT
    assert bench.say(("node1", ended("77.hpcm#1"))) == []
    seq = bench.submit(request(1, 2))
    assert bench.turn() == []
    assert (bench.why(seq) or ("", ""))[0] == "insufficient"


def test_nothing_starts_beside_an_attempt_that_the_database_does_not_know(bench: Bench) -> None:
    bench.up("node1")
    bench.down("node1")
    seq = bench.submit()
    bench.turn()
    bench.up("node1", attempts=[report(f"{seq}.hpcm#2", "running"), report(f"{seq + 500}.hpcm#1", "running")])
    assert bench.state(seq) is JobState.QUEUED, "its number is in use on the node"
    assert bench.submit() > seq + 500
    bench.say(("node1", ended(f"{seq}.hpcm#2")))
    bench.turn()
    assert bench.attempt(seq) == f"{seq}.hpcm#3"
    assert bench.state(seq) is JobState.RUNNING


def test_an_unknown_attempt_that_its_node_no_longer_holds_blocks_nothing(bench: Bench) -> None:
    seq = bench.submit()
    bench.up("node1", attempts=[report(f"{seq}.hpcm#1", "running")])
    assert bench.state(seq) is JobState.QUEUED
    bench.down("node1")
    bench.up("node1", boot="boot2")
    assert bench.state(seq) is JobState.RUNNING


def test_an_end_that_an_earlier_leader_took_is_not_one_of_an_unknown_attempt(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Its acknowledgement was lost, and the head goes on."""
    bench.up("node1", "node2")
    seq = bench.submit(request(2))
    bench.turn()
    head, member = bench.run(seq)
    attempt = bench.attempt(seq)
    bench.say((member, ended(attempt, head=False)))
    bench.take_over()
    bench.up(head, attempts=[report(attempt, "running")])
    bench.up(member, attempts=[report(attempt, "ended", head=False)])
    sent = bench.say((member, ended(attempt, head=False)))
    assert sent == [(member, wire.Acknowledged(attempt=attempt))]
    assert "unknown attempt" not in caplog.text
    bench.say((head, ended(attempt)))
    assert bench.job(seq).exit_status == 0


def test_the_end_of_an_earlier_attempt_of_the_same_name_is_left_with_its_node(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """After a restore: the job was started anew elsewhere, under the number that this node had."""
    seq, node, other, attempt = a_job_on_one_of_two(bench)
    assert bench.say((other, ended(attempt))) == []
    assert f"unknown attempt node={other} attempt={attempt} phase=ended" in caplog.text
    assert bench.state(seq) is JobState.RUNNING
    assert bench.say((node, ended(attempt))) == [(node, wire.Acknowledged(attempt=attempt))]


def test_an_unknown_attempt_that_ends_once_it_is_known_as_over_blocks_nothing(bench: Bench) -> None:
    """After a restore: the job was started anew under a number that a node holds that was away."""
    seq, node, other, attempt = a_job_on_one_of_two(bench)
    bench.down(other)
    bench.up(other, attempts=[report(attempt, "running")])
    bench.wish("rerun", seq)
    bench.say((node, ended(attempt, "PREEMPTED")))
    bench.pass_time(60)
    assert bench.state(seq) is JobState.QUEUED
    bench.say((other, ended(attempt)))
    assert bench.attempt(seq) == f"{seq}.hpcm#2"


def test_a_job_waits_for_its_unknown_attempt_though_the_known_one_is_over(bench: Bench) -> None:
    """After a restore: the known attempt was followed by another one, which its node holds."""
    bench.up("node1", "node2")
    seq = bench.submit()
    bench.turn()
    bench.run(seq)
    stranger = f"{seq}.hpcm#2"
    bench.take_over()
    bench.up("node2", attempts=[report(stranger, "running")])
    assert kinds(bench.up("node1", boot="boot2")) == []
    assert bench.state(seq) is JobState.QUEUED
    assert bench.pass_time(60) == []
    bench.say(("node2", ended(stranger)))
    bench.turn()
    assert bench.attempt(seq) == f"{seq}.hpcm#3"
