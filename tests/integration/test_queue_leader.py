from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import psycopg
import pytest

from hpcmesos.errors import DatabaseUnavailable, IllegalTransition, LostLeadership, UnknownNode
from hpcmesos.model import Cause, GpuState, JobState, Request
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.leadership import Leadership
from hpcmesos.queue.records import (
    AttemptKey,
    AttemptRecord,
    GpuRecord,
    JobFilter,
    JobKey,
    Move,
    NewJob,
    NodeRecord,
    QueueRecord,
    Release,
    ShareRecord,
    StartRecord,
)
from hpcmesos.queue.store import Store

from .invariants import check_invariants

if TYPE_CHECKING:
    from .database_kit import Database

pytest_plugins = ["tests.integration.database_kit"]

Q, H, W, R, E, C = (JobState(letter) for letter in "QHWREC")


@pytest.fixture(autouse=True)
def invariants_hold(database: Database) -> Iterator[None]:
    yield
    assert check_invariants(database.owner) == []


def submit(store: Store, state: JobState = Q) -> int:
    new = NewJob(name="j", owner="alice", server="hpcm", queue="batch", request=Request(), state=state)
    return store.submit(new).seq


def move(seq: int, source: JobState, target: JobState, **changes: object) -> Move:
    return Move(seq=seq, index=None, source=source, target=target, event="tested", changes=changes)


def node(name: str, cpus: int = 8, gpus: int = 2, state: GpuState = GpuState.FREE) -> NodeRecord:
    cards = tuple(GpuRecord(uuid=f"{name}-g{i}", node=name, index=i, state=state) for i in range(gpus))
    return NodeRecord(name=name, cpus=cpus, mem=1000, gpus=cards, features=("x",), address="10.0.0.1")


def gang(seq: int, *members: tuple[str, int, tuple[str, ...]], number: int = 1) -> StartRecord:
    key = AttemptKey(seq, None, number)
    shares = tuple(
        ShareRecord(attempt=key, node=name, position=i, cpus=cpus, mem=10, slots=1, gpus=gpus)
        for i, (name, cpus, gpus) in enumerate(members)
    )
    return StartRecord(attempt=key, shares=shares)


def register(leader: LeaderStore, *nodes: NodeRecord) -> None:
    with leader.transaction() as transaction:
        for record in nodes:
            assert transaction.upsert_node(record) == ()


def start(leader: LeaderStore, *gangs: StartRecord) -> set[int]:
    with leader.transaction() as transaction:
        return {key.seq for key in transaction.apply_starts(gangs)}


def gpu_states(store: Store) -> dict[str, str]:
    return {gpu.uuid: gpu.state.value for record in store.nodes() for gpu in record.gpus}


# --- the door -----------------------------------------------------------------------------------------------------


def test_a_move_changes_the_row_and_writes_the_event(store: Store, leader: LeaderStore) -> None:
    seq = submit(store)
    with leader.transaction() as transaction:
        moved = transaction.move_jobs([move(seq, Q, H, holds="u", queued_at=None, excluded=("n1",))])
    assert moved == {JobKey(seq)}
    job = store.job(seq)
    assert job is not None
    assert (job.state, job.holds, job.queued_at, job.excluded) == (H, "u", None, ("n1",))
    [event] = store.events(seq=seq)
    assert (event.kind, event.source, event.target, event.index) == ("tested", Q, H, None)


def test_an_illegal_edge_is_refused_before_anything_is_written(store: Store, leader: LeaderStore) -> None:
    good, bad = submit(store), submit(store)
    with pytest.raises(IllegalTransition), leader.transaction() as transaction:
        transaction.move_jobs([move(good, Q, H), move(bad, H, R)])
    assert {job.state for job in store.jobs(JobFilter())} == {Q}
    assert store.events() == []


