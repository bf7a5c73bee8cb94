from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import text

from hpcmesos.errors import (
    DatabaseUnavailable,
    IllegalTransition,
    InvalidValue,
    KeyReused,
    Unauthenticated,
)
from hpcmesos.model import Chunk, JobState, Placement, Request
from hpcmesos.queue.arrays import ArraySpec
from hpcmesos.queue.dependencies import Dependency, DependencyKind
from hpcmesos.queue.engine import begin, make_engine
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.records import JobFilter, JobKey, NewJob
from hpcmesos.queue.store import CHANNEL, Store

from .invariants import check_invariants

if TYPE_CHECKING:
    from .database_kit import Database

pytest_plugins = ["tests.integration.database_kit"]

REQUEST = Request((Chunk(4, cpus=2, gpus=8, mem=1 << 40, features=("a100",)),), Placement.SCATTER, 3600)


def new_job(name: str = "job", owner: str = "alice", **changes: object) -> NewJob:
    values: dict[str, object] = {"server": "hpcm", "queue": "batch", "request": REQUEST, **changes}
    return NewJob(name=name, owner=owner, **values)  # type: ignore[arg-type]  # each as its field


def test_a_job_comes_back_as_it_went_in(store: Store) -> None:
    at = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    new = new_job(
        state=JobState.WAITING,
        priority=-5,
        holds="us",
        not_before=at,
        rerunable=False,
        dependencies=(Dependency(DependencyKind.AFTER_OK, 7),),
        submit_host="login",
        submission={"argv": ["a", "ü"], "environment": {"A": "1"}, "umask": 18},
        script=b"#!/bin/sh\n\x00\xff",
        array_spec=ArraySpec(((0, 8, 2), (20, 20, 1)), 3),
    )
    seq = store.submit(new).seq
    job = store.job(seq)
    assert job is not None
    for field in ("name", "owner", "server", "queue", "request", "state", "priority", "holds", "not_before"):
        assert getattr(job, field) == getattr(new, field), field
    for field in ("rerunable", "dependencies", "submit_host", "submission", "array_spec"):
        assert getattr(job, field) == getattr(new, field), field
    assert (job.index, job.attempt, job.exit_status, job.queued_at) == (None, 0, None, None)
    assert job.created_at.utcoffset() == timedelta(0)
    assert (job.todo, job.deleted, job.succeeded, job.failed) == (((0, 9), (20, 21)), (), 0, 0)
    assert store.script(seq) == new.script


def test_a_queued_job_is_eligible_at_once_and_known_to_the_leader(store: Store, leader: LeaderStore) -> None:
    seq = store.submit(new_job()).seq
    job = store.job(seq)
    assert job is not None
    assert job.queued_at == job.created_at
    assert store.script(seq) is None
    with leader.transaction() as transaction:
        [row] = transaction.drain_inbox()
    assert (row.kind, row.seq, row.user) == ("submit", seq, "alice")


def test_unknown_job(store: Store) -> None:
    assert store.job(99) is None
    assert store.outcomes([JobKey(99)]) == {}


def test_lists_are_filtered(store: Store) -> None:
    seqs = [
        store.submit(new_job("a", "alice")).seq,
        store.submit(new_job("b", "bob", state=JobState.HELD, submission={"x": 1})).seq,
        store.submit(new_job("c", "bob", queue="gpu")).seq,
    ]

    def names(**wanted: object) -> str:
        return "".join(job.name for job in store.jobs(JobFilter(**wanted)))  # type: ignore[arg-type]  # each as its field

    assert names() == names(history=True) == "abc"
    assert names(seqs=(seqs[2], seqs[0])) == "ac"
    assert names(owners=("bob",)) == "bc"
    assert names(states=frozenset({JobState.QUEUED})) == "ac"
    assert names(queues=("gpu",), owners=("bob", "alice")) == "c"
    assert names(limit=2) == "ab"
    assert names(seqs=()) == ""
    assert store.jobs(JobFilter(brief=True))[1].submission == {}


@pytest.mark.parametrize("bad", ["zero\x00byte", "half \ud800 a pair"])
def test_what_cannot_be_stored_is_refused(store: Store, bad: str) -> None:
    with pytest.raises(InvalidValue):
        store.submit(new_job(bad))
    with pytest.raises(InvalidValue):
        store.submit(new_job(submission={"x": bad}))
    assert store.jobs(JobFilter()) == []


def test_a_job_cannot_begin_running(store: Store) -> None:
    with pytest.raises(IllegalTransition):
        store.submit(new_job(state=JobState.RUNNING))


def test_eight_twins_make_one_job(store: Store, leader: LeaderStore, database: Database) -> None:
    barrier = threading.Barrier(8)

    def submit(_: int) -> tuple[int, bool]:
        barrier.wait()
        done = store.submit(new_job(), "key", b"digest")
        return done.seq, done.replayed

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(submit, range(8)))
    assert len({seq for seq, _ in answers}) == 1
    assert sorted(replayed for _, replayed in answers) == [False] + [True] * 7
    assert len(store.jobs(JobFilter())) == 1
    with leader.transaction() as transaction:
        assert len(transaction.drain_inbox()) == 1
    assert check_invariants(database.owner, drained=True) == []


