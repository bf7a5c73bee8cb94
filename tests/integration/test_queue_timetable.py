"""Schedules are changed by two threads of a leader: neither waits for the other for ever."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import psycopg

from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.schedule_rows import Schedule
from tests.integration.leader_kit import new_job, wait_until

if TYPE_CHECKING:
    from .database_kit import Database

pytest_plugins = ["tests.integration.database_kit"]


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
