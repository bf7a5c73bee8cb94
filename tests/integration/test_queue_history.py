from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest

from hpcmesos.model import Cause, JobState, Request
from hpcmesos.queue.history import Place
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.records import (
    AttemptKey,
    AttemptRecord,
    JobFilter,
    JobKey,
    Move,
    NewJob,
    NodeRecord,
    Outcome,
    Release,
    ShareRecord,
    StartRecord,
)
from hpcmesos.queue.schedules import fire_due
from hpcmesos.queue.store import Store

from .invariants import check_invariants

if TYPE_CHECKING:
    from .database_kit import Database

pytest_plugins = ["tests.integration.database_kit"]

Q, R, C = JobState.QUEUED, JobState.RUNNING, JobState.COMPLETE
KEEP = timedelta(minutes=5)


@pytest.fixture(autouse=True)
def invariants_hold(database: Database) -> Iterator[None]:
    yield
    assert check_invariants(database.owner) == []


def run_to_its_end(store: Store, leader: LeaderStore, *, ended: timedelta, release: bool = True) -> int:
    """A job that ran on a node and ended so long ago."""
    new = NewJob(name="j", owner="alice", server="hpcm", queue="batch", request=Request(), script=b"x")
    seq = store.submit(new).seq
    key = AttemptKey(seq, None, 1)
    share = ShareRecord(attempt=key, node="n1", position=0, cpus=1, mem=0, slots=1)
    with leader.transaction() as transaction:
        transaction.upsert_node(NodeRecord(name="n1", cpus=64, mem=0))
        assert transaction.apply_starts([StartRecord(attempt=key, shares=(share,))])
        steps = ({"step": "0.1", "command": ["a"], "code": 0},)
        transaction.finish_attempts([AttemptRecord(key=key, cause=Cause.OK, code=0, steps=steps)])
        at = transaction.now - ended
        changes = {"exit_status": 0, "ended_at": at, "cause": Cause.OK}
        transaction.move_jobs([Move(seq=seq, index=None, source=R, target=C, event="ended", changes=changes)])
        if release:
            transaction.release_shares([Release(attempt=key, node="n1")])
    return seq


def test_a_swept_job_stays_answerable(store: Store, leader: LeaderStore, database: Database) -> None:
    old = run_to_its_end(store, leader, ended=timedelta(days=20))
    young = run_to_its_end(store, leader, ended=timedelta(seconds=1))
    before = store.job(old), store.attempts([old]), store.shares([old]), store.events(seq=old)
    assert leader.sweep(datetime.now(UTC), KEEP) == 1
    assert leader.sweep(datetime.now(UTC), KEEP) == 0
    assert (store.job(old), store.attempts([old]), store.shares([old]), store.events(seq=old)) == before
    assert [step["command"] for step in store.attempts([old])[0].steps] == [["a"]]
    assert store.shares([old], live_only=True) == []
    assert [job.seq for job in store.jobs(JobFilter())] == [young]
    assert [job.seq for job in store.jobs(JobFilter(history=True))] == [old, young]
    assert store.outcomes([JobKey(old), JobKey(young)]) == dict.fromkeys(
        (JobKey(old), JobKey(young)), Outcome(C, 0)
    )
    assert store.script(old) is None
    with psycopg.connect(database.owner) as connection:
        counts = "SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM attempts), (SELECT count(*) FROM shares)"
        assert connection.execute(counts).fetchone() == (1, 1, 1)


def test_a_job_that_a_node_still_holds_is_not_swept(store: Store, leader: LeaderStore) -> None:
    run_to_its_end(store, leader, ended=timedelta(days=1), release=False)
    assert leader.sweep(datetime.now(UTC), KEEP) == 0


def test_those_that_have_to_stay_keep_nobody_from_going(store: Store, leader: LeaderStore) -> None:
    """However many of the oldest stay: more than are looked at in one go."""
    stay = [run_to_its_end(store, leader, ended=timedelta(hours=h), release=False) for h in (9, 8, 7)]
    goes = run_to_its_end(store, leader, ended=timedelta(hours=1))
    assert leader.sweep(datetime.now(UTC), KEEP, limit=1) == 1
    assert leader.sweep(datetime.now(UTC), KEEP, limit=1) == 0
    assert sorted(job.seq for job in store.jobs(JobFilter())) == stay
    assert store.job(goes) is not None


def test_the_sweeper_takes_the_oldest_first_and_no_more_than_asked(store: Store, leader: LeaderStore) -> None:
    seqs = [run_to_its_end(store, leader, ended=timedelta(hours=h)) for h in (1, 3, 2)]
    assert leader.sweep(datetime.now(UTC), KEEP, limit=2) == 2
    assert [job.seq for job in store.jobs(JobFilter())] == [seqs[0]]


def test_a_sweep_goes_on_where_its_last_piece_has_ended(store: Store, leader: LeaderStore) -> None:
    """Also behind those that have to stay."""
    stays = run_to_its_end(store, leader, ended=timedelta(hours=4), release=False)
    for hours in (5, 3, 2):
        run_to_its_end(store, leader, ended=timedelta(hours=hours))
    place = Place()
    assert leader.sweep(datetime.now(UTC), KEEP, 2, place) == 2
    late = run_to_its_end(store, leader, ended=timedelta(hours=6))
    assert leader.sweep(datetime.now(UTC), KEEP, 2, place) == 1
    assert [job.seq for job in store.jobs(JobFilter())] == [stays, late]
    assert leader.sweep(datetime.now(UTC), KEEP) == 1


def partitions(database: Database, parent: str) -> list[str]:
    with psycopg.connect(database.leader) as connection:
        query = "SELECT relid::regclass::text FROM pg_partition_tree(%s::regclass) WHERE isleaf ORDER BY 1"
        return [row[0] for row in connection.execute(query, [parent])]


def test_partitions_are_made_ahead_and_dropped(store: Store, leader: LeaderStore, database: Database) -> None:
    old = run_to_its_end(store, leader, ended=timedelta(days=40))
    leader.sweep(datetime.now(UTC), KEEP)
    far = datetime(2040, 1, 1, 23, 59, tzinfo=UTC)
    leader.make_partitions(far, days=1)
    leader.make_partitions(far, days=1)
    assert partitions(database, "events")[-2:] == ["events_20400101", "events_20400102"]
    assert store.job(old) is not None
    with psycopg.connect(database.owner, autocommit=True) as connection:
        connection.execute(
            "ANALYZE"
        )  # as autovacuum does; the server may read the names of all tables after it
    assert leader.drop_partitions(datetime.now(UTC) - timedelta(days=30)) == 5
    assert store.job(old) is None
    assert store.outcomes([JobKey(old)]) == {}


def test_a_new_database_has_a_week_of_partitions(database: Database) -> None:
    assert len(partitions(database, "events")) == 8


def test_a_rule_fires_once_for_each_due_time(leader: LeaderStore, database: Database) -> None:
    with leader.transaction() as transaction:
        transaction.put_schedule("sweep", "* * * * *", "UTC")
        assert fire_due(transaction) == []
    with psycopg.connect(database.owner) as connection:
        connection.execute("UPDATE schedules SET since = now() - interval '10 minutes'")
    with pytest.raises(ZeroDivisionError), leader.transaction() as transaction:
        assert len(fire_due(transaction)) == 1
        raise ZeroDivisionError
    with leader.transaction() as transaction:
        [fired] = fire_due(transaction)
        assert fired.name == "sweep"
        assert timedelta(0) <= transaction.now - fired.due < timedelta(minutes=1)
        assert not transaction.fire_schedule("sweep", fired.due)