def test_a_key_is_one_users_and_one_requests(store: Store) -> None:
    first = store.submit(new_job(), "key", b"one")
    assert store.submit(new_job(), "key", b"one").seq == first.seq
    with pytest.raises(KeyReused):
        store.submit(new_job(), "key", b"two")
    assert store.submit(new_job(owner="bob"), "key", b"two").replayed is False
    assert len(store.jobs(JobFilter())) == 2


def test_old_keys_are_forgotten(store: Store, leader: LeaderStore) -> None:
    first = store.submit(new_job(), "key", b"one")
    with leader.transaction() as transaction:
        transaction.purge_keys()
    assert store.submit(new_job(), "key", b"one").replayed
    with leader.transaction() as transaction:
        transaction.purge_keys(timedelta(seconds=-1))
    again = store.submit(new_job(), "key", b"two")
    assert not again.replayed
    assert again.seq != first.seq


def test_many_jobs_in_one_call(store: Store) -> None:
    news = [new_job(f"j{i}", script=b"x%d" % i) for i in range(500)]
    done = store.submit_many(news, "bulk", b"d")
    assert [job.name for job in store.jobs(JobFilter())] == [new.name for new in news]
    assert store.script(done[499].seq) == b"x499"
    replay = store.submit_many(news, "bulk", b"d")
    assert [again.seq for again in replay] == [first.seq for first in done]
    assert all(again.replayed for again in replay)
    with pytest.raises(InvalidValue):
        store.submit_many([new_job("good"), new_job("bad\x00")])
    assert len(store.jobs(JobFilter())) == 500
    assert store.submit_many([]) == []


def test_wishes_are_pending_until_a_leader_takes_them(store: Store, leader: LeaderStore) -> None:
    first, second = (store.wish("delete", 1, "alice", {"delay": n}) for n in (1, 2))
    assert store.inbox_pending([first, second, 999]) == {first, second}
    with leader.transaction() as transaction:
        rows = transaction.drain_inbox(limit=1)
    assert [(row.id, row.payload) for row in rows] == [(first, {"delay": 1})]
    assert store.inbox_pending([first, second]) == {second}


def test_a_failed_transaction_leaves_the_inbox(store: Store, leader: LeaderStore) -> None:
    wish = store.wish("delete", 1, "alice", {})
    with pytest.raises(ZeroDivisionError), leader.transaction() as transaction:
        transaction.drain_inbox()
        raise ZeroDivisionError
    assert store.inbox_pending([wish]) == {wish}


def test_notify_reaches_a_listener(store: Store, database: Database) -> None:
    with psycopg.connect(database.leader, autocommit=True) as listener:
        listener.execute(f"LISTEN {CHANNEL}".encode())
        store.notify()
        assert [note.channel for note in listener.notifies(timeout=5, stop_after=1)] == [CHANNEL]


def test_tokens(store: Store, database: Database) -> None:
    day = timedelta(days=1)
    token = store.create_token("user", "alice", None, day, "admin")
    shown = store.verify_token(token)
    assert (shown.user, shown.kind, shown.created_by) == ("alice", "user", "admin")
    with psycopg.connect(database.owner) as connection:
        assert token.encode() not in [row[0] for row in connection.execute("SELECT hash FROM tokens")]
    join = store.create_token("join", None, "n1", day, "admin")
    old = store.create_token("user", "alice", None, -day, "admin")
    for wrong in (join, old, "nonsense"):
        with pytest.raises(Unauthenticated):
            store.verify_token(wrong)


def test_a_join_token_is_good_once_and_for_its_node(store: Store) -> None:
    join = store.create_token("join", None, "n1", timedelta(days=1), "admin")
    with pytest.raises(Unauthenticated):
        store.consume_join_token(join, "n2")
    assert store.consume_join_token(join, "n1").node == "n1"
    with pytest.raises(Unauthenticated):
        store.consume_join_token(join, "n1")
    anybody = store.create_token("join", None, None, timedelta(days=1), "admin")
    assert store.consume_join_token(anybody, "n7").node == "n7"  # by which it was used


def test_a_database_that_is_gone_is_said_so() -> None:
    store = Store("postgresql://nobody@/none?host=/nonexistent")
    with pytest.raises(DatabaseUnavailable) as caught:
        store.nodes()
    assert isinstance(caught.value.__cause__, Exception)
    assert caught.value.transient
    store.close()


def test_a_database_without_room_is_said_so(database: Database) -> None:
    engine = make_engine(database.owner, "test", pool=1)
    full = "DO $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$"
    told = "the database lacks room, or connections: could not extend file"
    with pytest.raises(DatabaseUnavailable, match=told), begin(engine) as connection:
        connection.execute(text(full))
    engine.dispose()


def test_a_broken_connection_is_replaced(store: Store, database: Database) -> None:
    assert [queue.name for queue in store.queues()] == ["batch"]
    with psycopg.connect(database.owner, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'hpcmesos-api'"
        )
    assert [queue.name for queue in store.queues()] == ["batch"]
