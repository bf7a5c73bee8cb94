"""Housekeeping on a real database."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from hpcmesos.config import MasterSettings
from hpcmesos.master.timers import RULES, Timers
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.store import Store
from tests.integration.test_queue_usage_days import ran

if TYPE_CHECKING:
    from .database_kit import Database

pytest_plugins = ["tests.integration.database_kit"]


def old_partitions(database: Database) -> int:
    with psycopg.connect(database.owner) as connection:
        query = "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relname LIKE 'events\\_2%%' AND relname < %s"
        row = connection.execute(query, [f"events_{datetime.now(UTC):%Y%m%d}"]).fetchone()
    assert row is not None
    return int(row[0])


def test_a_backup_costs_no_leadership(leader: LeaderStore, database: Database, tmp_path: Path) -> None:
    leader.make_partitions(datetime.now(UTC) - timedelta(days=40), days=0)
    now = 0.0
    settings = MasterSettings(database_url=database.owner, state=tmp_path, socket=tmp_path / "api.sock")
    timers = Timers(leader, settings, lambda: now)
    with psycopg.connect(database.owner) as backup:
        backup.execute("SELECT count(*) FROM events")  # holds what pg_dump holds for as long as it runs
        timers.begin()
        assert old_partitions(database) == 1
        assert timers.look() == []
    now = 61.0
    assert timers.look() == ["partitions"]
    assert old_partitions(database) == 0


def test_a_leader_that_stops_while_it_counts_forgets_nothing(
    store: Store, leader: LeaderStore, database: Database, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    long_ago = now - timedelta(days=40)
    ran(store, leader, database, "ann", long_ago, long_ago + timedelta(hours=1))
    leader.sweep(now, timedelta(0))
    settings = MasterSettings(database_url=database.owner, state=tmp_path, socket=tmp_path / "api.sock")
    since, until = long_ago.date(), now.date()
    used = store.usage(since, until)
    assert sum(one.gpu_seconds for one in used) == 4 * 3600
    stop = threading.Event()
    stop.set()
    Timers(leader, settings).run(stop)
    assert store.usage(since, until) == used
    assert attempts_in_history(database) == 1
    Timers(leader, settings).begin()  # the next leader's
    assert store.usage(since, until) == used
    assert attempts_in_history(database) == 0


def attempts_in_history(database: Database) -> int:
    with psycopg.connect(database.owner) as connection:
        row = connection.execute("SELECT count(*) FROM attempts_history").fetchone()
    assert row is not None
    return int(row[0])


def test_every_rule_has_an_action(leader: LeaderStore, database: Database, tmp_path: Path) -> None:
    settings = MasterSettings(database_url=database.owner, state=tmp_path, socket=tmp_path / "api.sock")
    timers = Timers(leader, settings)
    timers.begin()
    with psycopg.connect(database.owner) as connection:
        connection.execute("UPDATE schedules SET since = now() - interval '2 days'")
    assert set(timers.look()) == set(RULES)
    assert timers.look() == []
