"""The spec of an attempt, and rows to snapshots and plans to rows."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from hpcmesos.config import MasterSettings
from hpcmesos.gang.policy import Policy
from hpcmesos.gang.snapshot import Member, QueueView, Snapshot, Start
from hpcmesos.master import cycle
from hpcmesos.master.cluster import Cluster
from hpcmesos.master.spec import build_spec
from hpcmesos.master.waiting import FRONT
from hpcmesos.model import Chunk, GpuState, GpuUuid, JobId, JobState, NodeName, Request
from hpcmesos.queue.records import (
    AttemptKey,
    GpuRecord,
    JobRecord,
    LeaderState,
    NodeRecord,
    QueueRecord,
    ShareRecord,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = MasterSettings(
    database_url="postgresql://",
    state=Path("/state"),
    socket=Path("/s"),
    job_path=("/opt/bin",),
    kill_delay=3.0,
)


def job(seq: int = 12, **changes: Any) -> JobRecord:
    values: dict[str, Any] = {
        "seq": seq,
        "index": None,
        "server": "hpcm",
        "name": "train",
        "owner": "ann",
        "queue": "batch",
        "state": JobState.QUEUED,
        "priority": 0,
        "request": Request((Chunk(gpus=1),), walltime=60),
        "holds": "",
        "not_before": None,
        "created_at": NOW,
        "modified_at": NOW,
        "queued_at": NOW,
        "started_at": None,
        "ended_at": None,
        "exit_status": None,
        "cause": None,
        "comment": "",
        "attempt": 0,
        "charged_attempts": 0,
        "rerunable": True,
        "excluded": (),
        "dependencies": (),
        "submit_host": "login",
        "submission": {},
    }
    return JobRecord(**values | changes)


def node(name: str = "node1", gpus: int = 2, **changes: Any) -> NodeRecord:
    records = tuple(GpuRecord(uuid=f"{name}-{i}", node=name, index=i, model="H200") for i in range(gpus))
    return NodeRecord(name=name, cpus=8, mem=2**34, gpus=records, address="10.0.0.1", peer_port=77, **changes)


def cluster(
    *jobs: JobRecord, nodes: tuple[NodeRecord, ...] = (), shares: tuple[ShareRecord, ...] = ()
) -> Cluster:
    queues = QueueRecord(name="batch"), QueueRecord(name="shut", started=False)
    state = LeaderState(jobs=jobs, attempts=(), shares=shares, nodes=nodes, queues=queues)
    return Cluster(state, "hpcm")


def look(picture: Cluster, *, whole: bool = False) -> tuple[Snapshot, bool]:
    """What a pass sees; the snapshot shares the picture's tables, so it is looked at before the next one."""
    return cycle.snapshot(picture, Policy(order="priority"), 10_000.0, whole=whole)


def share(
    name: str = "node1", seq: int = 12, number: int = 2, gpus: tuple[str, ...] = ("node1-1",)
) -> ShareRecord:
    return ShareRecord(
        attempt=AttemptKey(seq, None, number),
        node=name,
        position=0,
        cpus=2,
        mem=100,
        slots=2,
        gpus=gpus,
        ports=(20001,),
    )


@pytest.mark.parametrize("asked", [{}, {"ring": "none"}, {"ring": "check"}])
def test_a_queue_may_demand_the_ring(asked: dict[str, str]) -> None:
    about = (job(submission=asked), [(share(), node())], b"", SETTINGS)
    assert build_spec(*about)["ring"] == asked.get("ring")
    assert build_spec(*about, ring_demanded=True)["ring"] == "check"


@pytest.mark.parametrize(("of_queue", "stays"), [(None, 2 << 20), (1 << 20, 1 << 20), (1 << 40, 2 << 20)])
def test_a_queue_may_let_less_of_the_output_stay(of_queue: int | None, stays: int) -> None:
    settings = replace(SETTINGS, log_stream_mib=2)
    spec = build_spec(job(), [(share(), node())], b"", settings, log_limit=of_queue)
    assert spec["log_limit"] == stays - 4096  # room for the line that says how much is left out


def test_the_spec_has_every_key_of_the_contract() -> None:
    submission = {
        "environment": {"A": "1"},
        "workdir": "/data",
        "umask": 0o22,
        "join": "oe",
        "stdout_template": {"host": "login", "directory": "/data", "path": None, "letter": "o"},
    }
    spec = build_spec(job(attempt=2, submission=submission), [(share(), node())], b"#!/bin/sh\n", SETTINGS)
    assert {key: spec[key] for key in ("attempt", "job", "number", "index")} == {
        "attempt": "12.hpcm#2",
        "job": "12.hpcm",
        "number": 2,
        "index": None,
    }
    assert spec["members"] == [
        {
            "node": "node1",
            "address": "10.0.0.1",
            "peer_port": 77,
            "cpus": 2,
            "mem": 100,
            "slots": 2,
            "ports": [20001],
            "gpus": [{"uuid": "node1-1", "index": 1, "model": "H200", "simulated": False}],
        }
    ]
    assert base64.b64decode(spec["script"]) == b"#!/bin/sh\n"
    assert (spec["stdout"], spec["stderr"]) == ("/data/train.o12", None)
    assert (spec["walltime"], spec["kill_delay"], spec["job_path"]) == (60, 3.0, ["/opt/bin"])
    assert spec["warning"] is None
    warned = job(attempt=1, submission={"resource_list": {"signal": "USR2@0:30"}})
    assert build_spec(warned, [(share(), node())], None, SETTINGS)["warning"] == [12, 30]
    assert (spec["argv"], spec["shell"], spec["gpubind"], spec["script_args"]) == (None, None, "rank", [])
    assert (spec["mpi_network"], spec["environment"], spec["join"]) == (None, {"A": "1"}, "oe")


