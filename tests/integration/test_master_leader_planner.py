"""What the planner decides, over a real database; the agents are played by hand and the clock stands still."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from hpcmesos import wire
from hpcmesos.master.events import InboxHint, Received
from hpcmesos.master.planner import _ROWS
from hpcmesos.model import Cause, Chunk, GpuState, JobState, Request
from hpcmesos.queue.dependencies import Dependency, DependencyKind
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.store import Store
from tests.integration.invariants import check_invariants
from tests.integration.leader_kit import Bench, ended, gpu, hello, kinds, new_job, report, request, settings

if TYPE_CHECKING:
    from tests.integration.database_kit import Database

pytest_plugins = ["tests.integration.database_kit"]


@pytest.fixture
def bench(store: Store, leader: LeaderStore, database: Database, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(store, leader, settings(tmp_path, database.leader))
    yield bench
    assert check_invariants(database.owner, drained=True) == []


def test_a_gang_from_submission_to_its_end(bench: Bench) -> None:
    bench.up("node1", "node2")
    seq = bench.submit(request(2, 2))
    sent = bench.turn()
    assert kinds(sent) == [("node1", "Prepare"), ("node2", "Prepare")]
    spec = sent[1][1].spec  # type: ignore[union-attr]  # of a kind that has it
    assert spec["me"] == 1
    assert [member["node"] for member in spec["members"]] == ["node1", "node2"]
    assert [len(member["gpus"]) for member in spec["members"]] == [2, 2]
    assert spec["environment"] == {"A": "1"}

    attempt = bench.attempt(seq)
    assert bench.say(("node1", wire.Ready(attempt=attempt))) == []
    assert bench.say(("node2", wire.Ready(attempt=attempt))) == [("node1", wire.Go(attempt=attempt))]
    bench.say(("node1", wire.Started(attempt=attempt, pid=1, started_at=1.0)))
    assert {gpu.state for gpu in bench.node("node1").gpus} == {GpuState.ALLOCATED}

    sent = bench.say(("node1", ended(attempt, "APP", code=3)))
    assert sent == [("node1", wire.Acknowledged(attempt=attempt))]
    job = bench.job(seq)
    assert (job.state, job.exit_status, job.cause) == (JobState.COMPLETE, 3, Cause.APP)
    assert {gpu.state for gpu in bench.node("node1").gpus} == {GpuState.FREE}
    assert {gpu.state for gpu in bench.node("node2").gpus} == {GpuState.ALLOCATED}
    assert bench.say(("node2", ended(attempt, "APP", head=False))) == [
        ("node2", wire.Acknowledged(attempt=attempt))
    ]
    assert {gpu.state for gpu in bench.node("node2").gpus} == {GpuState.FREE}
    lines = next((bench.settings.state / "accounting").iterdir()).read_text().splitlines()
    assert [line.split(";")[1] for line in lines] == ["Q", "S", "E"]


def test_a_repeated_end_is_acknowledged_and_changes_nothing(bench: Bench) -> None:
    bench.up("node1")
    seq = bench.submit()
    bench.turn()
    bench.run(seq)
    end = ended(bench.attempt(seq), "OK")
    acknowledged = [("node1", wire.Acknowledged(attempt=end.attempt))]
    assert bench.say(("node1", end)) == acknowledged
    before = bench.job(seq)
    assert bench.say(("node1", end), ("node1", end)) == acknowledged * 2
    bench.take_over()
    bench.up("node1")
    assert bench.say(("node1", end)) == acknowledged
    assert bench.job(seq) == before


def test_dirty_gpus_are_free_when_their_node_says_so(bench: Bench) -> None:
    bench.up("node1")
    seq = bench.submit(request(1, 2))
    bench.turn()
    bench.run(seq)
    gpus = hello("node1").inventory.gpus
    dirty = tuple(wire.Gpu(**{**_fields(gpu), "state": "cleaning"}) for gpu in gpus)
    bench.say(("node1", wire.GpuReport(gpus=dirty)), ("node1", ended(bench.attempt(seq))))
    assert {gpu.state for gpu in bench.node("node1").gpus} == {GpuState.CLEANING}
    other = bench.submit(request(1, 1))
    assert bench.turn() == []
    sent = bench.say(("node1", wire.GpuReport(gpus=gpus[:1])))
    assert kinds(sent) == [("node1", "Prepare")]
    assert bench.state(other) is JobState.RUNNING
    assert sorted(gpu.state for gpu in bench.node("node1").gpus) == [GpuState.ALLOCATED, GpuState.CLEANING]


def _fields(gpu: wire.Gpu) -> dict[str, object]:
    return {name: getattr(gpu, name) for name in gpu.__struct_fields__}


def test_a_refusal_requeues_uncharged_and_elsewhere(bench: Bench) -> None:
    bench.up("node1", "node2")
    seq = bench.submit()
    bench.turn()
    first = bench.attempt(seq)
    refused = wire.Refused(attempt=first, culprit="node1", reason="node1: no /scratch")
    sent = bench.say(("node1", refused))
    assert kinds(sent) == [("node2", "Prepare")]
    job = bench.job(seq)
    assert (job.state, job.attempt, job.charged_attempts, job.excluded) == (
        JobState.RUNNING,
        2,
        0,
        ("node1",),
    )
    ends = [(a.cause, a.culprit, a.message) for a in bench.store.attempts([seq])]
    assert ends[0] == (Cause.START_FAILED, "node1", "node1: no /scratch")


@pytest.mark.parametrize(("size", "excluded"), [(1, ("node2", "node1")), (2, ("node2",)), (3, ())])
def test_a_broken_ring_excludes_its_hosts_as_far_as_the_job_can_do_without(
    bench: Bench, size: int, excluded: tuple[str, ...]
) -> None:
    bench.up("node1", "node2", "node3")
    seq = bench.submit(request(size))
    bench.turn()
    attempt = bench.attempt(seq)
    for node in (f"node{number + 1}" for number in range(size)):
        bench.say((node, wire.Ready(attempt=attempt)))
    broken = ended(attempt, "START_FAILED", culprit="node2+node9+node1", message="the ring broke")
    bench.say(("node1", broken))
    job = bench.job(seq)
    assert (job.excluded, job.charged_attempts) == (excluded, 0)
    assert all(not node.offline for node in map(bench.node, ("node1", "node2", "node3")))


def test_members_of_a_failed_start_are_ended_before_the_next_one(bench: Bench) -> None:
    bench.up("node1", "node2", "node3")
    seq = bench.submit(request(2))
    bench.turn()
    first = bench.attempt(seq)
    bench.say(("node2", wire.Ready(attempt=first)))
    sent = bench.say(("node1", wire.Refused(attempt=first, culprit="node1", reason="x")))
    assert [(node, message.cause) for node, message in sent] == [("node2", "START_FAILED")]  # type: ignore[union-attr]  # of a kind that has it
    assert bench.state(seq) is JobState.QUEUED
    assert "last attempt" in (bench.why(seq) or ("", ""))[1]
    sent = bench.say(("node2", ended(first, "START_FAILED", head=False)))
    assert kinds(sent) == [("node2", "Acknowledged"), ("node2", "Prepare"), ("node3", "Prepare")]


def test_five_failed_starts_hold_the_job(bench: Bench) -> None:
    bench.up("node1")
    seq = bench.submit()
    bench.turn()
    for _ in range(5):
        assert bench.state(seq) is JobState.RUNNING
        bench.say(("node1", wire.Refused(attempt=bench.attempt(seq), culprit="node1", reason="no")))
    job = bench.job(seq)
    assert (job.state, job.holds, job.attempt, job.charged_attempts) == (JobState.HELD, "s", 5, 0)
    assert "5 failed starts" in job.comment
    assert job.comment in (bench.why(seq) or ("", ""))[1]


def test_attempts_that_were_preempted_are_no_failed_starts(bench: Bench) -> None:
    bench.up("node1")
    seq = bench.submit()
    bench.turn()
    for _ in range(5):
        bench.run(seq)
        bench.say(("node1", ended(bench.attempt(seq), "PREEMPTED", signal=15)))
    bench.say(("node1", wire.Refused(attempt=bench.attempt(seq), culprit="node1", reason="no")))
    job = bench.job(seq)
    assert (job.state, job.holds, job.attempt) == (JobState.RUNNING, "", 7)


def test_nobody_ready_in_time(bench: Bench) -> None:
    bench.up("node1", "node2")
    seq = bench.submit(request(2))
    bench.turn()
    bench.say(("node2", wire.Ready(attempt=bench.attempt(seq))))
    sent = bench.pass_time(31)
    assert sorted(kinds(sent)) == [("node1", "End"), ("node2", "End")]
    assert bench.store.attempts([seq])[0].culprit == "node1"


def test_delete(bench: Bench) -> None:
    bench.up("node1")
    running, waiting = bench.submit(request(1, 2)), bench.submit(request(1, 2))
    bench.turn()
    bench.run(running)
    bench.wish("delete", waiting)
    job = bench.job(waiting)
    assert (job.state, job.cause, job.exit_status) == (JobState.COMPLETE, Cause.DELETED, None)
    attempt = bench.attempt(running)
    sent = bench.wish("delete", running, kill_delay=2, message="enough")
    end = wire.End(attempt=attempt, cause="DELETED", kill_delay=2.0, message="deleted by ann: enough")
    assert sent == [("node1", end)]
    assert bench.state(running) is JobState.EXITING
    bench.take_over()
    sent = bench.turn(bench.link_up(hello("node1", attempts=[report(attempt, "running")])))
    assert kinds(sent) == [("node1", "End")]
    bench.say(("node1", ended(attempt, "DELETED", signal=15)))
    job = bench.job(running)
    assert (job.state, job.cause, job.exit_status) == (JobState.COMPLETE, Cause.DELETED, 271)


def test_purge_completes_at_once_and_the_share_follows(bench: Bench) -> None:
    bench.up("node1")
    seq = bench.submit()
    bench.turn()
    bench.run(seq)
    attempt = bench.attempt(seq)
    bench.down("node1")
    bench.wish("delete", seq, purge=True)
    assert bench.state(seq) is JobState.COMPLETE
    sent = bench.turn(bench.link_up(hello("node1", attempts=[report(attempt, "running")])))
    assert kinds(sent) == [("node1", "End")]
    bench.say(("node1", ended(attempt, "DELETED", signal=9)))
    assert bench.node("node1").cpus_used == 0


def test_holds(bench: Bench) -> None:
    bench.up("node1")
    seq = bench.submit(state=JobState.HELD, holds="u")
    assert bench.turn() == []
    bench.wish("hold", seq, kinds="so")
    bench.wish("release", seq, kinds="us")
    assert (bench.job(seq).state, bench.job(seq).holds) == (JobState.HELD, "o")
    told = f"held by an operator; released by: qrls -h o {seq}.hpcm, by an operator"
    assert bench.why(seq) == ("held", told)
    assert kinds(bench.wish("release", seq, kinds="o")) == [("node1", "Prepare")]


def test_a_wish_of_an_unknown_kind_or_without_sense_is_dropped(bench: Bench) -> None:
    bench.up("node1")
    seq = bench.submit(state=JobState.HELD, holds="u")
    bench.turn()
    bench.wish("levitate", seq)
    bench.wish("hold", seq)
    bench.wish("node", None, node="nowhere", action="offline")
    bench.wish("delete", 999)
    other = bench.submit()
    bench.turn()
    assert bench.state(other) is JobState.RUNNING
    assert bench.links.dropped == []
    assert [event.kind for event in bench.store.events(seq=seq)] == ["ignored"]


def test_signal_and_offline(bench: Bench) -> None:
    bench.up("node1")
    seq = bench.submit()
    bench.turn()
    bench.run(seq)
    sent = bench.wish("signal", seq, signal=10)
    assert sent == [("node1", wire.Signal(attempt=bench.attempt(seq), signal=10))]
    bench.wish("node", None, node="node1", action="offline", note="fan")
    assert (bench.node("node1").offline, bench.node("node1").note) == (True, "fan")
    waiting = bench.submit()
    assert bench.turn() == []
    told = "needs 1 node with 1 GPU; too few such nodes are in service, out of it: node1 (node1 is offline (fan))"
    assert bench.why(waiting) == ("nodes-down", told)
    assert kinds(bench.wish("node", None, node="node1", action="clear")) == [("node1", "Prepare")]


def test_dependencies(bench: Bench) -> None:
    bench.up("node1")
    first = bench.submit()
    ok, bad = (
        bench.submit(state=JobState.HELD, holds="d", dependencies=(Dependency(kind, first),))
        for kind in (DependencyKind.AFTER_OK, DependencyKind.AFTER_NOT_OK)
    )
    last = bench.submit(
        state=JobState.HELD, holds="d", dependencies=(Dependency(DependencyKind.AFTER_ANY, ok),)
    )
    bench.turn()
    bench.run(first)
    assert bench.why(ok) == ("dependency", f"waits for afterok:{first} (running)")
    sent = bench.say(("node1", ended(bench.attempt(first))))
    assert kinds(sent) == [("node1", "Acknowledged"), ("node1", "Prepare")]
    assert bench.state(ok) is JobState.RUNNING
    job = bench.job(bad)
    assert (job.state, job.cause, job.exit_status) == (JobState.COMPLETE, Cause.DELETED, None)
    assert (
        job.comment == f"can never start: afternotok:{first} cannot be: job {first} ended with Exit_status 0"
    )
    assert bench.state(last) is JobState.HELD
    bench.wish("delete", ok)
    bench.say(("node1", ended(bench.attempt(ok), "DELETED", signal=15)))
    bench.turn()
    assert bench.state(last) is JobState.RUNNING


def test_a_dependent_that_comes_in_the_turn_of_its_parents_end_is_let_go(bench: Bench) -> None:
    """That end is not in the database yet when the dependent is judged first."""
    bench.up("node1")
    first = bench.submit()
    bench.turn()
    bench.run(first)
    after = bench.submit(
        state=JobState.HELD, holds="d", dependencies=(Dependency(DependencyKind.AFTER_OK, first),)
    )
    bench.say(("node1", ended(bench.attempt(first))))
    assert bench.state(after) is JobState.RUNNING


def test_a_job_that_ends_before_its_row_of_the_inbox_is_read_stays_ended(bench: Bench) -> None:
    """A leader that takes over starts jobs that it has loaded; their rows come behind those of many others."""
    bench.store.submit_many([new_job(state=JobState.HELD, holds="u", script=None)] * (_ROWS + 1))
    first = bench.submit()
    bench.take_over()
    bench.planner.turn([bench.link_up(hello("node1")), InboxHint()])
    end = Received("node1", ended(bench.attempt(first), started_at=time.time()))
    bench.planner.turn([end, InboxHint()])
    assert bench.state(first) is JobState.COMPLETE
    after = bench.submit(
        state=JobState.HELD, holds="d", dependencies=(Dependency(DependencyKind.AFTER_OK, first),)
    )
    bench.turn()
    assert bench.state(after) is JobState.RUNNING
    bench.run(after)
    bench.say(("node1", ended(bench.attempt(after))))


def test_execution_time(bench: Bench) -> None:
    bench.up("node1")
    at = datetime.now(UTC) + timedelta(seconds=100)
    seq = bench.submit(state=JobState.WAITING, not_before=at)
    assert bench.turn() == []
    assert (bench.why(seq) or ("", ""))[0] == "waiting"
    # There is no transaction before the alarm in this turn, so the database's clock is still read off ours.
    bench.now += 101
    bench.planner.turn([])
    assert kinds(bench.links.take()) == [("node1", "Prepare")]


def test_attempts_are_charged_up_to_the_limit(bench: Bench) -> None:
    bench.up("node1")
    seq = bench.submit()
    bench.turn()
    for _ in range(3):
        bench.run(seq)
        bench.say(("node1", ended(bench.attempt(seq), "GPU_LOST", culprit="node1")))
    job = bench.job(seq)
    assert (job.state, job.attempt, job.exit_status) == (JobState.COMPLETE, 3, -3)


def test_a_single_node_job_on_a_silent_node_is_kept(bench: Bench) -> None:
    bench.up("node1")
    seq = bench.submit()
    bench.turn()
    bench.run(seq)
    bench.down("node1")
    bench.pass_time(3600)
    assert bench.state(seq) is JobState.RUNNING
    bench.turn(bench.link_up(hello("node1", attempts=[report(bench.attempt(seq), "running")])))
    assert bench.state(seq) is JobState.RUNNING
    bench.down("node1")
    sent = bench.turn(bench.link_up(hello("node1", boot="boot2")))
    assert kinds(sent) == [("node1", "Prepare")]
    assert (bench.job(seq).attempt, bench.job(seq).charged_attempts) == (2, 1)


def test_an_operator_says_that_a_node_is_gone(bench: Bench) -> None:
    bench.up("node1", "node2")
    seq = bench.submit()
    bench.turn()
    bench.run(seq)
    bench.down("node1")
    sent = bench.wish("node", None, node="node1", action="gone")
    assert ("node2", "Prepare") in kinds(sent)
    assert bench.job(seq).excluded == ("node1",)


def test_take_over_while_members_prepare(bench: Bench) -> None:
    bench.up("node1", "node2")
    seq = bench.submit(request(2))
    bench.turn()
    attempt = bench.attempt(seq)
    bench.take_over()
    assert bench.turn() == []
    assert kinds(bench.up("node2")) == []
    sent = bench.turn(bench.link_up(hello("node1", attempts=[report(attempt, "ready")])))
    assert kinds(sent) == [("node2", "Prepare")]
    assert bench.say(("node2", wire.Ready(attempt=attempt))) == [("node1", wire.Go(attempt=attempt))]


def test_take_over_of_running_and_of_lost_gangs(bench: Bench) -> None:
    bench.up("node1", "node2", "node3", gpus=1)
    gang, single = bench.submit(request(2), priority=1), bench.submit()
    bench.turn()
    bench.run(gang)
    bench.run(single)
    bench.take_over()
    first = bench.attempt(gang)
    assert kinds(bench.turn(bench.link_up(hello("node2", 1)))) == []
    sent = bench.turn(bench.link_up(hello("node1", 1, attempts=[report(first, "running")])))
    assert kinds(sent) == [("node1", "End")]
    bench.turn(bench.link_up(hello("node3", 1, attempts=[report(bench.attempt(single), "running")])))
    bench.say(("node3", ended(bench.attempt(single))))
    assert bench.job(single).exit_status == 0


def test_a_lost_go_and_a_lost_prepare_are_sent_again(bench: Bench) -> None:
    bench.up("node1")
    seq = bench.submit()
    bench.turn()
    attempt = bench.attempt(seq)
    bench.down("node1")
    sent = bench.up("node1")
    assert kinds(sent) == [("node1", "Prepare")]
    bench.say(("node1", wire.Ready(attempt=attempt)))
    bench.down("node1")
    sent = bench.turn(bench.link_up(hello("node1", attempts=[report(attempt, "ready")])))
    assert sent == [("node1", wire.Go(attempt=attempt))]
    bench.down("node1")
    bench.up("node1")
    assert bench.store.attempts([seq])[0].cause is Cause.NODE_LOST


def test_zero_bytes_in_an_end_do_not_lose_it(bench: Bench) -> None:
    bench.up("node1")
    seq = bench.submit()
    bench.turn()
    bench.run(seq)
    bench.say(
        ("node1", ended(bench.attempt(seq), message="a\0b", ranks=[{"step": 0, "rank": 0, "node": "n\0"}]))
    )
    assert bench.state(seq) is JobState.COMPLETE


def test_an_outrun_picture_is_loaded_anew(bench: Bench, leader: LeaderStore) -> None:
    bench.up("node1")
    seq = bench.submit(state=JobState.HELD, holds="u")
    bench.turn()
    bench.planner._desk.cluster.put(bench.job(seq))
    with leader.transaction() as transaction:
        transaction.set_gpu_states({"SIM-node1-0": GpuState.QUARANTINED, "SIM-node1-1": GpuState.QUARANTINED})
    other = bench.submit()
    assert bench.turn() == []
    bench.now += 2
    bench.turn()
    assert bench.links.dropped
    assert bench.state(other) is JobState.QUEUED
    bench.up("node1")
    assert bench.state(other) is JobState.RUNNING


def granted(bench: Bench, seq: int) -> list[int]:
    return [port for share in bench.store.shares([seq], live_only=True) for port in share.ports]


def test_no_port_is_granted_twice_on_a_host(bench: Bench) -> None:
    bench.up("node1", "node2", gpus=0)
    asked = Request((Chunk(count=2, cpus=2, slots=2),), framework="torch")
    seqs = [bench.submit(asked) for _ in range(4)]
    bench.turn()
    ports = [port for seq in seqs for port in granted(bench, seq)]
    assert len(ports) == len(set(ports)) == 16
    bench.take_over()
    bench.up("node1", "node2", gpus=0)
    first, *others = seqs
    attempt = bench.attempt(first)
    ends = [ended(attempt, "START_FAILED", head=head) for head in (True, False)]
    nodes = [share.node for share in bench.store.shares([first], live_only=True)]
    bench.wish("delete", first)
    bench.say(*zip(nodes, ends, strict=True))
    assert granted(bench, first) == []
    last = bench.submit(asked)
    bench.turn()
    kept = {port for seq in others for port in granted(bench, seq)}
    assert len(kept) == 12
    assert len(granted(bench, last)) == 4
    assert kept.isdisjoint(granted(bench, last))


def test_one_port_to_meet_at_for_several_ranks(bench: Bench) -> None:
    bench.up("node1", gpus=0)
    single, several = bench.submit(Request()), bench.submit(Request((Chunk(count=1, slots=2),)))
    sent = bench.turn()
    assert granted(bench, single) == []
    (port,) = granted(bench, several)
    prepared = [
        message.spec["members"][0]["ports"] for _, message in sent if isinstance(message, wire.Prepare)
    ]
    assert prepared == [[], [port]]


def test_a_port_that_is_taken_is_no_fault_of_the_node(bench: Bench) -> None:
    bench.up("node1", gpus=0)
    seq = bench.submit(Request((Chunk(count=1, slots=2),)))
    bench.turn()
    (port,) = granted(bench, seq)
    culprit = f"127.0.0.1:{port}"
    reason = f"port {port} of node1 cannot be had: Address already in use"
    sent = bench.say(("node1", wire.Refused(attempt=bench.attempt(seq), culprit=culprit, reason=reason)))
    assert kinds(sent) == [("node1", "Prepare")]
    assert granted(bench, seq) not in ([], [port])
    assert bench.job(seq).excluded == ()
    assert bench.store.attempts([seq])[0].message == reason


def test_a_message_that_always_fails_costs_two_reloads_and_holds_up_nobody(bench: Bench) -> None:
    bench.up("node1")
    bad = hello("node2")
    nonsense = replace(bad.inventory, gpus=(gpu("node2", 0, "no such state"),))
    for _ in range(10):  # each reload makes its agent say hello again
        bench.now += 40
        bench.turn(bench.link_up(hello("node1")), bench.link_up(replace(bad, inventory=nonsense)))
    assert len(bench.links.dropped) == 2
    seq = bench.submit()
    bench.turn()
    bench.run(seq)
    assert bench.state(seq) is JobState.RUNNING
