"""A turn looks at the rows that it names, however many have ended meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import text

from hpcmesos.model import Cause, JobState, Request
from hpcmesos.queue import leader_store
from hpcmesos.queue.arrays import ArraySpec
from hpcmesos.queue.leader_store import LeaderStore, LeaderTransaction
from hpcmesos.queue.records import (
    AttemptKey,
    AttemptRecord,
    Move,
    NewJob,
    NodeRecord,
    Release,
    ShareRecord,
    StartRecord,
)
from hpcmesos.queue.store import Store

if TYPE_CHECKING:
    from .database_kit import Database

pytest_plugins = ["tests.integration.database_kit"]

MANY = 20_000
TURNS = 40  # by then the server keeps its plans
_READ = text(
    "SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables"
    " WHERE relname IN ('jobs', 'attempts', 'shares')"
)


def a_turn(store: Store, leader: LeaderStore) -> tuple[int, int]:
    """A job starts in one transaction and ends in another; its number, and how many rows these have read."""
    queued, running, complete = JobState.QUEUED, JobState.RUNNING, JobState.COMPLETE
    new = NewJob(name="j", owner="alice", server="hpcm", queue="batch", request=Request(), state=queued)
    key = AttemptKey(store.submit(new).seq, None, 1)

    def begin(transaction: LeaderTransaction) -> None:
        share = ShareRecord(attempt=key, node="n1", position=0, cpus=1, mem=1, slots=1, gpus=())
        assert transaction.apply_starts([StartRecord(attempt=key, shares=(share,))]) == {key.job}

    def end(transaction: LeaderTransaction) -> None:
        transaction.finish_attempts([AttemptRecord(key=key, cause=Cause.OK, code=0)])
        over = Move(seq=key.seq, index=None, source=running, target=complete, event="ended", changes={})
        assert transaction.move_jobs([over]) == {key.job}
        transaction.release_shares([Release(attempt=key, node="n1")])

    return key.seq, read_by(leader, begin) + read_by(leader, end)


def read_by(leader: LeaderStore, action: Callable[[LeaderTransaction], None]) -> int:
    with leader.transaction() as transaction:
        before = rows_read(transaction)
        action(transaction)
        return rows_read(transaction) - before


def rows_read(transaction: LeaderTransaction) -> int:
    """By this session, since it told the server's statistics."""
    return int(transaction._connection.scalar(_READ) or 0)


def test_what_has_ended_costs_a_turn_nothing(
    store: Store, leader: LeaderStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with leader.transaction() as transaction:
        transaction.upsert_node(NodeRecord(name="n1", cpus=8, mem=1000, gpus=(), address="10.0.0.1"))
    for _ in range(TURNS):
        seq, _ = a_turn(store, leader)
    with psycopg.connect(database.owner) as connection:  # as many that ended like the last one
        for table in ("jobs", "attempts", "shares"):
            connection.execute(
                f"INSERT INTO {table} SELECT (jsonb_populate_record(t, jsonb_build_object('seq', n))).*"
                f" FROM {table} t, generate_series(100000, 99999 + {MANY}) n WHERE t.seq = {seq}"
            )
    monkeypatch.setattr(leader_store, "_PLANS_LAST", 0.0)
    _, read = a_turn(store, leader)
    assert 0 < read < MANY / 100


def test_other_arrays_cost_an_array_nothing(
    store: Store, leader: LeaderStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of whole arrays are the same in one column of the key: PostgreSQL 18 could read them all by that."""
    arrays, elements = 100, 200
    with leader.transaction() as transaction:
        transaction.upsert_node(NodeRecord(name="n1", cpus=8, mem=1000, gpus=(), address="10.0.0.1"))
    new = NewJob(
        name="j",
        owner="alice",
        server="hpcm",
        queue="batch",
        request=Request(),
        state=JobState.QUEUED,
        array_spec=ArraySpec(((0, 9, 1),), None),
    )
    seq = store.submit(new).seq
    for index in (0, 1):  # the array runs, and one of its elements has ended
        an_element(leader, AttemptKey(seq, index, 1))
    with psycopg.connect(database.owner, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO jobs SELECT (jsonb_populate_record(t, jsonb_build_object('seq', n, 'element', e))).*"
            f" FROM jobs t, generate_series(100000, 99999 + {arrays}) n, generate_series(-1, {elements}) e"
            f" WHERE t.seq = {seq} AND t.element = least(e, 0)"
        )
        connection.execute("ANALYZE")
    monkeypatch.setattr(leader_store, "_PLANS_LAST", 0.0)
    assert 0 < an_element(leader, AttemptKey(seq, 2, 1)) < arrays / 2


def an_element(leader: LeaderStore, key: AttemptKey) -> int:
    """It begins in one transaction, and is counted in another; how many rows these have read."""

    def begin(transaction: LeaderTransaction) -> None:
        share = ShareRecord(attempt=key, node="n1", position=0, cpus=1, mem=1, slots=1, gpus=())
        started = transaction.apply_starts([StartRecord(attempt=key, shares=(share,), new=True)])
        assert started == {key.job}

    def end(transaction: LeaderTransaction) -> None:
        transaction.tally({key.seq: (1, 0)})
        transaction.close()  # what it has left for later counts, too

    return read_by(leader, begin) + read_by(leader, end)
