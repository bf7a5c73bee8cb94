"""Arrays under the planner, over a real database; the agents are played by hand and the clock stands still."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hpcmesos import wire
from hpcmesos.model import Cause, JobState
from hpcmesos.pbs.arrays import parse_array
from hpcmesos.queue.dependencies import Dependency, DependencyKind
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.records import JobFilter, JobKey, JobRecord, QueueRecord
from hpcmesos.queue.store import Store
from tests.integration.invariants import check_invariants, most_at_once
from tests.integration.leader_kit import Bench, ended, hello, report, request, settings

if TYPE_CHECKING:
    from tests.integration.database_kit import Database

pytest_plugins = ["tests.integration.database_kit"]


class ArrayBench(Bench):
    """A bench that keeps the nodes' side of every attempt that was prepared."""

    def array(self, text: str, **changes: Any) -> int:
        return self.submit(request(1, 0), array_spec=parse_array(text), **changes)

    def started(self, sent: list[tuple[str, wire.ToAgent]]) -> list[str]:
        """Plays READY and STARTED of all that was prepared; answers the attempts."""
        prepared = [(node, m.attempt) for node, m in sent if isinstance(m, wire.Prepare)]
        self.say(*((node, wire.Ready(attempt=attempt)) for node, attempt in prepared))
        begun = [(n, wire.Started(attempt=a, pid=1, started_at=time.time())) for n, a in prepared]
        self.say(*begun)
        return [attempt for _, attempt in prepared]

    def where(self, attempt: str) -> str:
        return self.planner._desk.cluster.attempts[attempt].head

    def end(self, *attempts: str, code: int = 0) -> list[tuple[str, wire.ToAgent]]:
        cause = "APP" if code else "OK"
        return self.say(*((self.where(a), ended(a, cause, code=code)) for a in attempts))

    def element(self, seq: int, index: int) -> JobRecord:
        job = self.store.job(seq, index)
        assert job is not None
        return job

    def rows(self, seq: int) -> list[int]:
        jobs = self.store.jobs(JobFilter(seqs=(seq,), history=True))
        return [job.index for job in jobs if job.index is not None]


@pytest.fixture
def bench(store: Store, leader: LeaderStore, database: Database, tmp_path: Path) -> Iterator[ArrayBench]:
    bench = ArrayBench(store, leader, settings(tmp_path, database.leader))
    yield bench
    assert check_invariants(database.owner, drained=True) == []


def test_elements_become_rows_as_they_start_lowest_first(bench: ArrayBench) -> None:
    seq = bench.array("1-20")
    assert bench.state(seq) is JobState.QUEUED
    sent = bench.up("node1")  # 8 CPUs
    attempts = bench.started(sent)
    assert attempts == [f"{seq}[{index}].hpcm#1" for index in range(1, 9)]
    assert bench.rows(seq) == list(range(1, 9))
    parent = bench.job(seq)
    assert (parent.state, parent.todo) == (JobState.RUNNING, ((9, 21),))
    assert bench.why(seq) is not None

    sent = bench.end(*attempts[:2])
    assert bench.started(sent) == [f"{seq}[9].hpcm#1", f"{seq}[10].hpcm#1"]
    element = bench.element(seq, 1)
    assert (element.state, element.exit_status, element.submission) == (
        JobState.COMPLETE,
        0,
        bench.job(seq).submission,
    )
    assert bench.element(seq, 20).state is JobState.QUEUED
    assert bench.store.job(seq, 21) is None


def test_the_spec_of_an_element_is_its_own(bench: ArrayBench) -> None:
    template = {"host": "login", "directory": "/w", "path": None, "letter": "o"}
    bench.array("3-5:2", submission={"stdout_template": template, "personality": "torque"})
    sent = bench.up("node1")
    specs = [message.spec for _, message in sent if isinstance(message, wire.Prepare)]
    assert [(s["index"], s["name"], s["stdout"]) for s in specs] == [
        (3, "job-3", "/w/job.o1-3"),
        (5, "job-5", "/w/job.o1-5"),
    ]
    assert [s["job"] for s in specs] == ["1[3].hpcm", "1[5].hpcm"]


def test_the_slot_limit_holds_over_a_change_of_leaders(bench: ArrayBench, database: Database) -> None:
    seq = bench.array("0-19%3")
    attempts = bench.started(bench.up("node1", "node2"))
    assert len(attempts) == 3
    assert bench.why(seq) == ("array-limit", "the array's own limit: 3 of its elements at once")

    bench.take_over()
    sent = bench.turn(
        bench.link_up(hello_of(bench, "node1", attempts)), bench.link_up(hello_of(bench, "node2", attempts))
    )
    assert not [m for _, m in sent if isinstance(m, wire.Prepare)]
    for _ in range(6):
        again = bench.started(bench.end(*attempts[:2]))
        attempts = [*attempts[2:], *again]
        assert len(attempts) == 3
    while attempts:
        attempts = bench.started(bench.end(*attempts))
    assert bench.rows(seq) == list(range(20))
    assert most_at_once(database.owner, seq) == 3
    done = bench.job(seq)
    assert (done.state, done.exit_status, done.cause, done.succeeded) == (JobState.COMPLETE, 0, Cause.OK, 20)


