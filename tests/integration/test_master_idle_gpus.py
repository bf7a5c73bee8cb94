"""Idle GPUs as the leader acts on them: warned of once, whoever leads, then ended where the queue wants it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hpcmesos import wire
from hpcmesos.model import Cause, JobState
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.records import IDLE, USED_AGAIN
from hpcmesos.queue.store import Store
from tests.integration.leader_kit import Bench, ended, hello, report, settings

if TYPE_CHECKING:
    from tests.integration.database_kit import Database

pytest_plugins = ["tests.integration.database_kit"]

STEP, WINDOW = 10.0, 600.0


@pytest.fixture
def bench(store: Store, leader: LeaderStore, database: Database, tmp_path: Path) -> Iterator[Bench]:
    yield Bench(store, leader, settings(tmp_path, database.leader))


@pytest.fixture
def idling(bench: Bench) -> Bench:
    """A server that ends jobs whose GPUs are idle for twice ten minutes."""
    bench.up("node1")
    set_server(bench, gpu_idle_action="cancel", gpu_idle_window="00:10:00", gpu_idle_exempt="u:bob,asked")
    return bench


def set_server(bench: Bench, **attributes: str) -> None:
    changes = [[name, "=", value] for name, value in attributes.items()]
    wish = {"kind": "server", "name": "", "action": "set", "changes": changes}
    bench.store.wish("object", None, "ann", wish)
    bench.turn()


def start(bench: Bench, **changes: Any) -> int:
    seq = bench.submit(**changes)
    bench.turn()
    bench.run(seq)
    return seq


def sampled(bench: Bench, seq: int, seconds: float, percent: float) -> list[wire.End]:
    """So many seconds with samples of the job's GPU; what its node is told to end meanwhile."""
    uuids = [uuid for share in bench.store.shares([seq]) for uuid in share.gpus]
    figures = wire.GpuFigures(
        gpus={uuid: {"utilization": percent} for uuid in uuids},
        uses={bench.attempt(seq): {"samples": 1.0, "busy_sum": percent}},
    )
    sent = []
    for _ in range(int(seconds / STEP)):
        bench.now += STEP
        sent += bench.say(("node1", figures))
    return [message for _, message in sent if isinstance(message, wire.End)]


def told(bench: Bench, seq: int) -> list[str]:
    return [event.kind for event in bench.store.events(seq=seq) if event.kind in (IDLE, USED_AGAIN)]


def test_idle_gpus_are_warned_of_then_ended(idling: Bench) -> None:
    bench = idling
    seq = start(bench)
    assert sampled(bench, seq, WINDOW - 30, 1) == [] == told(bench, seq)
    assert sampled(bench, seq, 70, 1) == []
    assert told(bench, seq) == [IDLE]
    assert "1 GPU busy for 1.0 % of the last 00:10:00" in bench.job(seq).comment
    (end,) = sampled(bench, seq, WINDOW + 30, 1)
    assert (end.attempt, end.cause) == (bench.attempt(seq), Cause.GPU_IDLE)
    assert told(bench, seq) == [IDLE]
    bench.say(("node1", ended(end.attempt, "GPU_IDLE", signal=15, message=end.message)))
    job = bench.job(seq)
    assert (job.state, job.cause, job.exit_status) == (JobState.COMPLETE, Cause.GPU_IDLE, 271)
    assert job.comment.startswith("GPU_IDLE: 1 GPU busy for 1.0 %")


def test_another_leader_does_not_warn_again(idling: Bench) -> None:
    bench = idling
    seq = start(bench)
    sampled(bench, seq, WINDOW + 40, 0)
    bench.take_over()
    bench.turn(bench.link_up(hello("node1", attempts=[report(bench.attempt(seq), "running")])))
    assert sampled(bench, seq, WINDOW - 60, 0) == [], "its own window has not passed yet"
    (end,) = sampled(bench, seq, 150, 0)
    assert end.cause == Cause.GPU_IDLE
    assert told(bench, seq) == [IDLE]


def test_a_warning_is_withdrawn_when_they_are_used(idling: Bench) -> None:
    bench = idling
    seq = start(bench)
    sampled(bench, seq, WINDOW + 40, 0)
    assert sampled(bench, seq, 2 * WINDOW, 60) == []
    assert (told(bench, seq), bench.job(seq).comment) == ([IDLE, USED_AGAIN], "")
    sampled(bench, seq, WINDOW + 60, 0)
    assert told(bench, seq) == [IDLE, USED_AGAIN, IDLE], "idle anew, warned anew"


@pytest.mark.parametrize(
    "changes", [{"owner": "bob"}, {"submission": {"environment": {}, "gpu_idle": "allowed"}}]
)
def test_the_exempt_are_left_alone(idling: Bench, changes: dict[str, Any]) -> None:
    seq = start(idling, **changes)
    assert sampled(idling, seq, 3 * WINDOW, 0) == []
    assert told(idling, seq) == []


def test_a_job_that_stands_still_is_not_idle(idling: Bench) -> None:
    seq = start(idling)
    idling.wish("suspend", seq, suspended=True)
    assert sampled(idling, seq, 2 * WINDOW, 0) == []
    assert told(idling, seq) == []


def test_gpus_without_the_figure_are_not_idle(idling: Bench) -> None:
    seq = start(idling)
    uuids = [uuid for share in idling.store.shares([seq]) for uuid in share.gpus]
    figures = wire.GpuFigures(
        gpus={uuid: {"temperature": 30.0} for uuid in uuids}, uses={idling.attempt(seq): {"samples": 1.0}}
    )
    for _ in range(int(2 * WINDOW / STEP)):
        idling.now += STEP
        idling.say(("node1", figures))
    assert told(idling, seq) == []


def test_nobody_minds_by_default(bench: Bench) -> None:
    bench.up("node1")
    seq = start(bench)
    assert sampled(bench, seq, 3 * WINDOW, 0) == []
    assert told(bench, seq) == []


def test_a_warning_does_not_outlive_its_policy_under_another_leader(idling: Bench) -> None:
    bench = idling
    seq = start(bench)
    sampled(bench, seq, WINDOW + 40, 0)
    assert told(bench, seq) == [IDLE]
    set_server(bench, gpu_idle_action="none")
    bench.take_over()
    bench.turn(bench.link_up(hello("node1", attempts=[report(bench.attempt(seq), "running")])))
    sampled(bench, seq, 70, 0)
    assert (told(bench, seq), bench.job(seq).comment) == ([IDLE, USED_AGAIN], "")


@pytest.mark.parametrize("loss", ["gone", "said"])
def test_what_was_ended_for_idleness_does_not_run_again(idling: Bench, loss: str) -> None:
    """Though its node is lost before it has told the end."""
    bench = idling
    seq = start(bench)
    (end,) = sampled(bench, seq, 2 * WINDOW + 100, 1)
    assert end.cause == Cause.GPU_IDLE
    if loss == "gone":
        bench.down("node1")
        bench.wish("node", None, node="node1", action="gone")
    else:
        bench.say(("node1", ended(end.attempt, "NODE_LOST", message="rebooted")))
    job = bench.job(seq)
    assert (job.state, job.cause, job.exit_status) == (JobState.COMPLETE, Cause.GPU_IDLE, 271)
    assert job.comment.startswith("GPU_IDLE: 1 GPU busy for 1.0 %")