def test_rows_that_changed_are_dropped_and_the_others_move(store: Store, leader: LeaderStore) -> None:
    seqs = [submit(store, state) for state in (Q, H, Q)]
    with leader.transaction() as transaction:
        moved = transaction.move_jobs([move(seq, Q, C) for seq in [*seqs, 999]])
    assert {key.seq for key in moved} == {seqs[0], seqs[2]}
    assert [job.state for job in store.jobs(JobFilter())] == [C, H, C]
    assert [event.seq for event in store.events()] == [seqs[0], seqs[2]]


def test_several_moves_of_one_job_in_order(store: Store, leader: LeaderStore) -> None:
    seq = submit(store)
    way = [(Q, H), (H, W), (W, Q), (Q, C)]
    with leader.transaction() as transaction:
        transaction.move_jobs([move(seq, source, target) for source, target in way])
    assert [(event.source, event.target) for event in store.events()] == way


def test_a_field_changes_without_a_move(store: Store, leader: LeaderStore) -> None:
    seq = submit(store)
    with leader.transaction() as transaction:
        transaction.move_jobs([move(seq, Q, Q, priority=9, comment="c", request=Request(walltime=5))])
    job = store.job(seq)
    assert job is not None
    assert (job.priority, job.comment, job.request.walltime) == (9, "c", 5)
    assert job.modified_at > job.created_at


def test_a_field_that_no_move_may_change(store: Store, leader: LeaderStore) -> None:
    seq = submit(store)
    with pytest.raises(ValueError, match="owner"), leader.transaction() as transaction:
        transaction.move_jobs([move(seq, Q, Q, owner="mallory")])


def test_the_end_is_stamped_by_the_database_or_by_the_move(store: Store, leader: LeaderStore) -> None:
    first, second = submit(store), submit(store)
    at = datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)
    with leader.transaction() as transaction:
        transaction.move_jobs([move(first, Q, C), move(second, Q, C, ended_at=at, exit_status=271)])
        now = transaction.now
    assert [job.ended_at for job in store.jobs(JobFilter())] == [now, at]


def test_a_thousand_moves_at_once(store: Store, leader: LeaderStore) -> None:
    new = NewJob(name="j", owner="alice", server="hpcm", queue="batch", request=Request())
    seqs = [done.seq for done in store.submit_many([new] * 1000)]
    with leader.transaction() as transaction:
        assert len(transaction.move_jobs([move(seq, Q, H) for seq in seqs])) == 1000
    assert [event.seq for event in store.events()] == seqs


# --- gangs --------------------------------------------------------------------------------------------------------


def test_a_gang_starts_whole(store: Store, leader: LeaderStore) -> None:
    seq = submit(store)
    register(leader, node("n1"), node("n2"))
    assert start(leader, gang(seq, ("n1", 4, ("n1-g0",)), ("n2", 2, ("n2-g1", "n2-g0")))) == {seq}
    job = store.job(seq)
    assert job is not None
    assert (job.state, job.attempt, job.started_at is not None) == (R, 1, True)
    assert [(s.node, s.position, s.gpus) for s in store.shares([seq], live_only=True)] == [
        ("n1", 0, ("n1-g0",)),
        ("n2", 1, ("n2-g1", "n2-g0")),
    ]
    assert [(n.cpus_used, n.mem_used) for n in store.nodes()] == [(4, 10), (2, 10)]
    free = {uuid for uuid, state in gpu_states(store).items() if state == "free"}
    assert free == {"n1-g1"}
    [event] = store.events(seq=seq)
    assert event.payload == {"attempt": 1, "nodes": ["n1", "n2"]}


def test_of_two_gangs_over_one_gpu_exactly_one_starts(store: Store, leader: LeaderStore) -> None:
    one, two, other = (submit(store) for _ in range(3))
    register(leader, node("n1"), node("n2"))
    started = start(
        leader,
        gang(one, ("n1", 1, ("n1-g0",)), ("n2", 1, ("n2-g0",))),
        gang(two, ("n2", 1, ("n2-g1",)), ("n1", 1, ("n1-g0",))),
        gang(other, ("n1", 1, ("n1-g1",))),
    )
    assert started in ({one, other}, {two, other})
    [dropped] = {one, two} - started
    assert store.shares([dropped]) == []
    assert store.attempts([dropped]) == []
    job = store.job(dropped)
    assert job is not None
    assert (job.state, job.attempt) == (Q, 0)
    assert store.events(seq=dropped) == []


