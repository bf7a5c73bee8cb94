"""A leader that dies between a commit and the message that follows from it: the next one goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from hpcmesos import wire
from hpcmesos.master.events import Asked, Received
from hpcmesos.master.gang_clock import ACCUSED, HEARING, LINKING
from hpcmesos.master.links_client import Question
from hpcmesos.model import Cause, JobState
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.records import QueueRecord
from hpcmesos.queue.store import Store
from tests.integration.invariants import check_invariants
from tests.integration.leader_kit import Bench, ended, hello, report, request, settings

if TYPE_CHECKING:
    from tests.integration.database_kit import Database

pytest_plugins = ["tests.integration.database_kit"]


class Killed(BaseException):
    """As SIGKILL: nothing of the process goes on."""


class Bomb:
    """Links that kill the leader when it is about to send something."""

    def send(self, messages: Iterable[tuple[str, wire.ToAgent]]) -> None:
        if list(messages):
            raise Killed

    def drop_all(self, why: str) -> None:
        raise AssertionError(why)


class DoomedBench(Bench):
    """A bench whose leader can be killed at the worst moment."""

    def dies(self) -> None:
        """The leader takes what is in the inbox and what is due, commits, and dies before it has said a word."""
        self.planner._links = Bomb()
        with pytest.raises(Killed):
            self.turn()
            self.turn()
        self.take_over()


@pytest.fixture
def bench(store: Store, leader: LeaderStore, database: Database, tmp_path: Path) -> Iterator[DoomedBench]:
    bench = DoomedBench(store, leader, settings(tmp_path, database.leader))
    yield bench
    assert check_invariants(database.owner, drained=True) == []


def runs(bench: Bench, nodes: int = 1) -> tuple[int, str, list[str]]:
    """A job that runs: its number, its attempt and its nodes, head first."""
    bench.up(*(f"node{number}" for number in range(1, nodes + 1)))
    seq = bench.submit(request(nodes))
    bench.turn()
    return seq, bench.attempt(seq), bench.run(seq)


def ends(sent: Iterable[tuple[str, wire.ToAgent]]) -> list[wire.End]:
    return [message for _, message in sent if isinstance(message, wire.End)]


def test_a_rerun_that_was_wished_happens(bench: DoomedBench) -> None:
    seq, attempt, _ = runs(bench)
    bench.store.wish("rerun", seq, "ann", {"kill_delay": 7, "message": "again"})
    bench.dies()
    (end,) = ends(bench.up("node1", attempts=[report(attempt, "running")]))
    assert end == wire.End(attempt=attempt, cause=Cause.PREEMPTED, kill_delay=7, message="again")
    bench.say(("node1", ended(attempt, "PREEMPTED", signal=15)))
    job = bench.job(seq)
    assert (job.state, job.attempt, job.charged_attempts) == (JobState.RUNNING, 2, 0)
    bench.say(("node1", ended(f"{seq}.hpcm#2")))
    assert bench.job(seq).exit_status == 0


def test_a_deletion_keeps_its_words_and_its_delay(bench: DoomedBench) -> None:
    seq, attempt, _ = runs(bench)
    bench.store.wish("delete", seq, "ann", {"kill_delay": 30, "message": "enough"})
    bench.dies()
    (end,) = ends(bench.up("node1", attempts=[report(attempt, "running")]))
    assert end == wire.End(
        attempt=attempt, cause=Cause.DELETED, kill_delay=30, message="deleted by ann: enough"
    )
    bench.say(("node1", ended(attempt, "DELETED", signal=15)))
    assert (bench.job(seq).exit_status, bench.job(seq).cause) == (271, Cause.DELETED)


def preempted(bench: DoomedBench, grace: str) -> tuple[int, int, str]:
    """A job that has to go for another; the leader has just died that had decided it."""
    with bench.leader.transaction() as transaction:
        transaction.put_queue(QueueRecord(name="batch", attributes={"preempt_grace": grace}))
        transaction.put_queue(QueueRecord(name="urgent", attributes={"level": "1"}))
    bench.take_over()
    bench.up("node1", gpus=2)
    low = bench.submit(request(gpus=2))
    bench.turn()
    bench.run(low)
    high = bench.submit(request(gpus=2), queue="urgent")
    attempt = bench.attempt(low)
    bench.dies()
    return low, high, attempt


def finish_both(bench: Bench, low: int, high: int) -> None:
    bench.turn()
    assert (bench.state(low), bench.state(high)) == (JobState.QUEUED, JobState.RUNNING)
    assert bench.planner._desk.cluster.preempted == {bench.job(low).key}
    bench.take_over()  # and the one after that leader knows as well that it preempts nobody now
    assert bench.planner._desk.cluster.preempted == {bench.job(low).key}
    bench.up("node1", gpus=2, attempts=[report(bench.attempt(high), "running")])
    for seq in (high, low):
        bench.say(("node1", ended(bench.attempt(seq))))
        bench.turn()
        assert bench.state(seq) is JobState.COMPLETE


def test_a_preemption_without_grace_goes_on(bench: DoomedBench) -> None:
    low, high, attempt = preempted(bench, grace="0")
    (end,) = ends(bench.up("node1", gpus=2, attempts=[report(attempt, "running")]))
    assert (end.cause, end.message) == (Cause.PREEMPTED, f"preempted for {high}.hpcm")
    bench.say(("node1", ended(attempt, "PREEMPTED", signal=15)))
    finish_both(bench, low, high)


def test_a_preempted_job_has_the_rest_of_its_grace(bench: DoomedBench) -> None:
    low, high, attempt = preempted(bench, grace="20")
    assert ends(bench.up("node1", gpus=2, attempts=[report(attempt, "running")])) == []
    assert ends(bench.pass_time(10)) == []
    assert [end.cause for end in ends(bench.pass_time(11))] == [Cause.PREEMPTED]
    bench.say(("node1", ended(attempt, "PREEMPTED", signal=15)))
    finish_both(bench, low, high)


def test_a_job_that_saves_its_work_in_its_grace_runs_again(bench: DoomedBench) -> None:
    low, high, attempt = preempted(bench, grace="20")
    bench.up("node1", gpus=2, attempts=[report(attempt, "running")])
    bench.say(("node1", ended(attempt, "APP", code=85)))
    finish_both(bench, low, high)
    first, _ = bench.store.attempts([low])
    assert (first.cause, first.code) == (Cause.PREEMPTED, 85)


def test_a_preempted_job_hears_no_second_warning(bench: DoomedBench) -> None:
    low, high, attempt = preempted(bench, grace="20")
    sent = bench.up("node1", gpus=2, attempts=[report(attempt, "running")]) + bench.pass_time(5)
    assert not any(isinstance(message, wire.Signal) for _, message in sent), "a signal comes at most once"
    bench.say(("node1", ended(attempt)))  # with 0: it is complete
    bench.turn()
    assert bench.state(low) is JobState.COMPLETE
    bench.say(("node1", ended(bench.attempt(high))))


def test_a_gang_whose_head_is_lost_waits_no_longer_under_the_next_leader(bench: DoomedBench) -> None:
    seq, attempt, (head, member) = runs(bench, nodes=2)
    bench.down(head)
    lost = ended(attempt, "NODE_LOST", head=False, culprit=head)
    bench.say((member, lost))  # and forgets it, for it is acknowledged
    bench.take_over()
    bench.up(member)
    assert bench.state(seq) is JobState.RUNNING
    bench.pass_time(ACCUSED + 1)
    bench.turn()
    (first,) = bench.store.attempts([seq])
    assert (first.cause, first.culprit) == (Cause.NODE_LOST, head)
    assert (bench.state(seq), bench.job(seq).charged_attempts) == (JobState.QUEUED, 1)
    bench.up(head)
    bench.turn()
    for node in bench.run(seq):
        bench.say((node, ended(bench.attempt(seq), head=node == head)))


def member_accuses(bench: Bench, ago: float = 0.0) -> tuple[int, str, str, wire.Ended]:
    """A gang of two whose head's host is dead: its number, head and member, and what the member has to tell."""
    seq, attempt, (head, member) = runs(bench, nodes=2)
    bench.down(head)
    return seq, head, member, ended(attempt, "NODE_LOST", head=False, culprit=head, ago=ago)


