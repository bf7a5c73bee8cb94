"""Nodes that are away: what their jobs wait for, and what ends the waiting. Over a real database; no clock runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from hpcmesos import wire
from hpcmesos.errors import InvalidValue
from hpcmesos.master.absence import FENCE_AGAIN, MARGIN
from hpcmesos.master.events import Fenced
from hpcmesos.model import JobState, Request
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.leadership import after_restore
from hpcmesos.queue.records import QueueRecord
from hpcmesos.queue.store import Store
from tests.integration.invariants import check_invariants
from tests.integration.leader_kit import Bench, ended, gpu, hello, kinds, report, request, settings

if TYPE_CHECKING:
    from tests.integration.database_kit import Database

pytest_plugins = ["tests.integration.database_kit"]
MakeBench = Callable[..., Bench]


@pytest.fixture
def make_bench(store: Store, leader: LeaderStore, database: Database, tmp_path: Path) -> Iterator[MakeBench]:
    yield lambda **changes: Bench(store, leader, settings(tmp_path, database.leader, **changes))
    assert check_invariants(database.owner, drained=True) == []


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    return make_bench()


def running(bench: Bench, wanted: Request | None = None) -> int:
    seq = bench.submit(wanted)
    bench.turn()
    bench.run(seq)
    return seq


def fenced(seconds: int) -> Request:
    return replace(request(), silence=seconds)


def audit(bench: Bench) -> list[tuple[str, dict[str, Any]]]:
    return [(event.kind, dict(event.payload)) for event in bench.store.events() if event.seq is None]


# --- silence=fence:T


def test_a_job_of_a_fenced_queue_is_requeued_when_its_node_has_ended_it(bench: Bench) -> None:
    bench.up("node1", "node2")
    seq = running(bench, fenced(60))
    bench.down("node1")
    assert bench.pass_time(60 + MARGIN - 1) == []
    sent = bench.pass_time(2)
    assert ("node2", "Prepare") in kinds(sent)
    job = bench.job(seq)
    assert (job.attempt, job.charged_attempts, job.excluded) == (2, 1, ("node1",))
    assert "silent for 60 s" in job.comment


def test_only_one_absence_counts(bench: Bench) -> None:
    bench.up("node1", "node2")
    seq = running(bench, fenced(60))
    held = [report(bench.attempt(seq), "running")]
    bench.down("node1")
    bench.pass_time(50)
    bench.turn(bench.link_up(hello("node1", attempts=held)))
    bench.down("node1")
    bench.pass_time(50)
    assert bench.job(seq).attempt == 1
    bench.pass_time(10 + MARGIN)
    assert bench.job(seq).attempt == 2


def test_a_new_leader_counts_from_its_own_begin(bench: Bench) -> None:
    bench.up("node1", "node2")
    seq = running(bench, fenced(60))
    bench.down("node1")
    bench.pass_time(70)
    bench.take_over()
    bench.up("node2")
    bench.pass_time(70)
    assert bench.job(seq).attempt == 1
    bench.pass_time(MARGIN)
    assert bench.job(seq).attempt == 2


def test_the_limit_of_the_time_of_submission_is_the_nodes_too(bench: Bench) -> None:
    bench.up("node1")
    bench.submit(fenced(60))
    bench.submit()
    sent = bench.turn()
    assert [message.spec["silence"] for _, message in sent] == [60, None]  # type: ignore[union-attr]  # only PREPAREs were sent


def test_the_queue_that_a_job_waits_in_says_what_its_silence_means(bench: Bench) -> None:
    with bench.leader.transaction() as transaction:
        transaction.put_queue(QueueRecord(name="short", attributes={"silence": "fence:60"}))
        transaction.put_queue(QueueRecord(name="long", attributes={"silence": "wait"}))
    bench.take_over()
    moved, back, altered = bench.submit(), bench.submit(), bench.submit()
    bench.turn()
    for seq in (moved, back, altered):
        bench.wish("move", seq, queue="short")
        assert bench.job(seq).request.silence == 60
    bench.wish("move", back, queue="long")
    # The API looked at the job before it was moved, and then wished for another walltime.
    bench.wish("alter", altered, resources={"select": "1:ncpus=1:ngpus=1", "walltime": "90"})
    assert (bench.job(altered).request.silence, bench.job(altered).request.walltime) == (60, 90)
    sent = bench.up("node1", gpus=3)
    told = {message.spec["job"]: message.spec["silence"] for _, message in sent}  # type: ignore[union-attr]  # only PREPAREs were sent
    assert told == {f"{moved}.hpcm": 60, f"{back}.hpcm": None, f"{altered}.hpcm": 60}


# --- the site's fence


def fence(tmp_path: Path, text: str) -> str:
    path = tmp_path / "fence"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def answer(bench: Bench) -> Fenced:
    event = bench.planner.events.get(timeout=30)
    assert isinstance(event, Fenced)
    return event


def test_a_fence_that_confirms_ends_the_waiting(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(fence_command=fence(tmp_path, f'echo "$1" >> {tmp_path}/asked'))
    bench.up("node1", "node2", "node3")
    seq = running(bench)
    bench.down("node3")  # holds nothing: nobody is asked about it
    bench.down("node1")
    bench.pass_time(bench.settings.node_silence + 1)
    sent = bench.turn(answer(bench))
    assert ("node2", "Prepare") in kinds(sent)
    assert (tmp_path / "asked").read_text() == "node1\n"
    assert bench.node("node1").gone
    assert bench.job(seq).attempt == 2
    assert audit(bench) == [("node fenced", {"node": "node1", "confirmed": True, "said": ""})]
    bench.turn(bench.link_up(hello("node1", boot="boot2")))
    assert not bench.node("node1").gone


def test_a_fence_that_does_not_is_asked_again(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(fence_command=fence(tmp_path, "echo no answer of its BMC >&2; exit 1"))
    bench.up("node1", "node2")
    seq = running(bench)
    bench.down("node1")
    bench.pass_time(bench.settings.node_silence + 1)
    for _ in range(2):
        event = answer(bench)
        assert (event.confirmed, event.said) == (False, "no answer of its BMC")
        bench.turn(event)
        assert bench.state(seq) is JobState.RUNNING
        bench.pass_time(FENCE_AGAIN + 1)
    answer(bench)


def test_a_node_whose_link_flaps_is_asked_about_once(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(fence_command=fence(tmp_path, "exit 1"))
    bench.up("node1")
    held = [report(bench.attempt(running(bench)), "running")]
    for _ in range(3):
        bench.down("node1")
        bench.pass_time(1)
        bench.turn(bench.link_up(hello("node1", attempts=held)))
    bench.down("node1")
    bench.pass_time(bench.settings.node_silence + 1)
    answer(bench)
    with pytest.raises(Empty):
        bench.planner.events.get(timeout=0.5)


def test_an_answer_about_a_node_that_is_back_changes_nothing(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(fence_command=fence(tmp_path, "exit 0"))
    bench.up("node1", "node2")
    seq = running(bench)
    bench.down("node1")
    bench.pass_time(bench.settings.node_silence + 1)
    event = answer(bench)
    bench.turn(bench.link_up(hello("node1", attempts=[report(bench.attempt(seq), "running")])))
    bench.turn(event)
    assert (bench.state(seq), bench.job(seq).attempt) == (JobState.RUNNING, 1)
    assert not bench.node("node1").gone


def test_an_answer_about_an_earlier_absence_says_nothing_of_this_one(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    bench = make_bench(fence_command=fence(tmp_path, "exit 0"))
    bench.up("node1")
    seq = running(bench)
    bench.down("node1")
    bench.pass_time(bench.settings.node_silence + 1)
    event = answer(bench)  # which comes late: the node has started again meanwhile, and runs the job
    bench.turn(bench.link_up(hello("node1", boot="boot2")))
    bench.run(seq)
    bench.pass_time(1)
    bench.down("node1")
    bench.turn(event)
    assert (bench.state(seq), bench.job(seq).attempt) == (JobState.RUNNING, 2)
    bench.pass_time(bench.settings.node_silence + 1)
    bench.turn(answer(bench))
    assert bench.state(seq) is JobState.QUEUED


def test_a_late_answer_is_not_taken_for_the_one_to_the_next_question(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    bench = make_bench(fence_command=fence(tmp_path, "exit 0"))
    bench.up("node1")
    seq = running(bench)
    bench.down("node1")
    bench.pass_time(bench.settings.node_silence + 1)
    late = answer(bench)
    bench.turn(bench.link_up(hello("node1", boot="boot2")))
    bench.run(seq)
    bench.pass_time(1)
    bench.down("node1")
    bench.pass_time(bench.settings.node_silence + 1)
    right = answer(bench)
    bench.turn(late)
    assert (bench.state(seq), bench.job(seq).attempt) == (JobState.RUNNING, 2)
    bench.turn(right)
    assert bench.state(seq) is JobState.QUEUED


def test_a_node_that_was_back_is_not_asked_about_at_once(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(fence_command=fence(tmp_path, "exit 1"))
    bench.up("node1")
    held = [report(bench.attempt(running(bench)), "running")]
    bench.down("node1")
    bench.pass_time(bench.settings.node_silence + 1)
    bench.turn(answer(bench))
    bench.turn(bench.link_up(hello("node1", attempts=held)))
    bench.pass_time(FENCE_AGAIN - 1)
    bench.down("node1")  # its agent restarts
    bench.pass_time(2)
    with pytest.raises(Empty):
        bench.planner.events.get(timeout=0.5)


def test_a_new_leader_asks_about_nodes_that_were_down_before(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(fence_command=fence(tmp_path, "exit 0"))
    bench.up("node1", "node2")
    running(bench)
    bench.down("node1")
    bench.pass_time(bench.settings.node_silence + 1)
    answer(bench)  # which the leader does not live to hear
    bench.take_over()
    bench.pass_time(bench.settings.node_silence + 1)
    assert answer(bench).node == "node1"


# --- operators


def test_every_wish_about_a_node_is_kept_with_its_user(bench: Bench) -> None:
    bench.up("node1")
    bench.wish("node", None, node="node1", action="offline", note="fan")
    bench.wish("node", None, node="node1", action="note", note="")
    bench.wish("node", None, node="node1", action="clear")
    bench.down("node1")
    bench.wish("node", None, node="node1", action="gone")
    assert audit(bench) == [
        ("node offline", {"user": "ann", "node": "node1", "note": "fan"}),
        ("node note", {"user": "ann", "node": "node1", "note": ""}),
        ("node clear", {"user": "ann", "node": "node1"}),
        ("node gone", {"user": "ann", "node": "node1"}),
    ]
    assert bench.node("node1").gone


@pytest.mark.parametrize("again", [False, True], ids=["same leader", "after a takeover"])
def test_what_is_said_of_a_gpu_waits_for_its_agent(bench: Bench, again: bool) -> None:
    """A link that breaks before the word is through: it is sent again, until the agent tells of the GPU."""
    bench.up("node1")
    out, free = gpu("node1", 0, "quarantined"), gpu("node1", 1)
    one, two = out.uuid, free.uuid
    off, clear = wire.SetGpu(uuid=two, fault="fan (ann)"), wire.SetGpu(uuid=one)

    def say(action: str, uuid: str) -> list[wire.ToAgent]:
        sent = bench.wish("node", None, node="node1", action=action, gpu=uuid, note="fan")
        return [message for _, message in sent if isinstance(message, wire.SetGpu)]

    assert say("gpu clear", one) == [clear]
    bench.down("node1")
    assert say("gpu offline", one) + say("gpu clear", one) + say("gpu offline", two) == []

    def told(*gpus: wire.Gpu) -> list[wire.SetGpu]:
        if again:
            bench.take_over()
        said = hello("node1")
        inventory = msgspec.structs.replace(said.inventory, gpus=gpus)
        sent = bench.turn(bench.link_up(msgspec.structs.replace(said, inventory=inventory)))
        words = [message for _, message in sent if isinstance(message, wire.SetGpu)]
        return sorted(words, key=lambda word: word.uuid)

    assert told(out, free) == [clear, off]
    bench.down("node1")
    assert told(out, free) == [clear, off]
    bench.say(("node1", wire.GpuReport(gpus=(gpu("node1", 0),))))
    bench.down("node1")
    assert told(out, free) == [off], "what an agent has told of may be out of use for another reason by now"
    bench.down("node1")
    assert told(out, msgspec.structs.replace(free, state="quarantined", note="fan (ann)")) == []
    bench.down("node1")
    assert told(out, free) == [], "done"


def test_a_node_that_is_linked_cannot_be_gone(bench: Bench) -> None:
    bench.up("node1")
    seq = running(bench)
    bench.wish("node", None, node="node1", action="gone")
    assert (bench.state(seq), bench.node("node1").gone) == (JobState.RUNNING, False)
    assert audit(bench) == []


@pytest.mark.parametrize(("name", "action"), [("node9", "gone"), ("node1", "dance")])
def test_a_wish_that_makes_no_sense_changes_nothing(bench: Bench, name: str, action: str) -> None:
    bench.up("node1")
    with pytest.raises(InvalidValue):
        bench.planner._nodes.on_wish(name, action, None, "ann")
    bench.wish("node", None, node=name, action=action)
    assert audit(bench) == []


@pytest.mark.parametrize(("site", "queue", "told"), [(300, None, 5), (300, "2", 2), (10, "300", 5)])
def test_what_runs_on_a_node_that_was_given_up_has_to_hurry(
    make_bench: MakeBench, site: float, queue: str | None, told: float
) -> None:
    """Its job may run elsewhere already."""
    bench = make_bench(kill_delay=site)
    with bench.leader.transaction() as transaction:
        transaction.put_queue(QueueRecord(name="batch", attributes={"kill_delay": queue} if queue else {}))
    bench.take_over()
    bench.up("node1", "node2")
    seq = running(bench)
    first = bench.attempt(seq)
    bench.down("node1")
    bench.wish("node", None, node="node1", action="gone")
    assert bench.attempt(seq) != first
    sent = bench.turn(bench.link_up(hello("node1", attempts=[report(first, "running")])))
    (end,) = [message for _, message in sent if isinstance(message, wire.End)]
    assert (end.attempt, end.cause, end.kill_delay) == (first, "NODE_LOST", told)


# --- a node that forgot


@pytest.mark.parametrize("again", [False, True], ids=["same leader", "after a takeover"])
def test_an_attempt_that_a_wiped_node_denies_never_runs_there_again(bench: Bench, again: bool) -> None:
    first = msgspec.structs.replace(hello("node1"), journal="journal1")
    bench.turn(bench.link_up(first))
    seq = running(bench)
    if again:
        bench.take_over()
    else:
        bench.down("node1")
    sent = bench.turn(bench.link_up(msgspec.structs.replace(first, journal="journal2")))
    job = bench.job(seq)
    assert (job.attempt, job.charged_attempts) == (2, 1)
    assert "its state directory is a new one" in job.comment
    attempts = [message.attempt for _, message in sent if hasattr(message, "spec")]
    assert attempts == [f"{seq}.hpcm#2"]


@pytest.mark.parametrize("rerunable", [True, False])
@pytest.mark.parametrize("nodes", [1, 2])
def test_what_was_running_in_a_backup_does_not_run_again_by_itself(
    bench: Bench, database: Database, rerunable: bool, nodes: int
) -> None:
    """Its node has told the end to the database that is gone, and has forgotten it."""
    names = ["node1", "node2"][:nodes]
    hellos = [msgspec.structs.replace(hello(name), journal=f"journal of {name}") for name in names]
    bench.turn(*map(bench.link_up, hellos))
    seq = bench.submit(request(nodes), rerunable=rerunable)
    bench.turn()
    bench.run(seq)
    after_restore(database.owner)
    bench.leader = LeaderStore(database.leader, bench.leader.term + 1_000_000)
    bench.take_over()
    sent = bench.turn(*map(bench.link_up, hellos))
    assert "Prepare" not in {kind for _, kind in kinds(sent)}
    job = bench.job(seq)
    wanted = (JobState.HELD, None) if rerunable else (JobState.COMPLETE, -3)
    assert (job.state, job.exit_status, job.attempt) == (*wanted, 1)
    assert "restored backup" in job.comment
    if rerunable:
        bench.wish("release", seq, kinds="s")
        for node in bench.run(seq):
            bench.say((node, ended(f"{seq}.hpcm#2", head=node == "node1")))
        assert bench.job(seq).exit_status == 0
    bench.leader.close()


def test_a_node_that_never_had_it_is_asked_again_after_a_takeover(bench: Bench) -> None:
    first = msgspec.structs.replace(hello("node1"), journal="journal1")
    bench.turn(bench.link_up(first))
    seq = bench.submit()
    bench.turn()
    bench.take_over()
    sent = bench.turn(bench.link_up(first))
    assert [message.attempt for _, message in sent if hasattr(message, "spec")] == [f"{seq}.hpcm#1"]