@pytest.mark.parametrize(
    "bad",
    [
        ("n1", 9, ()),  # more CPUs than there are
        ("n1", 1, ("n2-g0",)),  # another node's GPU
        ("n1", 1, ("n1-g9",)),  # no such GPU
        ("n3", 1, ()),  # no such node
        ("down", 1, ()),
        ("offline", 1, ()),
        ("dirty", 1, ("dirty-g0",)),
    ],
)
def test_what_no_longer_fits_is_dropped_whole(
    store: Store, leader: LeaderStore, bad: tuple[str, int, tuple[str, ...]]
) -> None:
    good, dropped = submit(store), submit(store)
    register(leader, node("n1"), node("n2"), node("down"), node("offline"))
    register(leader, node("dirty", state=GpuState.CLEANING))
    with leader.transaction() as transaction:
        transaction.set_node_up("down", False)
        transaction.set_node_offline("offline", True, "broken fan")
    assert start(leader, gang(dropped, ("n2", 1, ("n2-g1",)), bad), gang(good, ("n2", 1, ()))) == {good}
    assert store.shares([dropped]) == []
    assert gpu_states(store)["n2-g1"] == "free"
    assert store.leader().term == leader.term


def test_a_job_that_is_no_longer_queued_does_not_start(store: Store, leader: LeaderStore) -> None:
    held, queued = submit(store, H), submit(store)
    register(leader, node("n1"))
    assert start(leader, gang(held, ("n1", 1, ())), gang(queued, ("n1", 1, ()))) == {queued}


def test_an_attempt_number_is_used_once(store: Store, leader: LeaderStore) -> None:
    seq = submit(store)
    register(leader, node("n1"))
    assert start(leader, gang(seq, ("n1", 1, ())))
    finish(leader, seq, 1, "n1", requeue=True)
    assert start(leader, gang(seq, ("n1", 1, ()), number=1)) == set()
    assert start(leader, gang(seq, ("n1", 1, ()), number=2)) == {seq}


def finish(leader: LeaderStore, seq: int, number: int, *nodes: str, requeue: bool = False) -> None:
    key = AttemptKey(seq, None, number)
    with leader.transaction() as transaction:
        record = AttemptRecord(key=key, cause=Cause.OK, code=0, started_at=transaction.now)
        transaction.finish_attempts([record])
        transaction.move_jobs([move(seq, R, Q) if requeue else move(seq, R, C, exit_status=0)])
        transaction.release_shares([Release(attempt=key, node=name) for name in nodes])


def test_a_release_gives_everything_back_once(store: Store, leader: LeaderStore, database: Database) -> None:
    seq = submit(store)
    register(leader, node("n1"))
    start(leader, gang(seq, ("n1", 4, ("n1-g0", "n1-g1"))))
    with leader.transaction() as transaction:
        transaction.set_gpu_states({"n1-g1": GpuState.LOST, "n1-g0": GpuState.FREE}, {"n1-g1": "XID 79"})
    assert gpu_states(store) == {"n1-g0": "allocated", "n1-g1": "lost"}
    for _ in range(2):
        finish(leader, seq, 1, "n1")
    assert gpu_states(store) == {"n1-g0": "cleaning", "n1-g1": "lost"}
    [record] = store.nodes()
    assert (record.cpus_used, record.mem_used, record.gpus[1].note) == (0, 0, "XID 79")
    assert store.shares([seq], live_only=True) == []
    assert store.shares([seq])[0].gpus == ("n1-g0", "n1-g1")
    assert check_invariants(database.owner, settled=True) != []
    with leader.transaction() as transaction:
        transaction.set_gpu_states({"n1-g0": GpuState.FREE})
    assert check_invariants(database.owner, settled=True) == []