def lost_by(bench: Bench, seq: int) -> str | None:
    """The culprit of the job's first attempt, once it is over."""
    (first,) = bench.store.attempts([seq])
    return first.culprit if first.cause is Cause.NODE_LOST else None


def ends_elsewhere(bench: Bench, seq: int, head: str) -> None:
    bench.up(head)
    bench.turn()
    for node in bench.run(seq):
        bench.say((node, ended(bench.attempt(seq), head=node == head)))


def lives(bench: Bench, database: Database, seconds: float) -> None:
    """Time passes for the leader, and for what it has written down, which is by the database's clock."""
    bench.pass_time(seconds)
    with psycopg.connect(database.owner) as connection:
        connection.execute(
            "UPDATE attempts SET ending = jsonb_set(ending, '{at}', to_jsonb((ending->>'at')::float8 - %s))"
            " WHERE ending IS NOT NULL",
            [seconds],
        )


def test_a_loss_is_known_in_time_though_two_leaders_die_in_its_silence(
    bench: DoomedBench, database: Database
) -> None:
    """The head's host died 20 s before its member ended. 30 s after it died the loss has to be known."""
    seq, head, member, report_of_member = member_accuses(bench)
    bench.say((member, report_of_member))
    lives(bench, database, 5.5)
    bench.take_over()
    bench.up(member)
    lives(bench, database, 1.5)
    bench.take_over()
    bench.up(member)
    assert bench.state(seq) is JobState.RUNNING
    bench.pass_time(3.0)
    assert lost_by(bench, seq) == head
    ends_elsewhere(bench, seq, head)


