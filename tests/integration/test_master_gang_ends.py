"""How gangs end that lose a part or are told to: when the job may start again, and who is to blame."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hpcmesos import wire
from hpcmesos.model import Cause, JobState
from tests.integration.leader_kit import Bench, ended, hello, kinds, report, request

if TYPE_CHECKING:
    pass

pytest_plugins = ["tests.integration.database_kit", "tests.integration.leader_kit"]


def test_a_lost_node_requeues_a_gang_away_from_it(bench: Bench) -> None:
    seq, first = bench.gang("node1", "node2", "node3")
    bench.down("node2")
    bench.pass_time(16)
    assert not bench.node("node2").up
    sent = bench.say(("node1", ended(first, "NODE_LOST", culprit="node2", message="silent for 20 s")))
    assert kinds(sent) == [("node1", "Acknowledged")]
    job = bench.job(seq)
    assert (job.state, job.charged_attempts, job.excluded) == (JobState.QUEUED, 1, ("node2",))
    assert bench.pass_time(20) == []
    assert kinds(bench.pass_time(11)) == [("node1", "Prepare"), ("node3", "Prepare")]
    sent = bench.turn(bench.link_up(hello("node2", attempts=[report(first, "running", head=False)])))
    assert [(node, message.cause) for node, message in sent] == [("node2", "NODE_LOST")]  # type: ignore[union-attr]  # of a kind that has it
    bench.say(("node2", ended(first, "NODE_LOST", head=False)))
    assert bench.node("node2").cpus_used == 0


@pytest.mark.parametrize("lost", ["node1", "node3"])
def test_what_is_left_of_a_lost_gang_has_to_hurry(bench: Bench, lost: str) -> None:
    """It is over 30 s later, when its job may start elsewhere, however long the kill_delay is."""
    bench.gang("node1", "node2", "node3", size=3, rerunable=False)
    bench.down(lost)
    sent = bench.wish("node", None, node=lost, action="gone")
    assert {message.kill_delay for _, message in sent if isinstance(message, wire.End)} == {5.0}


def test_a_silent_head_is_given_up_when_its_members_are(bench: Bench) -> None:
    seq, first = bench.gang("node1", "node2", rerunable=False)
    bench.down("node1")
    bench.say(("node2", ended(first, "NODE_LOST", head=False, culprit="node1", message="silent")))
    assert bench.state(seq) is JobState.RUNNING
    bench.pass_time(31)
    job = bench.job(seq)
    assert (job.state, job.exit_status, job.cause) == (JobState.COMPLETE, -3, Cause.NODE_LOST)


@pytest.mark.parametrize("again", [False, True], ids=["same leader", "after a takeover"])
def test_a_deleted_gang_is_over_though_its_head_never_says_so(bench: Bench, again: bool) -> None:
    seq, attempt = bench.gang("node1", "node2")
    bench.down("node1")  # its host is dead, and its members do not know it yet
    bench.wish("delete", seq)
    bench.say(("node2", ended(attempt, "DELETED", head=False)))
    if again:
        bench.take_over()
        bench.up("node2")
    bench.pass_time(30)
    assert bench.state(seq) is JobState.EXITING, "it may have heard of the deletion, and take its time"
    bench.pass_time(bench.settings.kill_delay)
    job = bench.job(seq)
    assert (job.state, job.exit_status, job.cause) == (JobState.COMPLETE, 271, Cause.DELETED)


@pytest.mark.parametrize("again", [False, True], ids=["same leader", "after a takeover"])
def test_a_preempted_gang_waits_again_though_its_head_never_says_that_it_is_over(
    bench: Bench, again: bool
) -> None:
    seq, attempt = bench.gang("node1", "node2", "node3")
    bench.down("node1")
    bench.wish("rerun", seq)
    bench.say(("node2", ended(attempt, "PREEMPTED", head=False)))
    if again:
        bench.take_over()
        bench.up("node2", "node3")
    bench.pass_time(30)
    bench.pass_time(bench.settings.kill_delay)
    job = bench.job(seq)
    assert (job.state, job.charged_attempts) == (JobState.QUEUED, 0), "it may run on its old head still"
    bench.pass_time(31)
    assert bench.attempt(seq) == f"{seq}.hpcm#2"


def test_a_head_that_was_away_before_the_end_has_its_whole_kill_delay(bench: Bench) -> None:
    """It hears of the end by a member, and its script then has as long as every other."""
    seq, attempt = bench.gang("node1", "node2", "node3")
    bench.down("node1")
    bench.pass_time(360)
    bench.wish("rerun", seq, kill_delay=300)
    bench.say(("node2", ended(attempt, "PREEMPTED", head=False)))
    bench.pass_time(31)
    bench.pass_time(298)
    assert bench.state(seq) is JobState.RUNNING
    bench.pass_time(2)
    assert bench.state(seq) is JobState.QUEUED
    bench.pass_time(31)
    assert bench.attempt(seq) == f"{seq}.hpcm#2"


def test_a_member_that_has_just_ended_may_have_told_its_head_just_now(bench: Bench) -> None:
    seq, attempt = bench.gang("node1", "node2", "node3")
    bench.down("node1")
    bench.down("node2")
    bench.wish("rerun", seq, kill_delay=10)
    bench.take_over()
    bench.up("node3")
    bench.pass_time(39)
    sent = bench.turn(bench.link_up(hello("node2", attempts=[report(attempt, "ready", head=False)])))
    assert kinds(sent) == [("node2", "End")]
    bench.say(("node2", ended(attempt, "PREEMPTED", head=False)))
    bench.pass_time(2)
    bench.pass_time(37)
    assert bench.state(seq) is JobState.RUNNING
    bench.pass_time(2)
    assert bench.state(seq) is JobState.QUEUED


@pytest.mark.parametrize("again", [False, True], ids=["same leader", "after a takeover"])
def test_a_preempted_gang_starts_again_when_no_part_can_run_any_more(bench: Bench, again: bool) -> None:
    """Ranks of a member may take the kill_delay, though the script has ended at once."""
    seq, _ = bench.gang("node1", "node2", "node3")
    bench.down("node2")
    bench.wish("rerun", seq, kill_delay=300)
    bench.say(("node1", ended(bench.attempt(seq), "PREEMPTED", signal=15)))
    if again:
        bench.take_over()
        bench.up("node1", "node3")
    bench.pass_time(31)
    bench.pass_time(298)
    assert bench.state(seq) is JobState.QUEUED
    assert kinds(bench.pass_time(2)) == [("node1", "Prepare"), ("node3", "Prepare")]


def test_a_part_of_a_preempted_gang_has_its_kill_delay_under_the_next_leader_too(bench: Bench) -> None:
    seq, attempt = bench.gang("node1", "node2")
    bench.down("node2")
    bench.wish("rerun", seq, kill_delay=300)
    bench.say(("node1", ended(attempt, "PREEMPTED", signal=15)))
    bench.take_over()
    sent = bench.turn(bench.link_up(hello("node2", attempts=[report(attempt, "ready", head=False)])))
    (told,) = [message for _, message in sent if isinstance(message, wire.End)]
    assert (told.cause, told.kill_delay) == ("PREEMPTED", 300)


def test_what_an_earlier_attempt_waited_for_lets_no_later_one_start(bench: Bench) -> None:
    bench.up("node1", "node2", "node3")
    seq = bench.submit(request(2))
    bench.turn()
    for later in (False, True):
        head, member = bench.run(seq)
        attempt = bench.attempt(seq)
        bench.wish("rerun", seq, kill_delay=0)
        bench.say((head, ended(attempt, "PREEMPTED", signal=9)))
        if not later:
            bench.pass_time(20)
            bench.say((member, ended(attempt, "PREEMPTED", head=False)))
            assert bench.state(seq) is JobState.RUNNING
    bench.pass_time(29)
    assert bench.state(seq) is JobState.QUEUED
    bench.pass_time(2)
    assert bench.attempt(seq) == f"{seq}.hpcm#3"


def test_a_gang_that_was_over_before_it_was_told_waits_for_its_head_under_the_next_leader_too(
    bench: Bench,
) -> None:
    seq, attempt = bench.gang("node1", "node2")
    bench.down("node1")
    bench.say(("node2", ended(attempt, "OK", head=False)))
    bench.wish("rerun", seq)
    bench.take_over()
    bench.up("node2")
    bench.pass_time(30)
    bench.pass_time(3600)
    assert bench.state(seq) is JobState.RUNNING
    bench.up("node1", attempts=[report(attempt, "ended")])
    bench.say(("node1", ended(attempt)))
    assert bench.job(seq).exit_status == 0


def test_a_gang_that_ended_by_itself_waits_for_the_word_of_its_head(bench: Bench) -> None:
    """Its agent may be stopped for long: its shepherd knows how the script ended."""
    seq, attempt = bench.gang("node1", "node2")
    bench.down("node1")
    bench.wish("rerun", seq)
    bench.say(("node2", ended(attempt, "OK", head=False)))
    bench.pass_time(3600)
    assert bench.state(seq) is JobState.RUNNING
    bench.up("node1", attempts=[report(attempt, "ended")])
    bench.say(("node1", ended(attempt)))
    assert bench.job(seq).exit_status == 0


@pytest.mark.parametrize(("nodes", "culprit"), [(2, "node1"), (3, "node3")])
def test_a_head_and_a_member_accuse_each_other(bench: Bench, nodes: int, culprit: str) -> None:
    """The head of three hears another member: it knows who is silent, whoever speaks first."""
    names = [f"node{number}" for number in range(1, nodes + 1)]
    bench.up(*names)
    seq = bench.submit(request(nodes), rerunable=False)
    bench.turn()
    bench.run(seq)
    attempt, last = bench.attempt(seq), names[-1]
    bench.say((last, ended(attempt, "NODE_LOST", head=False, culprit="node1", message="node1 is silent")))
    bench.say(("node1", ended(attempt, "NODE_LOST", culprit=last, message=f"{last} is silent")))
    (record,) = bench.store.attempts([seq])
    assert record.culprit == culprit


@pytest.mark.parametrize("cause", ["START_FAILED", "OOM"])
@pytest.mark.parametrize("again", [False, True], ids=["same leader", "after a takeover"])
def test_a_member_that_fell_waits_for_no_lost_head(bench: Bench, cause: str, again: bool) -> None:
    seq, _ = bench.gang("node1", "node2", "node3")
    bench.down("node1")
    bench.say(("node2", ended(bench.attempt(seq), cause, head=False, culprit="node1", message="no")))
    if again:
        bench.take_over()
        bench.up("node2", "node3")
    bench.pass_time(29)
    assert bench.state(seq) is JobState.RUNNING, "its head has not been silent for long, and may end it still"
    bench.pass_time(2)
    (record,) = bench.store.attempts([seq])
    assert (record.cause, record.culprit) == (Cause(cause), "node1")
    assert bench.state(seq) is (JobState.QUEUED if cause == "START_FAILED" else JobState.COMPLETE)


@pytest.mark.parametrize("cause", ["START_FAILED", "OOM"])
def test_the_others_hurry_whatever_a_member_fell_of(bench: Bench, cause: str) -> None:
    seq, _ = bench.gang("node1", "node2", "node3", size=3)
    sent = bench.say(("node3", ended(bench.attempt(seq), cause, head=False, message="no")))
    assert {message.kill_delay for _, message in sent if isinstance(message, wire.End)} == {5.0}


@pytest.mark.parametrize("how", ["denied", "OOM"])
def test_a_member_that_is_over_otherwise_than_by_a_wish_is_over_all_the_same(bench: Bench, how: str) -> None:
    seq, _ = bench.gang("node1", "node2")
    bench.down("node1")
    if how == "denied":
        bench.down("node2")
    bench.wish("delete", seq)
    if how == "denied":
        bench.up("node2", boot="boot2")
    else:
        bench.say(("node2", ended(bench.attempt(seq), "OOM", head=False)))
    bench.pass_time(30)
    assert bench.state(seq) is JobState.EXITING
    bench.pass_time(bench.settings.kill_delay)
    assert (bench.state(seq), bench.job(seq).exit_status) == (JobState.COMPLETE, 271)


@pytest.mark.parametrize("back", [False, True])
def test_a_gang_that_a_member_never_had_waits_for_no_lost_head(bench: Bench, back: bool) -> None:
    """PREPARE was lost with the leader that sent it, so nobody can have said GO."""
    bench.up("node1", "node2", "node3")
    seq = bench.submit(request(2))
    bench.turn()
    first = bench.attempt(seq)
    bench.take_over()
    bench.up("node2", "node3")
    bench.pass_time(bench.settings.prepare_timeout - 1)
    assert bench.state(seq) is JobState.RUNNING
    if back:
        sent = bench.turn(bench.link_up(hello("node1", attempts=[report(first, "ready")])))
        assert kinds(sent) == [("node2", "Prepare")]
        bench.pass_time(2)
        assert bench.attempt(seq) == first
        return
    bench.pass_time(2)
    job = bench.job(seq)
    assert (job.state, job.charged_attempts, job.excluded) == (JobState.QUEUED, 0, ("node1",))
    assert kinds(bench.pass_time(31)) == [("node2", "Prepare"), ("node3", "Prepare")]
