"""A standby's picture, kept over many looks, is the one that a cold start would load."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import event

from hpcmesos.errors import DatabaseUnavailable
from hpcmesos.master.cluster import Cluster
from hpcmesos.master.standby import Standby, WarmPicture
from hpcmesos.model import JobState
from hpcmesos.queue.engine import Snapshots
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.records import JobKey, Move
from hpcmesos.queue.store import Store
from tests.integration.leader_kit import new_job, request, wait_until

if TYPE_CHECKING:
    from tests.integration.database_kit import Database

pytest_plugins = ["tests.integration.database_kit"]

STANDBYS = (
    "pg_stat_activity WHERE datname = current_database()"
    " AND application_name IN ('hpcmesos-standby', 'test-standby')"
)


@pytest.fixture
def snapshots(database: Database) -> Iterator[Snapshots]:
    looks = Snapshots(database.leader, "test-standby")
    yield looks
    looks.close()


def shown(cluster: Cluster) -> dict[str, Any]:
    """What a picture holds of jobs."""
    return {
        "jobs": cluster.jobs,
        "pending": {key: cluster.pending.view(key) for key in cluster.pending.keys()},  # noqa: SIM118 - no mapping
        "dependents": cluster.dependents,
        "blocked": cluster.blocked,
        "attempts": set(cluster.attempts),
        "queues": cluster.queues,
        "nodes": set(cluster.nodes),
    }


def cold(leader: LeaderStore) -> dict[str, Any]:
    state, _ = leader.load()
    return shown(Cluster(state, "hpcm"))


def move(leader: LeaderStore, seq: int, source: JobState, target: JobState, **changes: Any) -> None:
    with leader.transaction() as transaction:
        moved = transaction.move_jobs(
            [Move(seq=seq, index=None, source=source, target=target, event="test", changes=changes)]
        )
    assert moved


def test_a_warm_picture_is_the_cold_one(
    store: Store, patient_leader: LeaderStore, snapshots: Snapshots
) -> None:
    dice = random.Random(7)
    warm = WarmPicture("hpcm")
    states: dict[int, JobState] = {}
    for _ in range(12):
        for submitted in store.submit_many(
            [new_job(request(), priority=dice.randrange(3)) for _ in range(20)]
        ):
            states[submitted.seq] = JobState.QUEUED
        for seq in dice.sample(sorted(states), 8):
            if states[seq] is JobState.COMPLETE:
                continue
            target = dice.choice([JobState.HELD, JobState.QUEUED, JobState.COMPLETE])
            if target is JobState.COMPLETE:
                move(patient_leader, seq, states[seq], target, cause="DELETED")
            else:
                move(patient_leader, seq, states[seq], target, priority=dice.randrange(9))
            states[seq] = target
        warm.look(snapshots)
    store.submit_many([new_job(), new_job()])
    assert shown(warm.take(patient_leader)) == cold(patient_leader)
    assert len(states) > len(cold(patient_leader)["jobs"]) > 100


def test_a_look_reads_only_what_changed(
    store: Store, patient_leader: LeaderStore, snapshots: Snapshots
) -> None:
    warm = WarmPicture("hpcm")
    seqs = [submitted.seq for submitted in store.submit_many([new_job()] * 300)]
    assert warm.look(snapshots) == 300
    move(patient_leader, seqs[5], JobState.QUEUED, JobState.HELD, holds="u")
    assert warm.look(snapshots) < 10
    assert shown(warm.take(patient_leader))["jobs"][JobKey(seqs[5])].state is JobState.HELD


def test_jobs_that_were_swept_between_two_looks_are_gone(
    store: Store, patient_leader: LeaderStore, snapshots: Snapshots
) -> None:
    warm = WarmPicture("hpcm")
    seqs = [submitted.seq for submitted in store.submit_many([new_job()] * 5)]
    warm.look(snapshots)
    move(patient_leader, seqs[0], JobState.QUEUED, JobState.COMPLETE, cause="DELETED")
    assert patient_leader.sweep(datetime.now(UTC) + timedelta(days=1), timedelta(0)) == 1
    warm.look(snapshots)
    assert shown(warm.take(patient_leader)) == cold(patient_leader)


def test_a_transaction_that_was_under_way_at_one_look_is_seen_by_the_next(
    database: Database, store: Store, patient_leader: LeaderStore, snapshots: Snapshots
) -> None:
    warm = WarmPicture("hpcm")
    seq = store.submit(new_job()).seq
    with psycopg.connect(database.owner) as slow:
        slow.execute("UPDATE jobs SET priority = 77 WHERE seq = %s", [seq])
        store.submit_many([new_job()] * 5)  # later transactions are over before it
        warm.look(snapshots)
    warm.look(snapshots)
    assert shown(warm.take(patient_leader)) == cold(patient_leader)
    assert cold(patient_leader)["jobs"][JobKey(seq)].priority == 77


def test_what_a_broken_rehearsal_saw_is_not_lost(
    database: Database, store: Store, patient_leader: LeaderStore, snapshots: Snapshots
) -> None:
    warm = WarmPicture("hpcm")
    store.submit_many([new_job()] * 5)
    warm.look(snapshots)
    store.submit_many([new_job()] * 5)

    def end(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "FROM shares" in statement:
            with psycopg.connect(database.owner) as other:
                other.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM {STANDBYS}")

    event.listen(snapshots._engine, "after_cursor_execute", end)
    with pytest.raises(DatabaseUnavailable):
        warm.rehearse(snapshots)
    event.remove(snapshots._engine, "after_cursor_execute", end)
    warm.look(snapshots)
    assert shown(warm.take(patient_leader)) == cold(patient_leader)


def test_the_pace_is_set_by_what_was_read(
    database: Database, store: Store, patient_leader: LeaderStore
) -> None:
    looks: list[int] = []

    def pace(took: float, read: int) -> float:
        assert took > 0.0
        looks.append(read)
        return 0.01

    standby = Standby(database.leader, "hpcm", pace=pace)
    wait_until(lambda: looks, "the first look")
    total = 0
    for many in (300, 200, 1):
        store.submit_many([new_job()] * many)
        total += many
        wait_until(lambda total=total: standby.known == total, "the stand-by has read them")
    assert shown(standby.take_over().take(patient_leader)) == cold(patient_leader)
    assert sum(looks) >= total


def test_a_look_that_takes_long_is_not_thrown_away(
    database: Database, store: Store, patient_leader: LeaderStore
) -> None:
    """One master restarts before a long queue: the lock is free at once, its picture is not there yet."""
    store.submit_many([new_job()] * 100)
    said: list[str] = []
    silence, slow = 3.0, threading.Event()

    def answer(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        said.append(statement)
        if "FROM jobs" in statement and not slow.is_set():
            slow.wait(silence + 1.0)  # as long as many jobs would take, once
            slow.set()

    with locked_jobs(database):
        standby = Standby(database.leader, "hpcm", silence=silence)
        wait_until(lambda: waits_for_lock(database), "the look is under way")
        event.listen(standby._snapshots._engine, "after_cursor_execute", answer)
    picture = standby.take_over()
    assert picture.known == 100
    assert not [statement for statement in said if "FROM shares" in statement]  # no rehearsal any more
    assert gc.isenabled()
    assert shown(picture.take(patient_leader)) == cold(patient_leader)


def test_a_look_that_the_database_does_not_answer_holds_nobody_up(
    database: Database, store: Store, patient_leader: LeaderStore
) -> None:
    store.submit_many([new_job()] * 10)
    with locked_jobs(database):
        standby = Standby(database.leader, "hpcm", silence=0.3)
        wait_until(lambda: waits_for_lock(database), "the look is under way")
        picture = standby.take_over()
        assert not standby._thread.is_alive()
        assert gc.isenabled()
    assert picture.known == 0
    assert shown(picture.take(patient_leader)) == cold(patient_leader)


@contextmanager
def locked_jobs(database: Database) -> Iterator[None]:
    """Who reads jobs waits for as long."""
    with psycopg.connect(database.owner) as other:
        other.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
        yield


def waits_for_lock(database: Database) -> bool:
    with psycopg.connect(database.owner) as other:
        found = other.execute(f"SELECT 1 FROM {STANDBYS} AND wait_event_type = 'Lock'").fetchone()
    return found is not None