def hello_of(bench: ArrayBench, node: str, attempts: list[str]) -> wire.Hello:
    mine = [report(a, "running") for a in attempts if node in bench.planner._desk.cluster.attempts[a].shares]
    return hello(node, attempts=mine)


def test_an_array_of_which_one_failed_ends_with_1(bench: ArrayBench) -> None:
    seq = bench.array("1-3")
    one, two, three = bench.started(bench.up("node1"))
    bench.end(one, three)
    assert bench.state(seq) is JobState.RUNNING
    bench.end(two, code=7)
    job = bench.job(seq)
    assert (job.state, job.exit_status, job.succeeded, job.failed) == (JobState.COMPLETE, 1, 2, 1)
    assert bench.element(seq, 2).exit_status == 7


def test_a_waiting_element_is_deleted_and_answers_for_it(bench: ArrayBench) -> None:
    seq = bench.array("1-10%1")
    attempts = bench.started(bench.up("node1"))
    bench.wish("delete", seq, index=7)
    bench.wish("delete", seq, elements=[[3, 5], [9, 100]])
    assert bench.job(seq).todo == ((2, 3), (5, 7), (8, 9))
    gone = bench.element(seq, 7)
    assert (gone.state, gone.cause, gone.exit_status, gone.comment) == (
        JobState.COMPLETE,
        Cause.DELETED,
        None,
        "deleted before it started",
    )
    ran = []
    while attempts:
        ran += attempts
        attempts = bench.started(bench.end(*attempts))
    assert [name.partition("[")[2].partition("]")[0] for name in ran] == ["1", "2", "5", "6", "8"]
    job = bench.job(seq)
    assert (job.state, job.exit_status, job.succeeded, job.failed) == (JobState.COMPLETE, 1, 5, 0)


def test_a_running_element_is_deleted_alone(bench: ArrayBench) -> None:
    seq = bench.array("1-3%2")
    one, two = bench.started(bench.up("node1"))
    sent = bench.wish("delete", seq, index=2)
    assert [(m.attempt, m.cause) for _, m in sent if isinstance(m, wire.End)] == [(two, "DELETED")]
    assert (bench.element(seq, 1).state, bench.element(seq, 2).state) == (JobState.RUNNING, JobState.EXITING)
    sent = bench.say(("node1", ended(two, "DELETED", signal=15)))
    [three] = bench.started(sent)
    assert bench.element(seq, 2).exit_status == 271
    bench.end(one, three)
    assert (bench.state(seq), bench.job(seq).failed) == (JobState.COMPLETE, 1)


def test_an_array_is_deleted_whole(bench: ArrayBench) -> None:
    seq = bench.array("1-1000000%2")
    one, two = bench.started(bench.up("node1"))
    bench.wish("delete", seq, index=None)
    assert bench.job(seq).todo == ()
    assert bench.state(seq) is JobState.RUNNING  # until its elements are gone
    bench.say(("node1", ended(one, "DELETED", signal=15)), ("node1", ended(two, "DELETED", signal=15)))
    job = bench.job(seq)
    assert (job.state, job.exit_status, job.failed) == (JobState.COMPLETE, 1, 2)
    assert bench.element(seq, 999_999).cause is Cause.DELETED
    events = [event for event in bench.store.events(seq=seq) if event.kind == "elements deleted"]
    assert [event.payload["elements"] for event in events] == ["3-1000000"]


def test_an_array_that_never_ran_has_no_exit_status(bench: ArrayBench) -> None:
    seq = bench.array("1-10")
    bench.turn()
    bench.wish("delete", seq, index=None)
    job = bench.job(seq)
    assert (job.state, job.exit_status, job.cause) == (JobState.COMPLETE, None, Cause.DELETED)


def test_a_held_array_starts_no_more_elements(bench: ArrayBench) -> None:
    seq = bench.array("1-5%2")
    attempts = bench.started(bench.up("node1"))
    bench.wish("hold", seq, index=None, kinds="u")
    assert bench.state(seq) is JobState.HELD
    assert bench.started(bench.end(attempts[0])) == []
    assert bench.element(seq, 4).state is JobState.HELD
    sent = bench.wish("release", seq, index=None, kinds="u")
    more = bench.started(sent)
    assert more == [f"{seq}[3].hpcm#1"]
    assert bench.state(seq) is JobState.RUNNING
    bench.wish("hold", seq, index=None, kinds="u")
    bench.end(attempts[1], *more)
    assert bench.state(seq) is JobState.HELD
    bench.wish("delete", seq, index=None)
    assert bench.state(seq) is JobState.COMPLETE


