"""A turn looks at the rows that it names, however many have ended meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import text

from hpcmesos.model import Cause, JobState, Request
from hpcmesos.queue import leader_store
from hpcmesos.queue.arrays import ArraySpec
from hpcmesos.queue.history import Place, sweep
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
    seq = an_array(store, leader)
    with psycopg.connect(database.owner, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO jobs SELECT (jsonb_populate_record(t, jsonb_build_object('seq', n, 'element', e))).*"
            f" FROM jobs t, generate_series(100000, 99999 + {arrays}) n, generate_series(-1, {elements}) e"
            f" WHERE t.seq = {seq} AND t.element = least(e, 0)"
        )
        connection.execute("ANALYZE")
    monkeypatch.setattr(leader_store, "_PLANS_LAST", 0.0)
    assert 0 < an_element(leader, AttemptKey(seq, 2, 1)) < arrays / 2


def test_a_piece_of_a_sweep_reads_what_it_moves(
    store: Store, leader: LeaderStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not all that its array has, for each piece again."""
    piece = 100
    seq = an_array(store, leader)
    with leader.transaction() as transaction:
        transaction.finish_attempts([AttemptRecord(key=AttemptKey(seq, 0, 1), cause=Cause.OK, code=0)])
        transaction.release_shares([Release(attempt=AttemptKey(seq, 0, 1), node="n1")])
        changes = {"exit_status": 0, "ended_at": transaction.now - timedelta(hours=1), "cause": Cause.OK}
        over = Move(
            seq=seq,
            index=0,
            source=JobState.RUNNING,
            target=JobState.COMPLETE,
            event="ended",
            changes=changes,
        )
        assert transaction.move_jobs([over])
    with psycopg.connect(database.owner, autocommit=True) as connection:
        for table in ("jobs", "attempts", "shares"):
            connection.execute(
                f"INSERT INTO {table} SELECT (jsonb_populate_record(t, jsonb_build_object('element', n,"
                " 'ended_at', now() - interval '1 minute' + n * interval '1 ms'))).*"
                f" FROM {table} t, generate_series(100, 99 + {MANY}) n WHERE t.seq = {seq} AND t.element = 0"
            )
        connection.execute(
            "UPDATE jobs SET state = 'C', ended_at = now() - interval '2 hours' WHERE element = -1"
        )
        connection.execute("ANALYZE")
    monkeypatch.setattr(leader_store, "_PLANS_LAST", 0.0)
    with leader.transaction() as transaction:
        before = rows_read(transaction)
        assert sweep(transaction._connection, transaction.now, piece, Place()) == piece
        assert rows_read(transaction) - before < 30 * piece


def an_array(store: Store, leader: LeaderStore) -> int:
    """Its number. It runs on a node: two of its ten elements have started."""
    with leader.transaction() as transaction:
        transaction.upsert_node(NodeRecord(name="n1", cpus=8, mem=1000, gpus=(), address="10.0.0.1"))
    spec = ArraySpec(((0, 9, 1),), None)
    new = NewJob(name="j", owner="alice", server="hpcm", queue="batch", request=Request(), array_spec=spec)
    seq = store.submit(new).seq
    for index in (0, 1):
        an_element(leader, AttemptKey(seq, index, 1))
    return seq


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
