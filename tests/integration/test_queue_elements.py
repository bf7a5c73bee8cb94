"""Elements of arrays in a leader's transactions: counted once, however their array's row is written."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import text

from hpcmesos.model import Cause, JobState, Request
from hpcmesos.queue.arrays import ArraySpec
from hpcmesos.queue.leader_store import LeaderStore, LeaderTransaction
from hpcmesos.queue.records import (
    AttemptKey,
    AttemptRecord,
    JobFilter,
    JobKey,
    JobRecord,
    Move,
    NewJob,
    NodeRecord,
    Outcome,
    Release,
    ShareRecord,
    StartRecord,
)
from hpcmesos.queue.store import Store
from tests.integration.race_kit import meanwhile

pytest_plugins = ["tests.integration.database_kit"]

R = JobState.RUNNING
_CHANGED = text("SELECT n_tup_upd FROM pg_stat_xact_user_tables WHERE relname = 'jobs'")


def submit_array(store: Store, leader: LeaderStore) -> int:
    """Ten elements, and a node with 4 CPUs."""
    with leader.transaction() as transaction:
        transaction.upsert_node(NodeRecord(name="n1", cpus=4, mem=1000))
    spec = ArraySpec(((0, 9, 1),), None)
    new = NewJob(name="a", owner="alice", server="hpcm", queue="batch", request=Request(), array_spec=spec)
    return store.submit(new).seq


def an_element(seq: int, index: int, cpus: int = 1, number: int = 1) -> StartRecord:
    key = AttemptKey(seq, index, number)
    share = ShareRecord(attempt=key, node="n1", position=0, cpus=cpus, mem=0, slots=1)
    return StartRecord(attempt=key, shares=(share,), new=number == 1)


def counts(store: Store, seq: int) -> tuple[int | None, int | None]:
    """Elements that ended with 0, and otherwise."""
    (parent,) = store.jobs(JobFilter(seqs=(seq,), elements=False))
    assert isinstance(parent, JobRecord)
    return parent.succeeded, parent.failed


def changes(transaction: LeaderTransaction) -> int:
    """Rows of jobs that this session has changed since it told the server's statistics."""
    return int(transaction._connection.scalar(_CHANGED) or 0)


def test_an_array_changes_once_for_those_that_end_and_begin(store: Store, leader: LeaderStore) -> None:
    seq = submit_array(store, leader)
    with leader.transaction() as transaction:
        assert len(transaction.apply_starts([an_element(seq, 0), an_element(seq, 1)])) == 2
    with leader.transaction() as transaction:
        before = changes(transaction)
        transaction.tally({seq: (1, 0)})
        transaction.tally({seq: (0, 1)})
        assert len(transaction.apply_starts([an_element(seq, 2)])) == 1
        transaction.close()
        assert changes(transaction) == before + 1
    assert counts(store, seq) == (1, 1)
    with leader.transaction() as transaction:
        transaction.tally({seq: (1, 0)})
    assert counts(store, seq) == (2, 1), "without one that begins"


def test_ends_are_counted_once_where_no_element_begins(store: Store, leader: LeaderStore) -> None:
    seq, other = submit_array(store, leader), submit_array(store, leader)
    with leader.transaction() as transaction:
        assert len(transaction.apply_starts([an_element(seq, 0), an_element(other, 0)])) == 2
    with leader.transaction() as transaction:
        transaction.tally({seq: (1, 0), other: (0, 1)})
        assert transaction.apply_starts([an_element(seq, 1, cpus=9)]) == set()
        both = [an_element(seq, 2, cpus=9), an_element(seq, 1)]
        assert transaction.apply_starts(both) == {JobKey(seq, 1)}, "the other one does not fit"
    assert (counts(store, seq), counts(store, other)) == ((1, 0), (0, 1))
    with leader.transaction() as transaction:
        transaction.tally({seq: (1, 0), other: (1, 0)})
        assert transaction.apply_starts([an_element(seq, 2)]) == {JobKey(seq, 2)}
        (parent,) = transaction.jobs(JobFilter(seqs=(other,), elements=False))
        assert parent.succeeded == 1, "whoever reads meanwhile finds them"
    assert (counts(store, seq), counts(store, other)) == ((2, 0), (1, 1))