def test_a_snapshot_shows_what_is_free_and_who_may_start() -> None:
    held = job(1, state=JobState.HELD, holds="u", queue="deleted")
    blocked, waiting = job(2), job(3, excluded=("node9",))
    gpus = node().gpus
    dirty = structs.replace(
        node(), gpus=(gpus[0], structs.replace(gpus[1], state=GpuState.CLEANING)), cpus_used=3
    )
    picture = cluster(held, blocked, waiting, nodes=(dirty, node("node2", offline=True)))
    picture.nodes["node1"].link = picture.nodes["node2"].link = 1
    picture.blocked.add(blocked.key)
    snapshot, _ = look(picture)
    first, second = snapshot.nodes
    assert (first.up, first.cpus_free, [gpu.free for gpu in first.gpus]) == (True, 5, [True, False])
    assert not second.up
    assert [(view.id.seq, view.excluded) for view in snapshot.pending] == [(3, frozenset({"node9"}))]
    assert snapshot.stopped_queues == {"shut", "deleted"}


def test_only_the_front_of_a_long_queue_on_an_event() -> None:
    picture = cluster(*(job(seq) for seq in range(3 * FRONT, 0, -1)), job(9999, priority=5))

    def seen(whole: bool = False) -> list[int]:
        found, complete = look(picture, whole=whole)
        assert complete == whole
        return sorted(view.id.seq for view in found.pending)

    assert seen() == [*range(1, FRONT), 9999]
    picture.put(structs.replace(job(1), state=JobState.COMPLETE))
    picture.put(job(3 * FRONT, priority=9))  # what is new of the queue belongs to it
    assert seen() == [*range(2, FRONT), 3 * FRONT, 9999]
    for seq in range(2, FRONT - 100):
        picture.put(structs.replace(job(seq), state=JobState.COMPLETE))
    assert seen() == [*range(FRONT - 100, FRONT + 398), 3 * FRONT, 9999]  # it is filled up in the old order
    assert len(seen(whole=True)) == 3 * FRONT - (FRONT - 100) + 2
    for seq in range(FRONT - 100, FRONT + 500):
        picture.put(structs.replace(job(seq), state=JobState.COMPLETE))
    assert look(picture)[1], "a short queue is looked at whole"


def test_the_scheduler_sees_who_holds_what_until_when() -> None:
    running = job(attempt=2, state=JobState.RUNNING, started_at=datetime.fromtimestamp(5000, UTC))
    picture = cluster(running, nodes=(node(cpus_used=2, mem_used=100),), shares=(share(),))
    (view,) = look(picture)[0].running
    assert (view.id, view.started_at, view.ends_at, view.user) == (running.id, 5000.0, 5060.0, running.owner)
    assert [(part.node, part.cpus, part.gpus) for part in view.members] == [("node1", 2, ("node1-1",))]
    picture.put(structs.replace(running, request=replace(running.request, walltime=None)))
    (view,) = look(picture)[0].running
    assert view.ends_at == 5000.0 + Policy().assumed_walltime
    picture.release(picture.attempts["12.hpcm#2"], "node1")
    assert len(look(picture)[0].running) == 0


def test_queues_and_nodes_tell_what_the_order_and_placement_look_at() -> None:
    picture = cluster(job(1), nodes=(node(features=("a100", "switch=core1/leaf7")),))
    attributes = {"level": "2", "resources_default.walltime": "00:10:00"}
    picture.put_queue("batch", QueueRecord(name="batch", priority=10, attributes=attributes))
    found, _ = look(picture)
    assert found.queues["batch"] == QueueView("batch", priority=10, level=2, walltime=600.0)
    assert [view.switch for view in found.nodes] == ["core1/leaf7"]


def test_a_start_becomes_the_next_attempt() -> None:
    members = (
        Member(NodeName("node2"), 1, 10, 1, (GpuUuid("b"),)),
        Member(NodeName("node1"), 2, 20, 2, ()),
    )
    record = cycle.start_record(Start(JobId(12, "hpcm"), members), job(attempt=3), [(20001,), ()])
    assert record.attempt == AttemptKey(12, None, 4)
    assert [(s.node, s.position, s.cpus, s.mem, s.slots, s.gpus) for s in record.shares] == [
        ("node2", 0, 1, 10, 1, ("b",)),
        ("node1", 1, 2, 20, 2, ()),
    ]


def test_a_share_gives_back_what_it_took() -> None:
    running = job(attempt=2, state=JobState.RUNNING)
    picture = cluster(running, nodes=(node(),))
    attempt = picture.begin(running, (share(),))
    here = picture.nodes["node1"]
    assert (here.cpus_used, here.mem_used, here.gpus["node1-1"].state) == (2, 100, GpuState.ALLOCATED)
    assert picture.current(running.key) is attempt
    here.words["node1-1"] = GpuState.FREE
    assert picture.release(attempt, "node1") == {"node1-1": GpuState.FREE}
    assert (here.cpus_used, here.mem_used, here.gpus["node1-1"].state) == (0, 0, GpuState.FREE)


def test_parts_of_an_earlier_attempt_block_its_job() -> None:
    waiting = job(attempt=2)
    picture = cluster(waiting, nodes=(node(cpus_used=2, mem_used=100),), shares=(share(),))
    assert not len(look(picture)[0].pending)
    assert picture.current(waiting.key) is None
    picture.release(picture.attempts["12.hpcm#2"], "node1")
    assert len(look(picture)[0].pending) == 1
    assert not picture.attempts
