"""A standby's picture, kept over many looks, is the one that a cold start would load."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

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


def test_a_queue_that_fills_is_followed(
    database: Database, store: Store, patient_leader: LeaderStore
) -> None:
    """However long the reading of many jobs takes, the next ones are read soon after."""
    standby = Standby(database.leader, "hpcm")
    job = new_job()
    total = 0
    for many in (5000, 5000, 100):
        store.submit_many([job] * many)
        total += many
        wait_until(lambda total=total: standby.known == total, "the stand-by has read them", 6.0)
    assert shown(standby.take_over().take(patient_leader)) == cold(patient_leader)
