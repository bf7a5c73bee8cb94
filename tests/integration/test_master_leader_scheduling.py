"""Policy in the planner: use that is counted, limits that change, gangs that go for others."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from hpcmesos import wire
from hpcmesos.master.chores import INTERVAL
from hpcmesos.model import Cause, JobState, ReasonCode
from hpcmesos.queue import documents
from hpcmesos.queue.records import JobKey, QueueRecord
from tests.integration.leader_kit import Bench, ended, request

if TYPE_CHECKING:
    from tests.integration.database_kit import Database

pytest_plugins = ["tests.integration.database_kit", "tests.integration.leader_kit"]


def used(bench: Bench) -> dict[tuple[str, str], float]:
    kept = bench.store.documents()[documents.USAGE]
    return {(project, user): amount for project, user, amount in kept["accounts"]}


def finish(bench: Bench, seq: int, cause: str = "OK", **more: object) -> None:
    node = bench.store.shares([seq], live_only=True)[0].node
    bench.say((node, ended(bench.attempt(seq), cause, **more)))


@pytest.mark.parametrize(("written", "counted"), [(None, 7200.0), (600.0, 1200.0)])
def test_a_new_leader_counts_what_was_used(
    bench: Bench, database: Database, written: float | None, counted: float
) -> None:
    """``written``: so many seconds ago the leader before wrote down that nobody had used anything."""
    bench.up("node1", gpus=2)
    seq = bench.submit(request(gpus=2), project="chem")
    bench.turn()
    bench.run(seq)
    finish(bench, seq)
    at = 0.0 if written is None else time.time() - written
    with psycopg.connect(database.owner) as connection:
        connection.execute("UPDATE attempts SET created_at = created_at - interval '1 hour'")
        connection.execute("DELETE FROM settings WHERE name = 'usage'")
        if written is not None:
            value = json.dumps({"at": at, "accounts": []})
            connection.execute("INSERT INTO settings (name, value) VALUES ('usage', %s)", [value])
    bench.take_over()
    bench.turn()
    assert used(bench) == {("chem", "ann"): pytest.approx(counted, abs=60)}


def test_what_runs_is_written_down(bench: Bench) -> None:
    bench.up("node1", gpus=2)
    seq = bench.submit(request(gpus=2), project="chem")
    bench.turn()
    bench.run(seq)
    bench.pass_time(INTERVAL)
    assert used(bench) == {("chem", "ann"): pytest.approx(2 * INTERVAL, abs=20)}
    finish(bench, seq)


def preempting(bench: Bench, **attributes: str) -> tuple[int, int]:
    """A job of a low level runs, one of a high level waits for its GPUs."""
    with bench.leader.transaction() as transaction:
        transaction.put_queue(QueueRecord(name="batch", attributes=attributes))
        transaction.put_queue(QueueRecord(name="urgent", attributes={"level": "1"}))
    bench.take_over()
    bench.up("node1", gpus=2)
    low = bench.submit(request(gpus=2))
    bench.turn()
    bench.run(low)
    return low, bench.submit(request(gpus=2), queue="urgent")


def test_a_job_of_a_higher_level_takes_the_place_of_a_lower(bench: Bench) -> None:
    low, high = preempting(bench)
    attempt = bench.attempt(low)
    sent = [*bench.turn(), *bench.turn()]
    (end,) = [message for _, message in sent if isinstance(message, wire.End)]
    assert (end.attempt, end.cause, end.message) == (attempt, Cause.PREEMPTED, f"preempted for {high}.hpcm")
    finish(bench, low, "PREEMPTED")
    bench.turn()
    assert (bench.state(low), bench.state(high)) == (JobState.QUEUED, JobState.RUNNING)
    assert bench.job(low).charged_attempts == 0
    finish(bench, high)
    bench.turn()
    assert bench.state(low) is JobState.RUNNING, "it has kept its place"
    finish(bench, low)


def test_a_preempted_job_may_save_its_work_first(bench: Bench) -> None:
    low, high = preempting(bench, preempt_grace="20")
    attempt = bench.attempt(low)
    sent = [*bench.turn(), *bench.turn()]
    assert wire.Signal(attempt=attempt, signal=int(signal.SIGUSR1)) in [message for _, message in sent]
    assert not any(isinstance(message, wire.End) for _, message in sent)
    assert not any(isinstance(message, wire.End | wire.Signal) for _, message in bench.pass_time(10.0))
    assert any(isinstance(message, wire.End) for _, message in bench.pass_time(11.0))
    finish(bench, low, "PREEMPTED")
    bench.turn()
    finish(bench, high)
    bench.turn()
    finish(bench, low)


@pytest.mark.parametrize(("cause", "code", "state"), [("APP", 85, "Q"), ("OK", 0, "C")])
def test_a_job_that_ends_within_its_grace(bench: Bench, cause: str, code: int, state: str) -> None:
    low, high = preempting(bench, preempt_grace="20")
    bench.turn()
    bench.turn()
    finish(bench, low, cause, code=code)
    bench.turn()
    assert (bench.state(low), bench.state(high)) == (JobState(state), JobState.RUNNING)
    if state == "Q":
        (attempt,) = bench.store.attempts([low])
        assert (attempt.cause, attempt.code) == (Cause.PREEMPTED, 85)
    finish(bench, high)
    bench.turn()
    if state == "Q":
        finish(bench, low)


def test_reasons_of_a_pass_outlive_its_jobs(bench: Bench) -> None:
    bench.up("node1", gpus=2)
    running = bench.submit(request(gpus=1))
    bench.turn()
    bench.run(running)
    head, behind = bench.submit(request(gpus=2), priority=5), bench.submit(request(gpus=1))
    bench.turn()
    plan = bench.planner._reasons.last_plan
    assert plan is not None
    cluster = bench.planner._desk.cluster
    cluster.pending.remove(JobKey(head))
    cluster.holdings.running.remove(cluster.job_id(JobKey(running)))
    reason = plan.reasons[cluster.job_id(JobKey(behind))]
    assert (reason.code, reason.facts["holder"]) == (ReasonCode.RESERVED, f"{head}.hpcm")
    assert set(plan.estimates()) == {cluster.job_id(JobKey(head)), cluster.job_id(JobKey(behind))}
    bench.take_over()
    bench.up("node1", gpus=2)


def test_the_error_of_estimates_is_a_figure(bench: Bench) -> None:
    bench.up("node1", gpus=2)
    running = bench.submit(request(gpus=2))
    bench.turn()
    bench.run(running)
    waiting = bench.submit(request(gpus=2))
    bench.turn()
    bench.pass_time(61.0)
    finish(bench, running)
    bench.turn()
    assert bench.state(waiting) is JobState.RUNNING
    figures = bench.planner._reasons._metrics()
    assert (figures["estimates_checked_total"], figures["estimates_within_minute_total"]) == (1, 0)
    assert figures["estimate_error_seconds_total"] == pytest.approx(86400, abs=120), "a day was assumed"
    assert bench.planner._desk.cluster.history.predict("ann", (2, 1)) is not None
    finish(bench, waiting)