def test_what_comes_free_is_taken_at_once(store: Store, leader: LeaderStore, database: Database) -> None:
    """The node's row does not change where as much comes as goes; else it changes by what is left."""

    def row() -> tuple[object, ...] | None:
        with psycopg.connect(database.owner) as connection:
            return connection.execute("SELECT ctid, cpus_used, mem_used FROM nodes").fetchone()

    first, second, third, large = (submit(store) for _ in range(4))
    register(leader, node("n1"))
    start(leader, gang(first, ("n1", 8, ())))
    before = row()
    with leader.transaction() as transaction:
        transaction.move_jobs([move(first, R, C, exit_status=0)])
        transaction.finish_attempts([AttemptRecord(key=AttemptKey(first, None, 1), cause=Cause.OK, code=0)])
        transaction.release_shares([Release(attempt=AttemptKey(first, None, 1), node="n1")])
        assert {key.seq for key in transaction.apply_starts([gang(second, ("n1", 8, ()))])} == {second}
    assert row() == before
    with leader.transaction() as transaction:
        transaction.move_jobs([move(second, R, C, exit_status=0)])
        transaction.finish_attempts([AttemptRecord(key=AttemptKey(second, None, 1), cause=Cause.OK, code=0)])
        transaction.release_shares([Release(attempt=AttemptKey(second, None, 1), node="n1")])
        both = [gang(large, ("n1", 9, ())), gang(third, ("n1", 3, ()))]
        assert {key.seq for key in transaction.apply_starts(both)} == {third}
    assert (row() or ())[1:] == (3, 10)
    finish(leader, third, 1, "n1")
    assert (row() or ())[1:] == (0, 0)


def test_a_gpu_that_the_database_did_not_give_out(store: Store, leader: LeaderStore) -> None:
    register(leader, node("n1", gpus=1, state=GpuState.ALLOCATED))
    assert gpu_states(store) == {"n1-g0": "unknown-attempt"}
    with leader.transaction() as transaction:
        transaction.set_gpu_states({"n1-g0": GpuState.FREE})
    assert gpu_states(store) == {"n1-g0": "free"}


def test_ports_are_given_to_one_attempt_at_a_time(store: Store, leader: LeaderStore) -> None:
    one, two = submit(store), submit(store)
    register(leader, node("n1"))

    def with_port(seq: int) -> StartRecord:
        key = AttemptKey(seq, None, 1)
        share = ShareRecord(attempt=key, node="n1", position=0, cpus=1, mem=0, slots=1, ports=(20000, 20001))
        return StartRecord(attempt=key, shares=(share,))

    assert start(leader, with_port(one), with_port(two)) == {one}
    finish(leader, one, 1, "n1")
    assert start(leader, with_port(two)) == {two}


def test_the_end_of_an_attempt_is_kept_whole_and_the_first_one_stays(
    store: Store, leader: LeaderStore
) -> None:
    seq = submit(store)
    register(leader, node("n1"))
    start(leader, gang(seq, ("n1", 1, ())))
    key = AttemptKey(seq, None, 1)
    rank = {"step": "0.1", "rank": 0, "node": "n1", "code": 3, "signal": None}
    record = AttemptRecord(
        key=key,
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
        ended_at=datetime(2026, 1, 2, tzinfo=UTC),
        cause=Cause.SIGNAL,
        code=None,
        signal=9,
        forced=True,
        culprit="n1",
        message="m",
        usage={"cput": 1.5},
        ranks=(rank, {"step": "0.5", "rank": 1}),
        steps=({"step": "0.1", "command": ["mpiexec", "a"], "code": 3},),
        stdout_tail=b"\x00\xffout" * 1000,
        stderr_tail=b"",
        stdout_path="/o",
        undelivered="disk full",
    )
    late = AttemptRecord(key=key, cause=Cause.NODE_LOST, message="late")
    with leader.transaction() as transaction:
        transaction.finish_attempts([record])
        transaction.finish_attempts([late])
        transaction.move_jobs([move(seq, R, C, exit_status=265, cause=Cause.SIGNAL)])
        transaction.release_shares([Release(attempt=key, node="n1")])
    [stored] = store.attempts([seq])
    for name in AttemptRecord.__slots__:
        if name not in ("created_at", "steps"):
            assert getattr(stored, name) == getattr(record, name), name
    assert [(step["step"], step["code"]) for step in stored.steps] == [("0.1", 3), ("0.5", None)]
    job = store.job(seq)
    assert job is not None
    assert job.cause is Cause.SIGNAL


