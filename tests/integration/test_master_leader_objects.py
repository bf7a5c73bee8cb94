"""Queues and the server as the leader changes them: only it writes, every change has its event."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hpcmesos.master.events import Asked
from hpcmesos.master.links_client import Answer, Question
from hpcmesos.model import JobState
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.records import QueueRecord
from hpcmesos.queue.store import Store
from tests.integration.leader_kit import Bench, ended, settings

if TYPE_CHECKING:
    from tests.integration.database_kit import Database

pytest_plugins = ["tests.integration.database_kit"]


@pytest.fixture
def bench(store: Store, leader: LeaderStore, database: Database, tmp_path: Path) -> Iterator[Bench]:
    yield Bench(store, leader, settings(tmp_path, database.leader))


def change(bench: Bench, action: str, name: str, *changes: list[str], kind: str = "queue") -> None:
    payload = {"kind": kind, "name": name, "action": action, "changes": list(changes)}
    bench.store.wish("object", None, "ann", payload)
    bench.turn()


def queues(bench: Bench) -> dict[str, QueueRecord]:
    return {queue.name: queue for queue in bench.store.queues()}


def test_a_queue_from_its_creation_to_its_end(bench: Bench) -> None:
    change(bench, "create", "gpu", ["Priority", "=", "5"])
    assert queues(bench)["gpu"] == QueueRecord(name="gpu", enabled=False, started=False, priority=5)
    change(bench, "set", "gpu", ["enabled", "=", "true"], ["started", "=", "true"], ["ring", "=", "check"])
    made = QueueRecord(name="gpu", priority=5, attributes={"ring": "check"})
    assert queues(bench)["gpu"] == made
    bench.take_over()
    change(bench, "unset", "gpu", ["ring", "", ""])
    assert queues(bench)["gpu"] == QueueRecord(name="gpu", priority=5)
    change(bench, "delete", "gpu")
    assert set(queues(bench)) == {"batch"}
    told = [(event.kind, event.payload["user"], event.payload["name"]) for event in bench.store.events()]
    assert told == [(f"queue {what}", "ann", "gpu") for what in ("create", "set", "unset", "delete")]


def test_a_queue_with_jobs_stays(bench: Bench) -> None:
    bench.submit()
    bench.turn()
    change(bench, "delete", "batch")
    assert set(queues(bench)) == {"batch"}


def test_a_change_that_cannot_be_made_changes_nothing(bench: Bench) -> None:
    change(bench, "set", "batch", ["started", "=", "false"], ["nonsense", "=", "1"])
    change(bench, "set", "nosuch", ["started", "=", "false"])
    change(bench, "create", "batch")
    assert bench.store.queues() == [QueueRecord(name="batch")]
    assert bench.store.events() == []


def test_jobs_of_a_stopped_queue_wait(bench: Bench) -> None:
    bench.up("node1")
    change(bench, "set", "batch", ["started", "=", "false"])
    seq = bench.submit()
    bench.turn()
    assert bench.state(seq) is JobState.QUEUED
    change(bench, "set", "batch", ["started", "=", "true"])
    assert bench.state(seq) is JobState.RUNNING


def test_a_job_that_comes_in_while_its_queue_is_deleted_waits_until_it_is_moved(bench: Bench) -> None:
    bench.up("node1")
    change(bench, "create", "gpu", ["started", "=", "true"])
    change(bench, "set", "", ["scheduling", "=", "false"], kind="server")
    bench.store.wish("object", None, "ann", {"kind": "queue", "name": "gpu", "action": "delete"})
    seq = bench.submit(queue="gpu")
    bench.turn()
    assert set(queues(bench)) == {"batch"}
    why = bench.why(seq)
    assert why == ("queue-stopped", "queue gpu is no more; qmove the job to another one")
    change(bench, "set", "", ["scheduling", "=", "true"], kind="server")
    assert bench.state(seq) is JobState.QUEUED
    bench.take_over()
    bench.up("node1")
    assert (bench.state(seq), bench.why(seq)) == (JobState.QUEUED, why)
    bench.wish("move", seq, queue="batch")
    assert bench.state(seq) is JobState.RUNNING


def test_a_queue_that_is_made_anew_starts_jobs_that_came_in_while_it_was_deleted(bench: Bench) -> None:
    bench.up("node1")
    change(bench, "create", "gpu")
    bench.store.wish("object", None, "ann", {"kind": "queue", "name": "gpu", "action": "delete"})
    seq = bench.submit(queue="gpu")
    bench.turn()
    change(bench, "create", "gpu", ["started", "=", "true"])
    assert bench.state(seq) is JobState.RUNNING


def test_nothing_starts_while_scheduling_is_off(bench: Bench) -> None:
    bench.up("node1")
    change(bench, "set", "", ["scheduling", "=", "false"], kind="server")
    seq = bench.submit()
    bench.turn()
    assert bench.state(seq) is JobState.QUEUED
    bench.take_over()
    bench.up("node1")
    assert bench.state(seq) is JobState.QUEUED
    change(bench, "set", "", ["scheduling", "=", "true"], kind="server")
    assert bench.state(seq) is JobState.RUNNING
    assert bench.store.server() == {"scheduling": "True"}


@pytest.mark.parametrize(
    ("attribute", "text"),
    [
        (["max_user_run", "=", "1"], "limit of user ann in queue batch: 1 of 1 jobs in use"),
        (["max_running", "=", "1"], "limit of queue batch: 1 of 1 jobs in use"),
        (["max_run", "=", "[u:PBS_GENERIC=1]"], "limit of user ann in queue batch"),
    ],
)
def test_so_many_jobs_of_a_queue_run_at_once(bench: Bench, attribute: list[str], text: str) -> None:
    bench.up("node1")
    change(bench, "set", "batch", attribute)
    change(bench, "create", "other", ["started", "=", "true"])
    first, second, elsewhere = bench.submit(), bench.submit(), bench.submit(queue="other")
    bench.turn()
    states = [bench.state(seq) for seq in (first, second, elsewhere)]
    assert states == [JobState.RUNNING, JobState.QUEUED, JobState.RUNNING]
    answers: list[Answer] = []
    bench.turn(Asked(Question(why=[second]), answers.append))
    assert text in answers[0].why[second][1]
    bench.run(first)
    bench.say(("node1", ended(f"{first}.hpcm#1")))
    assert bench.state(second) is JobState.RUNNING


def test_so_many_jobs_of_the_server_run_at_once(bench: Bench) -> None:
    bench.up("node1")
    change(bench, "set", "", ["max_running", "=", "1"], kind="server")
    first, second = bench.submit(), bench.submit()
    bench.turn()
    assert (bench.state(first), bench.state(second)) == (JobState.RUNNING, JobState.QUEUED)
    change(bench, "unset", "", ["max_running", "", ""], kind="server")
    assert bench.state(second) is JobState.RUNNING
