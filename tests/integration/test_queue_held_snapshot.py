"""Somebody holds a snapshot (a dump, a forgotten session): dead rows stay, and the queue is as quick as before."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from hpcmesos.model import Cause, JobState, Request
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.records import (
    AttemptKey,
    AttemptRecord,
    JobFilter,
    Move,
    NewJob,
    NodeRecord,
    Release,
    ShareRecord,
    StartRecord,
)
from hpcmesos.queue.store import Store

from .invariants import check_invariants

if TYPE_CHECKING:
    from .database_kit import Database

pytest_plugins = ["tests.integration.database_kit"]

A_ROUND, ROUNDS = 200, 40
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NEW = NewJob(name="j", owner="alice", server="hpcm", queue="batch", request=Request(), script=b"x")


def one_round(store: Store, leader: LeaderStore) -> float:
    """Jobs from their submission into history; CPU and waiting of both stores, in seconds."""
    began = time.monotonic()
    seqs = [one.seq for one in store.submit_many([NEW] * A_ROUND)]
    keys = [AttemptKey(seq, None, 1) for seq in seqs]
    with leader.transaction() as transaction:
        assert len(transaction.drain_inbox()) == A_ROUND
        shares = [ShareRecord(attempt=key, node="n1", position=0, cpus=1, mem=0, slots=1) for key in keys]
        starts = [StartRecord(attempt=share.attempt, shares=(share,)) for share in shares]
        assert len(transaction.apply_starts(starts)) == A_ROUND
    with leader.transaction() as transaction:
        transaction.finish_attempts([AttemptRecord(key=key, cause=Cause.OK, code=0) for key in keys])
        changes = {"exit_status": 0, "ended_at": transaction.now - timedelta(hours=1), "cause": Cause.OK}
        moves = [
            Move(
                seq=seq,
                index=None,
                source=JobState.RUNNING,
                target=JobState.COMPLETE,
                event="ended",
                changes=changes,
            )
            for seq in seqs
        ]
        assert len(transaction.move_jobs(moves)) == A_ROUND
        transaction.release_shares([Release(attempt=key, node="n1") for key in keys])
        assert transaction.drain_inbox() == []
    assert leader.sweep(datetime.now(UTC), timedelta(minutes=5)) == A_ROUND
    assert store.jobs(JobFilter()) == []
    return time.monotonic() - began


def test_a_held_snapshot_does_not_slow_the_queue(
    store: Store, patient_leader: LeaderStore, database: Database
) -> None:
    with patient_leader.transaction() as transaction:
        transaction.upsert_node(NodeRecord(name="n1", cpus=A_ROUND, mem=0))
    one_round(store, patient_leader)  # whatever is done once
    with psycopg.connect(database.owner) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("SELECT count(*) FROM jobs")
        took = [one_round(store, patient_leader) for _ in range(ROUNDS)]
        with psycopg.connect(database.owner, autocommit=True) as server:
            server.execute("ANALYZE")  # as autovacuum does, and sees no living job
        took += [one_round(store, patient_leader) for _ in range(6)]
        kept = reader.execute("SELECT count(*) FROM jobs").fetchone()
        assert kept == (0,), "the snapshot was held all the time"
    first, last = statistics.median(took[:6]), statistics.median(took[-6:])
    assert last < 6 * first, f"rounds of {A_ROUND} jobs took {first:.3f} s, then {last:.3f} s: {took}"
    assert check_invariants(database.owner) == []


def test_the_benchmark_beside_a_held_snapshot_fails_without_it(database: Database) -> None:
    """Somebody ends the session that holds it."""
    script = (
        "import sys, threading, types, psycopg, answering\n"
        "url = sys.argv[1]\n"
        "with answering.stranger(types.SimpleNamespace(database_url=url)):\n"
        "    with psycopg.connect(url) as other:\n"
        "        other.execute('SELECT pg_terminate_backend(pid) FROM pg_stat_activity'\n"
        "                      ' WHERE datname = current_database() AND pid <> pg_backend_pid()')\n"
        "    for thread in threading.enumerate():\n"
        "        if thread is not threading.main_thread():\n"
        "            thread.join()\n"
    )
    words = [sys.executable, "-c", script, database.owner]
    done = subprocess.run(words, cwd=BENCHMARKS, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "AdminShutdown" in done.stderr) == (1, True)