def test_a_lost_element_waits_as_its_own_row_and_runs_again(bench: ArrayBench) -> None:
    seq = bench.array("1-4%2")
    attempts = bench.started(bench.up("node1", "node2"))
    lost = next(a for a in attempts if bench.where(a) == "node1")
    index = int(lost.partition("[")[2].partition("]")[0])
    bench.down("node1")
    mine = [report(a, "running") for a in attempts if bench.where(a) == "node1" and a != lost]
    sent = bench.turn(bench.link_up(hello("node1", attempts=mine)))
    assert bench.element(seq, index).charged_attempts == 1
    again = bench.started(sent)
    assert again == [f"{seq}[{index}].hpcm#2"]  # before elements that have not run
    assert bench.job(seq).todo == ((3, 5),)
    left = [a for a in attempts if a != lost] + again
    while left:
        left = bench.started(bench.end(*left))
    assert (bench.job(seq).succeeded, bench.state(seq)) == (4, JobState.COMPLETE)
    records = bench.store.attempts([bench.element(seq, index).key])
    assert [record.cause for record in records] == [Cause.NODE_LOST, Cause.OK]


def test_nothing_of_an_array_starts_beside_an_element_that_the_database_does_not_know(
    bench: ArrayBench,
) -> None:
    """A backup was restored of before the element started."""
    seq = bench.array("1-3")
    unknown = [f"{seq}[{index}].hpcm#1" for index in (1, 2)]
    assert bench.started(bench.up("node1", attempts=[report(name, "running") for name in unknown])) == []
    assert bench.started(bench.say(("node1", ended(unknown[0])))) == []
    assert len(bench.started(bench.say(("node1", ended(unknown[1]))))) == 3
    bench.end(*(f"{seq}[{index}].hpcm#1" for index in (1, 2, 3)))
    assert bench.state(seq) is JobState.COMPLETE


@pytest.mark.parametrize(("kind", "number"), [("afterok", None), ("afterokarray", None), ("afterokarray", 2)])
def test_a_job_waits_for_an_array(bench: ArrayBench, kind: str, number: int | None) -> None:
    seq = bench.array("1-3")
    wanted = Dependency(DependencyKind(kind), seq, None, number)
    after = bench.submit(state=JobState.HELD, holds="d", dependencies=(wanted,))
    one, two, three = bench.started(bench.up("node1"))
    bench.end(one)
    assert bench.state(after) is JobState.HELD
    bench.end(two)
    assert (bench.state(after) is JobState.HELD) == (number is None)
    bench.end(three)
    assert bench.state(after) is JobState.RUNNING