def test_a_report_that_waited_for_a_leader_is_as_old_as_it_is(bench: DoomedBench) -> None:
    seq, head, member, report_of_member = member_accuses(bench, ago=ACCUSED - 1)
    bench.take_over()  # the one before has written nothing of it
    bench.up(member, attempts=[report(report_of_member.attempt, "ended", head=False)])
    bench.say((member, report_of_member))
    bench.pass_time(HEARING - 0.5)
    assert bench.state(seq) is JobState.RUNNING, "the head has its time to link"
    bench.pass_time(1.0)
    assert lost_by(bench, seq) == head
    ends_elsewhere(bench, seq, head)


@pytest.mark.parametrize("leaders", [1, 2])
def test_a_true_end_that_waited_for_a_leader_is_heard_though_a_member_was_first(
    bench: DoomedBench, database: Database, leaders: int
) -> None:
    """No master was there for long; the head has ended well, and links when its pause between two dials is over."""
    seq, head, member, report_of_member = member_accuses(bench, ago=300.0)
    attempt = report_of_member.attempt
    bench.take_over()
    bench.up(member, attempts=[report(attempt, "ended", head=False)])
    bench.say((member, report_of_member))
    if leaders == 2:
        lives(bench, database, 0.5)
        bench.take_over()
        bench.up(member)
        # More than LINKING, and less by what the steps of this test may take: those count, by the database's clock.
        lives(bench, database, LINKING + 0.25)
    else:
        lives(bench, database, HEARING - 0.5)
    assert bench.state(seq) is JobState.RUNNING
    bench.up(head, attempts=[report(attempt, "ended")])
    bench.say((head, ended(attempt)))
    (first,) = bench.store.attempts([seq])
    assert (first.cause, bench.job(seq).exit_status) == (Cause.OK, 0)


@pytest.mark.parametrize("ago", [float("nan"), float("inf"), -float("inf"), -1.0])
def test_an_age_that_is_none_stops_no_leader(bench: DoomedBench, ago: float) -> None:
    seq, head, member, report_of_member = member_accuses(bench, ago=ago)
    bench.say((member, report_of_member))
    bench.take_over()
    bench.up(member)
    bench.pass_time(ACCUSED + 1)
    assert lost_by(bench, seq) == head
    ends_elsewhere(bench, seq, head)


def test_times_that_no_calendar_has_are_not_known(bench: DoomedBench) -> None:
    seq, attempt, (node,) = runs(bench)
    bench.say((node, ended(attempt, started_at=1e300, ended_at=1e15)))
    (first,) = bench.store.attempts([seq])
    assert (bench.state(seq), first.cause, first.started_at) == (JobState.COMPLETE, Cause.OK, None)
    assert first.ended_at is not None


