"""What a report counts: clipped to days, kept when its attempts are forgotten."""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
from sqlalchemy import event

from hpcmesos.errors import DatabaseUnavailable
from hpcmesos.model import Request
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.records import AttemptKey, GpuRecord, NewJob, NodeRecord, ShareRecord, StartRecord
from hpcmesos.queue.store import Store

if TYPE_CHECKING:
    from .database_kit import Database

pytest_plugins = ["tests.integration.database_kit"]

DAY = date(2026, 3, 1)


def at(day: int, hour: int) -> datetime:
    return datetime(2026, 3, day, hour, tzinfo=UTC)


def ran(
    store: Store,
    leader: LeaderStore,
    database: Database,
    owner: str,
    began: datetime,
    ended: datetime,
    cause: str = "OK",
    project: str = "",
) -> int:
    """A job of two GPUs and four CPUs on each of two nodes that ran then; its rows are made to say so."""
    new = NewJob(name="j", owner=owner, server="hpcm", queue="batch", request=Request(), project=project)
    seq = store.submit(new).seq
    key = AttemptKey(seq, None, 1)
    with leader.transaction() as transaction:
        shares = []
        for place, name in enumerate(("n1", "n2")):
            gpus = tuple(GpuRecord(uuid=f"{seq}{name}{one}", node=name, index=one) for one in range(2))
            transaction.upsert_node(NodeRecord(name=name, cpus=64, mem=0, gpus=gpus))
            uuids = tuple(gpu.uuid for gpu in gpus)
            shares.append(
                ShareRecord(attempt=key, node=name, position=place, cpus=4, mem=0, slots=1, gpus=uuids)
            )
        assert transaction.apply_starts([StartRecord(attempt=key, shares=tuple(shares))])
    with psycopg.connect(database.owner) as connection:
        times = [began, ended, cause, seq]
        connection.execute(
            "UPDATE attempts SET started_at = %s, ended_at = %s, cause = %s WHERE seq = %s", times
        )
        connection.execute("DELETE FROM allocations WHERE seq = %s", [seq])
        connection.execute("UPDATE shares SET released_at = %s WHERE seq = %s", [ended, seq])
        job = "UPDATE jobs SET state = 'C', ended_at = %s, exit_status = 0, cause = %s WHERE seq = %s"
        connection.execute(job, [ended, cause, seq])
        connection.execute("UPDATE nodes SET cpus_used = 0")
    return seq


def test_days_keys_and_what_was_lost(store: Store, leader: LeaderStore, database: Database) -> None:
    ran(store, leader, database, "ann", at(1, 22), at(2, 1), project="p")  # 3 h x 4 GPUs over midnight
    ran(store, leader, database, "ann", at(2, 3), at(2, 4), cause="NODE_LOST", project="p")
    ran(store, leader, database, "bob", at(2, 3), at(2, 4))
    found = store.usage(DAY, DAY + timedelta(days=2))
    assert [
        (u.day.day, u.owner, u.project, u.runs, u.gpu_seconds / 3600, u.cpu_seconds / 3600) for u in found
    ] == [
        (1, "ann", "p", 1, 8, 16),
        (2, "ann", "p", 1, 8, 16),
        (2, "bob", "", 1, 4, 8),
    ]
    assert [u.lost_gpu_seconds / 3600 for u in found] == [0, 4, 0]
    assert store.usage(DAY + timedelta(days=1), DAY + timedelta(days=2)) == found[1:]
    assert store.usage(DAY + timedelta(days=5), DAY + timedelta(days=9)) == []


def test_what_is_forgotten_stays_counted(store: Store, leader: LeaderStore, database: Database) -> None:
    ran(store, leader, database, "ann", at(1, 22), at(2, 1))
    ran(store, leader, database, "bob", at(4, 1), at(4, 2))
    everything = store.usage(DAY, DAY + timedelta(days=9))
    leader.make_partitions(at(1, 0), days=9)
    assert leader.sweep(at(9, 0), timedelta(0), 100) == 2
    assert store.usage(DAY, DAY + timedelta(days=9)) == everything  # now from history
    leader.write_usage(date(2026, 3, 3))
    leader.write_usage(date(2026, 3, 3))  # again: nothing changes
    with psycopg.connect(database.owner) as connection:
        connection.execute("ANALYZE")
    leader.drop_partitions(at(3, 0))
    assert store.usage(DAY, DAY + timedelta(days=9)) == everything


def test_days_that_are_written_and_forgotten_during_a_report_are_in_it(
    store: Store, leader: LeaderStore, database: Database
) -> None:
    for day in (1, 2):
        ran(store, leader, database, "ann", at(day, 3), at(day, 4))
    leader.make_partitions(at(1, 0), days=9)
    assert leader.sweep(at(9, 0), timedelta(0), 100) == 2
    everything = store.usage(DAY, DAY + timedelta(days=9))
    forgotten = []

    def forget(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "usage_days" in statement and not forgotten:
            forgotten.append(leader.write_usage(date(2026, 3, 3)))
            with suppress(DatabaseUnavailable):  # the report may hold what it still has to read
                leader.drop_partitions(at(3, 0))

    event.listen(store._history, "after_cursor_execute", forget)
    assert store.usage(DAY, DAY + timedelta(days=9)) == everything
    assert forgotten == [True]
    assert written(database) == [DAY, DAY + timedelta(days=1)]


def test_what_runs_counts_until_now(store: Store, leader: LeaderStore, database: Database) -> None:
    now = datetime.now(UTC)
    seq = ran(store, leader, database, "ann", now - timedelta(minutes=30), now)
    with psycopg.connect(database.owner) as connection:
        connection.execute("UPDATE jobs SET state = 'R', ended_at = NULL, cause = NULL WHERE seq = %s", [seq])
        connection.execute("UPDATE attempts SET ended_at = NULL, cause = NULL WHERE seq = %s", [seq])
    found = store.usage(now.date() - timedelta(days=1), now.date() + timedelta(days=1))
    assert 7200 <= sum(one.gpu_seconds for one in found) < 7300
    assert sum(one.runs for one in found) == 1


def test_days_that_are_written_stay_when_the_rest_is_put_off(
    store: Store, leader: LeaderStore, database: Database
) -> None:
    """A history that takes longer than a leader may stay is written down in several goes."""
    for day in (1, 2, 3):
        ran(store, leader, database, "ann", at(day, 3), at(day, 4))
    asked = iter([False, False, True])
    assert not leader.write_usage(date(2026, 3, 4), lambda: next(asked))
    assert written(database) == [DAY, DAY + timedelta(days=1)]
    assert leader.write_usage(date(2026, 3, 4))
    assert written(database) == [DAY + timedelta(days=n) for n in range(3)]


def test_a_count_may_take_longer_than_a_leaders_statements(
    store: Store, leader: LeaderStore, database: Database
) -> None:
    ran(store, leader, database, "ann", at(1, 3), at(1, 4))
    hurried = LeaderStore(database.leader, leader.term, limits={"statement_timeout": 1000})
    with psycopg.connect(database.owner) as slow:
        slow.execute("LOCK TABLE attempts_history")  # as long as a count of a million rows
        timer = threading.Timer(3.0, slow.commit)
        timer.start()
        hurried.write_usage(date(2026, 3, 4))
        timer.join()
    hurried.close()
    assert written(database) == [DAY]


def written(database: Database) -> list[date]:
    with psycopg.connect(database.owner) as connection:
        return [row[0] for row in connection.execute("SELECT day FROM usage_days ORDER BY day")]
