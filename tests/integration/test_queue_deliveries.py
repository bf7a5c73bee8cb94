"""What a gateway is told to write, and in which order."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from sqlalchemy import event

from hpcmesos.master.auth import Caller
from hpcmesos.master.log_store import LogStore
from hpcmesos.master.services import outputs
from hpcmesos.master.services.output_paths import stored
from hpcmesos.model import Role
from hpcmesos.pbs.paths import parse_path
from hpcmesos.queue import room
from hpcmesos.queue.deliveries import Deliveries, DeliveryRecord
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.records import JobRecord
from hpcmesos.queue.store import Store
from tests.integration import attempts_kit
from tests.integration.database_kit import Database
from tests.integration.leader_kit import wait_until

pytest_plugins = ["tests.integration.database_kit"]


def add(deliveries: Deliveries, attempt: str, owner: str = "ann", stream: str = "stdout") -> None:
    deliveries.add(
        DeliveryRecord(
            attempt=attempt, stream=stream, gateway="login1", owner=owner, path="/home/out",
            name="out", umask=0o077, append=False, size=1,
        )
    )  # fmt: skip


def waiting(deliveries: Deliveries) -> list[tuple[str, str]]:
    return [(one.attempt, one.stream) for one in deliveries.waiting("login1")]


def test_an_earlier_attempt_is_written_first(store: Store) -> None:
    deliveries = store.deliveries
    for attempt in ("7[1].hpcm#10", "7[1].hpcm#9", "7[2].hpcm#2"):
        add(deliveries, attempt)
    add(deliveries, "7[1].hpcm#10", stream="stderr")
    assert waiting(deliveries) == [
        ("7[1].hpcm#9", "stdout"),
        ("7[2].hpcm#2", "stdout"),
        ("7[1].hpcm#10", "stderr"),
    ]
    assert deliveries.finish("login1", "7[1].hpcm#9", "stdout", "no room")
    assert ("7[1].hpcm#10", "stdout") in waiting(deliveries)


def test_nobody_waits_behind_all_that_another_has(store: Store) -> None:
    deliveries = store.deliveries
    for number in range(1, 121):
        add(deliveries, f"{number}.hpcm#1")
    add(deliveries, "200.hpcm#1", "bob")
    assert waiting(deliveries)[1] == ("200.hpcm#1", "stdout")


def test_what_the_log_store_drops_is_given_up(store: Store) -> None:
    deliveries = store.deliveries
    add(deliveries, "7.hpcm#1")
    add(deliveries, "8.hpcm#1")
    deliveries.finish("login1", "8.hpcm#1", "stdout", "")
    assert deliveries.waits("login1", "7.hpcm#1", "stdout")
    for attempt in ("7.hpcm#1", "8.hpcm#1", "9.hpcm#1"):
        deliveries.drop(attempt, "stdout")
    assert waiting(deliveries) == []
    assert not deliveries.waits("login1", "7.hpcm#1", "stdout")
    assert deliveries.outcome("7.hpcm#1", "stdout") == "dropped from the log store to make room"
    assert deliveries.outcome("8.hpcm#1", "stdout") == ""


def test_the_end_of_a_job_waits_for_no_gateway_that_is_away_or_has_much_to_do(store: Store) -> None:
    deliveries = store.deliveries
    deliveries.enrol("login1")
    assert not deliveries.prompt("login1", 45, 1)
    deliveries.seen("login1")
    add(deliveries, "7.hpcm#1")
    assert deliveries.prompt("login1", 45, 1)
    add(deliveries, "8.hpcm#1")
    assert not deliveries.prompt("login1", 45, 1)


def run_twice(store: Store, leader: LeaderStore) -> JobRecord:
    """A job whose second attempt runs, and whose output login1 writes."""
    place = stored(parse_path("/home/out", "o", "/home", "login1"))
    submission = {"gateways": {"stdout": "login1"}, "stdout_template": place, "stderr_template": place}
    job = attempts_kit.submitted(store, leader, submission=submission)
    attempts_kit.begin(leader, job, 1)
    attempts_kit.lose(leader, job, 1)
    attempts_kit.begin(leader, job, 2)
    return job


class Login:
    """The gateway, and the file that it writes."""

    def __init__(self, deliveries: Deliveries) -> None:
        self.file = ""
        self._deliveries = deliveries

    def write(self) -> None:
        while found := self._deliveries.waiting("login1"):
            for one in found:
                self.file = (self.file if one.append else "") + one.attempt.partition("#")[2]
                assert self._deliveries.finish("login1", one.attempt, one.stream, "")


def send(store: Store, place: Path, job: JobRecord, number: int) -> None:
    """The output of an attempt comes by a master with this store."""
    site: Any = SimpleNamespace(store=store, logs=LogStore(place))
    caller = Caller("root", Role.MANAGER, local=True)
    outputs.take(site, caller, f"{job.seq}.hpcm#{number}", "stdout", (0, 4), b"text")


def test_a_late_attempt_replaces_nothing(
    store: Store,
    database: Database,
    leader: LeaderStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That of a later one comes by another master between any two of its statements, and is written if it can be."""
    for name in room._LIMITS:  # this test stands still inside the transaction
        monkeypatch.setitem(room._LIMITS, name, "60s")
    job = run_twice(store, leader)
    other, login, began = Store(database.api), Login(store.deliveries), list[threading.Thread]()

    def later() -> None:
        send(other, tmp_path, job, 2)
        login.write()

    def interrupt(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "deliveries" not in statement or began:
            return
        began.append(threading.Thread(target=later))
        began[0].start()
        wait_until(lambda: not began[0].is_alive() or waits_for_a_lock(database), "the other, or its lock")

    event.listen(store._engine, "after_cursor_execute", interrupt)
    try:
        send(store, tmp_path, job, 1)
    finally:
        event.remove(store._engine, "after_cursor_execute", interrupt)
    began[0].join()
    other.close()
    login.write()
    assert login.file == "12"


def waits_for_a_lock(database: Database) -> bool:
    with psycopg.connect(database.owner) as connection:
        found = connection.execute("SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'advisory'")
        return found.fetchone() is not None


def test_what_comes_first_replaces_and_all_else_is_added(
    store: Store, leader: LeaderStore, tmp_path: Path
) -> None:
    job, login = run_twice(store, leader), Login(store.deliveries)
    send(store, tmp_path, job, 2)
    login.write()
    send(store, tmp_path, job, 1)
    send(store, tmp_path, job, 1)
    login.write()
    assert login.file == "21"
    send(store, tmp_path, run_twice(store, leader), 1)
    assert [one.append for one in store.deliveries.waiting("login1")] == [False]