# --- nodes and queues ---------------------------------------------------------------------------------------------


def test_a_node_comes_back_with_other_gpus(store: Store, leader: LeaderStore) -> None:
    register(leader, node("n1", gpus=2))
    with leader.transaction() as transaction:
        transaction.set_node_offline("n1", True, "mine")
    register(leader, node("n1", cpus=4, gpus=1))
    [record] = store.nodes()
    assert (record.cpus, record.offline, record.note, record.features) == (4, True, "mine", ("x",))
    assert gpu_states(store) == {"n1-g0": "free", "n1-g1": "lost"}
    register(leader, node("n1", gpus=2))
    assert gpu_states(store) == {"n1-g0": "free", "n1-g1": "free"}


def test_a_node_in_use_comes_back(store: Store, leader: LeaderStore) -> None:
    seq = submit(store)
    register(leader, node("n1"))
    start(leader, gang(seq, ("n1", 8, ("n1-g0",))))
    register(leader, node("n1", cpus=2))
    [record] = store.nodes()
    assert (record.cpus, record.cpus_used) == (8, 8)
    assert gpu_states(store) == {"n1-g0": "allocated", "n1-g1": "free"}


def test_a_gpu_belongs_to_one_node_that_is_up(store: Store, leader: LeaderStore) -> None:
    register(leader, node("n1", gpus=1))
    stolen = NodeRecord(name="n2", cpus=1, mem=1, gpus=(GpuRecord(uuid="n1-g0", node="n2", index=0),))
    with leader.transaction() as transaction:
        assert transaction.upsert_node(stolen) == ("n1-g0",)
        transaction.set_node_up("n1", False)
        assert transaction.upsert_node(stolen) == ()
    assert [gpu.node for record in store.nodes() for gpu in record.gpus] == ["n2"]


def test_unknown_node(leader: LeaderStore) -> None:
    with pytest.raises(UnknownNode), leader.transaction() as transaction:
        transaction.set_node_up("n9", True)


def test_queues(store: Store, leader: LeaderStore) -> None:
    gpu = QueueRecord(name="gpu", started=False, priority=3, attributes={"ring": "check"})
    with leader.transaction() as transaction:
        transaction.put_queue(QueueRecord(name="gpu"))
        transaction.put_queue(gpu)
    assert store.queues() == [QueueRecord(name="batch"), gpu]


def test_load_sees_what_lives(store: Store, leader: LeaderStore) -> None:
    queued, running, done = (submit(store) for _ in range(3))
    register(leader, node("n1"))
    start(leader, gang(running, ("n1", 1, ("n1-g0",))), gang(done, ("n1", 1, ())))
    finish(leader, done, 1, "n1")
    state, _ = leader.load()
    assert [job.seq for job in state.jobs] == [queued, running]
    assert [attempt.key.seq for attempt in state.attempts] == [running]
    assert [(share.attempt.seq, share.gpus) for share in state.shares] == [(running, ("n1-g0",))]
    assert [record.name for record in state.nodes] == ["n1"]
    assert [queue.name for queue in state.queues] == ["batch"]


# --- leadership ---------------------------------------------------------------------------------------------------


def test_one_leads_and_the_next_one_follows(database: Database, store: Store) -> None:
    first, second = Leadership(database.leader), Leadership(database.leader)
    assert first.try_acquire("a", "a:1", lease_seconds=60.0) == 1
    assert second.try_acquire("b", "b:1") is None
    known = store.leader()
    assert (known.holder, known.address, known.live) == ("a", "a:1", True)
    assert known.timeline == store.timeline() == 1
    first.renew()
    first.release()
    assert not store.leader().live
    assert second.try_acquire("b", "b:1") == 2
    with pytest.raises(LostLeadership):
        first.renew()
    first.close()
    second.close()