def test_who_still_waits_for_an_array_costs_no_read(
    bench: ArrayBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture knows what the database would say of it, and is asked each time that an element starts or ends."""
    seq = bench.array("1-9:2%3")
    wanted = Dependency(DependencyKind.AFTER_ANY_ARRAY, seq)
    after = bench.submit(state=JobState.HELD, holds="d", dependencies=(wanted,))
    one, two, three = bench.started(bench.up("node1"))
    bench.wish("delete", seq, elements=[[9, 10]])
    [last] = bench.started(bench.end(one, code=1))
    key = JobKey(seq)
    store, cluster = bench.planner._store, bench.planner._desk.cluster
    assert cluster.jobs[key].outcome == store.outcomes([key])[key]
    reads: list[set[JobKey]] = []
    read = store.outcomes
    monkeypatch.setattr(store, "outcomes", lambda jobs: reads.append(set(jobs)) or read(jobs))
    bench.end(two)
    assert (bench.state(after), reads) == (JobState.HELD, [])
    bench.end(three, last)
    assert bench.state(after) is JobState.RUNNING
    assert reads


def test_a_job_waits_for_an_element(bench: ArrayBench) -> None:
    seq = bench.array("1-3%1")
    wanted = Dependency(DependencyKind.AFTER_OK, seq, 2)
    after = bench.submit(state=JobState.HELD, holds="d", dependencies=(wanted,))
    never = bench.submit(
        state=JobState.HELD, holds="d", dependencies=(Dependency(DependencyKind.AFTER_OK, seq, 3),)
    )
    first = bench.started(bench.up("node1"))
    second = bench.started(bench.end(*first))
    assert bench.state(after) is JobState.HELD
    bench.wish("delete", seq, index=3)
    assert (bench.state(never), bench.job(never).cause) == (JobState.COMPLETE, Cause.DELETED)
    bench.end(*second)
    assert bench.state(after) is JobState.RUNNING


@pytest.mark.parametrize(
    ("dependency", "state"),
    [
        (Dependency(DependencyKind.AFTER_ANY, 1, element=2), JobState.QUEUED),
        (Dependency(DependencyKind.AFTER_OK, 1, element=2), JobState.COMPLETE),
        (Dependency(DependencyKind.AFTER_ANY_ARRAY, 1, number=1), JobState.QUEUED),
    ],
)
def test_who_waits_for_an_element_hears_that_it_is_deleted_though_its_array_is_held(
    bench: ArrayBench, dependency: Dependency, state: JobState
) -> None:
    seq = bench.array("1-3", holds="u", state=JobState.HELD)
    waiting = bench.submit(dependencies=(dependency._replace(seq=seq),))
    bench.turn()
    assert bench.state(waiting) is JobState.HELD
    bench.wish("delete", seq, index=2)
    assert bench.state(waiting) is state
    assert bench.state(seq) is JobState.HELD


def test_an_array_whose_dependency_fails_is_deleted_with_all_elements(bench: ArrayBench) -> None:
    first = bench.submit(request(1, 0))
    seq = bench.array(
        "1-5", state=JobState.HELD, holds="d", dependencies=(Dependency(DependencyKind.AFTER_OK, first),)
    )
    bench.started(bench.up("node1"))
    assert bench.element(seq, 3).state is JobState.HELD
    bench.say(("node1", ended(f"{first}.hpcm#1", "APP", code=1)))
    assert (bench.state(seq), bench.job(seq).exit_status) == (JobState.COMPLETE, None)
    assert bench.element(seq, 3).cause is Cause.DELETED


def test_a_new_leader_knows_all_from_the_rows(bench: ArrayBench) -> None:
    seq = bench.array("1-30%4")
    attempts = bench.started(bench.up("node1"))
    bench.wish("delete", seq, elements=[[10, 20]])
    bench.end(attempts[0], code=1)
    before = bench.planner._desk.cluster
    bench.take_over()
    after = bench.planner._desk.cluster
    assert after.arrays.running == before.arrays.running == {seq: 4}
    assert {key for key in after.jobs if key.seq == seq} == {key for key in before.jobs if key.seq == seq}
    parent, known = after.jobs[bench.job(seq).key], before.jobs[bench.job(seq).key]
    assert (parent.todo, parent.deleted, parent.succeeded, parent.failed) == (
        known.todo,
        known.deleted,
        known.succeeded,
        known.failed,
    )


def test_elements_and_plain_jobs_share_the_order_of_the_queue(bench: ArrayBench) -> None:
    seq = bench.array("1-6")
    plain = bench.submit(request(1, 0))
    bench.array("1-100")
    sent = bench.up("node1")
    names = [m.attempt for _, m in sent if isinstance(m, wire.Prepare)]
    assert names == [*(f"{seq}[{i}].hpcm#1" for i in range(1, 7)), f"{plain}.hpcm#1", "3[1].hpcm#1"]


def test_accounting_has_the_array_and_its_elements(bench: ArrayBench) -> None:
    seq = bench.array("1-2")
    bench.end(*bench.started(bench.up("node1")))
    [file] = (bench.settings.state / "accounting").iterdir()
    lines = [line.split(";")[1:3] for line in file.read_text().splitlines()]
    assert lines == [
        ["Q", f"{seq}[].hpcm"],
        ["S", f"{seq}[1].hpcm"],
        ["S", f"{seq}[2].hpcm"],
        ["E", f"{seq}[1].hpcm"],
        ["E", f"{seq}[2].hpcm"],
        ["E", f"{seq}[].hpcm"],
    ]


def test_elements_that_wait_to_run_again_move_with_their_array(bench: ArrayBench) -> None:
    with bench.leader.transaction() as transaction:
        transaction.put_queue(QueueRecord(name="short", attributes={"silence": "fence:60"}))
    bench.take_over()
    seq = bench.array("1-20")
    attempts = bench.started(bench.up("node1"))
    bench.wish("rerun", seq, index=1)
    stopped = {"kind": "queue", "name": "batch", "action": "set", "changes": [["started", "=", "false"]]}
    bench.store.wish("object", None, "ann", stopped)
    bench.wish("hold", seq, kinds="u")
    bench.end(*attempts[1:])
    bench.say(("node1", ended(attempts[0], "PREEMPTED", signal=15)))
    bench.wish("move", seq, queue="short")
    for index in (None, 1):
        job = bench.store.job(seq, index)
        assert job is not None
        assert (job.queue, job.request.silence) == ("short", 60)