def test_ends_of_an_array_that_may_not_begin_elements(store: Store, leader: LeaderStore) -> None:
    """One is held between the decision and its writing, and another starts in its place."""
    held, other = submit_array(store, leader), submit_array(store, leader)
    with leader.transaction() as transaction:
        assert len(transaction.apply_starts([an_element(held, 0), an_element(other, 0)])) == 2
        hold = Move(seq=held, index=None, source=R, target=R, event="held", changes={"holds": "u"})
        transaction.move_jobs([hold])
    with leader.transaction() as transaction:
        transaction.tally({held: (1, 0), other: (1, 0)})
        assert transaction.apply_starts([an_element(held, 1), an_element(other, 1)]) == {JobKey(other, 1)}
    assert (counts(store, held), counts(store, other)) == ((1, 0), (1, 0))


def test_an_array_begins_beside_one_that_runs(store: Store, leader: LeaderStore) -> None:
    fresh, running = submit_array(store, leader), submit_array(store, leader)
    with leader.transaction() as transaction:
        assert len(transaction.apply_starts([an_element(running, 0)])) == 1
    with leader.transaction() as transaction:
        transaction.tally({running: (1, 0)})
        both = [an_element(fresh, 0), an_element(running, 1)]
        assert transaction.apply_starts(both) == {JobKey(fresh, 0), JobKey(running, 1)}
    assert (counts(store, fresh), counts(store, running)) == ((0, 0), (1, 0))


def test_an_element_that_runs_again_beside_a_new_one(store: Store, leader: LeaderStore) -> None:
    """The array's row is written by the new one alone, or by none."""
    seq = submit_array(store, leader)
    for others in ([], [an_element(seq, 2)]):
        index = len(others)
        with leader.transaction() as transaction:
            assert len(transaction.apply_starts([an_element(seq, index)])) == 1
            transaction.finish_attempts(
                [AttemptRecord(key=AttemptKey(seq, index, 1), cause=Cause.NODE_LOST, code=-3)]
            )
            transaction.release_shares([Release(attempt=AttemptKey(seq, index, 1), node="n1")])
            again = Move(seq=seq, index=index, source=R, target=JobState.QUEUED, event="requeued", changes={})
            assert transaction.move_jobs([again]) == {JobKey(seq, index)}
        with leader.transaction() as transaction:
            transaction.tally({seq: (0, 1)})
            starts = [an_element(seq, index, number=2), *others]
            assert len(transaction.apply_starts(starts)) == len(starts)
        assert counts(store, seq) == (0, index + 1)


def read_while_it_begins(store: Store, leader: LeaderStore, seq: int, read: Callable[[], object]) -> object:
    """What ``read`` answers of the array's element 3, which gets its row after it was looked for in vain."""

    def begin() -> None:
        with leader.transaction() as transaction:
            assert len(transaction.apply_starts([an_element(seq, 3)])) == 1

    with meanwhile(store, "jobs_history", begin):
        return read()


def test_an_element_that_begins_while_it_is_read(store: Store, leader: LeaderStore) -> None:
    seq = submit_array(store, leader)
    job = read_while_it_begins(store, leader, seq, lambda: store.job(seq, 3))
    assert job == store.job(seq, 3)
    assert isinstance(job, JobRecord)
    assert job.state is R


def test_an_elements_outcome_is_asked_for_while_it_begins(store: Store, leader: LeaderStore) -> None:
    seq = submit_array(store, leader)
    key = JobKey(seq, 3)
    found = read_while_it_begins(store, leader, seq, lambda: store.outcomes([key]))
    assert found == {key: Outcome(R, None)}