def test_a_decided_end_that_cannot_be_read_stops_no_leader(
    bench: DoomedBench, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    seq, attempt, (node,) = runs(bench)
    with psycopg.connect(database.owner) as connection:
        broken = '{"cause": "NODE_LOST", "at": null, "kill_delay": 1}'
        connection.execute("UPDATE attempts SET ending = %s::jsonb", [broken])
    bench.take_over()
    assert "is left out" in caplog.text
    bench.up(node, attempts=[report(attempt, "running")])
    bench.say((node, ended(attempt)))
    assert bench.job(seq).exit_status == 0


def test_what_accounting_wants_is_read_once_for_all_nodes_after_a_takeover(
    bench: DoomedBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [f"node{number}" for number in range(1, 5)]
    bench.up(*nodes, gpus=1)
    seqs = [bench.submit(request()) for _ in nodes]
    bench.turn()
    where = {seq: bench.run(seq)[0] for seq in seqs}
    bench.take_over()
    reader, asked = bench.planner._desk.reader, []
    read = reader.submissions

    def counted(wanted: Iterable[int]) -> Mapping[int, Mapping[str, Any]]:
        asked.append(sorted(wanted))
        return read(list(wanted))

    monkeypatch.setattr(reader, "submissions", counted)
    for seq, node in where.items():
        attempt = bench.attempt(seq)
        bench.up(node, gpus=1, attempts=[report(attempt, "running")])
        bench.say((node, ended(attempt)))
        assert bench.job(seq).exit_status == 0
    assert asked == [seqs]


def test_nothing_starts_before_all_of_a_turn_is_heard(bench: DoomedBench) -> None:
    """What is decided is written early; a pass would then know only half of the nodes."""
    high = bench.submit(request(2, gpus=2), priority=100)
    low = bench.submit(request(gpus=2))
    bench.turn()

    def slow(_: object) -> None:
        bench.now += 1.0

    first, second = (bench.link_up(hello(node)) for node in ("node1", "node2"))
    bench.turn(first, Asked(Question(), slow), second)
    assert (bench.state(high), bench.state(low)) == (JobState.RUNNING, JobState.QUEUED)
    for seq in (high, low):
        nodes = bench.run(seq)
        bench.say(*((node, ended(bench.attempt(seq), head=node == nodes[0])) for node in nodes))
        bench.turn()


def test_a_head_that_has_only_lost_its_leader_tells_its_end_itself(bench: DoomedBench) -> None:
    seq, head, member, report_of_member = member_accuses(bench)
    bench.say((member, report_of_member))
    bench.take_over()
    bench.up(member)
    bench.pass_time(LINKING - 0.5)
    bench.up(head, attempts=[report(report_of_member.attempt, "running")])
    bench.pass_time(ACCUSED)
    assert bench.state(seq) is JobState.RUNNING, "who is linked is waited for"
    own = ended(report_of_member.attempt, "NODE_LOST", culprit=member, message="no word of its member")
    bench.say((head, own))
    (first, *_) = bench.store.attempts([seq])
    assert (first.cause, first.message) == (Cause.NODE_LOST, "no word of its member")
    bench.turn()
    for node in bench.run(seq):
        bench.say((node, ended(bench.attempt(seq), head=node == head)))


@pytest.mark.parametrize("next_leader", [False, True])
def test_a_job_that_its_node_never_got_is_not_lost_with_the_node(
    bench: DoomedBench, next_leader: bool
) -> None:
    """PREPARE went into a link that was dead; the node was told to end what it has never had."""
    bench.up("node1")
    seq = bench.submit(request())
    bench.turn()
    (end,) = ends(bench.pass_time(bench.settings.prepare_timeout + 1))
    assert end.cause == Cause.START_FAILED
    if next_leader:
        bench.take_over()
    else:
        bench.down("node1")
    bench.up("node1")
    (first, *_) = bench.store.attempts([seq])
    assert (first.cause, first.message) == (Cause.START_FAILED, end.message)
    assert bench.job(seq).charged_attempts == 0
    bench.turn()
    bench.run(seq)
    bench.say(("node1", ended(bench.attempt(seq))))


def test_what_is_decided_is_written_though_the_rest_of_the_turn_takes_long(bench: DoomedBench) -> None:
    seq, attempt, (node,) = runs(bench)

    def slow(_: object) -> None:
        bench.now += 1.0

    def killed(_: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        bench.turn(Received(node, ended(attempt)), Asked(Question(), slow), Asked(Question(), killed))
    assert bench.state(seq) is JobState.COMPLETE


@pytest.mark.parametrize("phase", ["preparing", "ready", "running"])
def test_a_new_walltime_is_told_by_the_next_leader(bench: DoomedBench, phase: str) -> None:
    bench.up("node1", "node2")
    seq = bench.submit(request(2))
    bench.turn()
    attempt = bench.attempt(seq)
    head, member = (share.node for share in bench.store.shares([seq], live_only=True))
    if phase == "running":
        bench.run(seq)
    bench.store.wish("alter", seq, "ann", {"resources": {"walltime": "90"}})
    bench.turn()
    bench.take_over()
    sent = bench.up(head, attempts=[report(attempt, phase)])
    sent += bench.up(member, attempts=[report(attempt, "ready", head=False)])
    if phase == "preparing":
        sent += bench.say((head, wire.Ready(attempt=attempt)))
    if phase != "running":
        assert wire.Go(attempt=attempt) in [message for _, message in sent]
        sent += bench.say((head, wire.Started(attempt=attempt, pid=1, started_at=time.time())))
    assert (head, wire.Alter(attempt=attempt, walltime=90, suspended=False)) in sent
    bench.say((head, ended(attempt)), (member, ended(attempt, head=False)))


def test_a_signal_to_a_job_that_runs_is_sent_at_most_once(bench: DoomedBench) -> None:
    seq, attempt, _ = runs(bench)
    bench.store.wish("signal", seq, "ann", {"signal": int(signal.SIGUSR2)})
    bench.dies()
    sent = bench.up("node1", attempts=[report(attempt, "running")])
    assert not any(isinstance(message, wire.Signal) for _, message in sent)
    bench.say(("node1", ended(attempt)))