def test_before_anyone_led_there_is_no_leader(store: Store) -> None:
    known = store.leader()
    assert (known.term, known.address, known.live) == (0, "", False)


def test_a_lease_runs_out(database: Database, store: Store) -> None:
    leadership = Leadership(database.leader)
    leadership.try_acquire("a", "a:1", lease_seconds=0.0)
    assert not store.leader().live
    leadership.renew(60.0)
    assert store.leader().live
    leadership.close()


def kill_lock_holder(database: Database) -> None:
    with psycopg.connect(database.owner, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks JOIN pg_database d ON d.oid = database"
            " WHERE locktype = 'advisory' AND datname = current_database()"
        )


def test_a_frozen_leader_cannot_commit_and_holds_up_no_takeover(
    database: Database, store: Store, patient_leader: LeaderStore
) -> None:
    """Only the one who takes over ends its transaction: the database would wait for ever."""
    leader = patient_leader
    seq = submit(store)
    follower = Leadership(database.leader)
    term = None
    with pytest.raises(DatabaseUnavailable), leader.transaction() as transaction:
        transaction.move_jobs([move(seq, Q, H)])
        kill_lock_holder(database)
        term = follower.try_acquire("b", "b:1")
    assert term == leader.term + 1
    with pytest.raises((LostLeadership, DatabaseUnavailable)), leader.transaction():
        pass
    with pytest.raises(LostLeadership), leader.transaction():
        pass
    job = store.job(seq)
    assert job is not None
    assert job.state is Q
    follower.close()


def test_a_frozen_transaction_frees_its_locks_by_itself(
    database: Database, limited_leader: LeaderStore
) -> None:
    freed = None
    with pytest.raises(DatabaseUnavailable), limited_leader.transaction():
        began = time.monotonic()
        with psycopg.connect(database.leader, options="-c statement_timeout=20000") as other:
            other.execute("UPDATE leadership SET term = term + 1")
        freed = time.monotonic() - began
    assert freed is not None and freed < 5 + 3, "its time is 5 s; and the machine may keep somebody waiting"


def test_renewal_does_not_wait_for_a_transaction(database: Database, store: Store) -> None:
    leadership = Leadership(database.leader)
    term = leadership.try_acquire("a", "a:1", lease_seconds=60.0)
    assert term is not None
    busy = LeaderStore(database.leader, term, limits={})
    with busy.transaction():
        leadership.renew()
    busy.close()
    leadership.close()


def test_a_killed_session_is_noticed_by_the_next_renewal(database: Database) -> None:
    leadership = Leadership(database.leader)
    leadership.try_acquire("a", "a:1")
    kill_lock_holder(database)
    with pytest.raises(LostLeadership):
        leadership.renew()
    assert leadership.try_acquire("a", "a:1") == 2
    leadership.close()


def test_many_candidates_make_one_leader(database: Database) -> None:
    candidates = [Leadership(database.leader) for _ in range(4)]
    terms: list[int | None] = []
    barrier = threading.Barrier(len(candidates))

    def run(candidate: Leadership) -> None:
        barrier.wait()
        terms.append(candidate.try_acquire("x", "x:1"))

    threads = [threading.Thread(target=run, args=(candidate,)) for candidate in candidates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(terms, key=str) == [1, None, None, None]
    for candidate in candidates:
        candidate.close()


def test_ids_jump_after_a_failover(database: Database, store: Store) -> None:
    first = submit(store)
    leadership = Leadership(database.leader)
    leadership.try_acquire("a", "a:1")
    with psycopg.connect(database.owner) as connection:
        connection.execute("UPDATE leadership SET timeline = 7")
    with closing(Store(database.api)) as new, pytest.raises(DatabaseUnavailable, match="nobody leads"):
        submit(new)
    leadership.try_acquire("a", "a:1")
    with closing(Store(database.api)) as new:
        assert submit(new) > first + 10_000
        with new._engine.connect() as connection:  # as if it had been made while its server was a standby
            connection.info["timeline"] = 0
        assert submit(new) > first + 10_000
    leadership.close()
