"""Schedules in a leader's transactions."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest

from hpcmesos.master.timetable import Firing
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.records import JobFilter, QueueRecord
from hpcmesos.queue.schedule_rows import Schedule
from hpcmesos.queue.store import Store
from tests.integration.leader_kit import new_job, wait_until

if TYPE_CHECKING:
    from .database_kit import Database

pytest_plugins = ["tests.integration.database_kit"]


@pytest.mark.parametrize("whose", ["queue", "server"])
def test_a_run_that_would_be_one_job_too_many_is_refused(
    store: Store, leader: LeaderStore, whose: str
) -> None:
    one = {"max_user_queuable": "1"}
    with leader.transaction() as transaction:
        transaction.put_queue(QueueRecord(name="batch", attributes=one if whose == "queue" else {}))
        transaction.put_server(one if whose == "server" else {})
        table = transaction.timetable()
        since = table.now - timedelta(hours=1)
        schedule = Schedule(
            owner="ann", name="x", rule=f"R3/{since:%Y-%m-%dT%H:%M:%SZ}/PT20M", since=since, missed="all",
            next_due=since, job=new_job(),
        )  # fmt: skip
        assert table.put(schedule)
        Firing(table).all_due()
    where = "queue batch" if whose == "queue" else "the server"
    outcomes = {run.outcome for run in store.schedule_runs("ann", "x", 9)}
    assert f"refused, 1 jobs of at most 1 in {where}" in outcomes
    assert len(store.jobs(JobFilter())) == 1


def test_runs_count_once(store: Store, leader: LeaderStore) -> None:
    """Also where two limits are of one kind, and where a due time has had its run."""
    limits = {"max_user_queuable": "3", "max_queued": "[g:PBS_GENERIC=3]"}
    with leader.transaction() as transaction:
        transaction.put_queue(QueueRecord(name="batch", attributes=limits))
        table = transaction.timetable()
        schedule = Schedule(owner="ann", name="x", rule="R/PT20M", since=table.now, job=new_job())
        assert table.put(schedule)
        firing = Firing(table)
        for minute in (1, 1, 2, 3, 4):
            firing.submit(schedule, table.now + timedelta(minutes=minute), 0)
    outcomes = sorted(run.outcome for run in store.schedule_runs("ann", "x", 9))
    assert outcomes == ["", "", "", "refused, 3 jobs of at most 3 in queue batch"]


def test_a_run_takes_the_place_of_the_one_that_it_replaces(store: Store, leader: LeaderStore) -> None:
    with leader.transaction() as transaction:
        transaction.put_queue(QueueRecord(name="batch", attributes={"max_queuable": "1"}))
        table = transaction.timetable()
        schedule = Schedule(
            owner="ann", name="x", rule="R/PT20M", since=table.now, overlap="replace", job=new_job()
        )
        assert table.put(schedule)
        for minute in (1, 2):
            Firing(table).submit(schedule, table.now + timedelta(minutes=minute), 0)
    assert {run.outcome for run in store.schedule_runs("ann", "x", 9)} == {""}
    assert len(store.jobs(JobFilter())) == 2


def test_one_is_removed_while_its_run_is_tried_again(patient_leader: LeaderStore, database: Database) -> None:
    with patient_leader.transaction() as transaction:
        table = transaction.timetable()
        schedule = Schedule(owner="ann", name="x", rule="", since=table.now, retries=3, job=new_job())
        assert table.put(schedule)
        assert table.claim(schedule, table.now, 0)
    with psycopg.connect(database.owner) as connection:
        connection.execute("UPDATE schedule_runs SET retry_at = now()")
    failures: list[BaseException] = []
    remover = threading.Thread(target=remove, args=(patient_leader, failures))
    with patient_leader.transaction() as transaction:
        table = transaction.timetable()
        [run] = table.retries(10)
        remover.start()
        wait_until(lambda: waiting(database), "the other one waits")
        assert table.get(run.owner, run.schedule) is not None
    remover.join()
    assert failures == []
    with patient_leader.transaction() as transaction:
        assert transaction.timetable().get("ann", "x") is None


def waiting(database: Database) -> bool:
    with psycopg.connect(database.owner) as connection:
        row = connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
    return row is not None and row[0] > 0


def remove(leader: LeaderStore, failures: list[BaseException]) -> None:
    try:
        with leader.transaction() as transaction:
            transaction.timetable().remove("ann", "x")
    except BaseException as error:
        failures.append(error)
