"""The spec of an attempt, and rows to snapshots and plans to rows."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hpcmesos.config import MasterSettings
from hpcmesos.gang.snapshot import Member, Start
from hpcmesos.master import cycle
from hpcmesos.master.cluster import Cluster
from hpcmesos.master.spec import build_spec
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
    state = LeaderState(
        jobs=jobs, attempts=(), shares=shares, nodes=nodes, queues=(QueueRecord(name="shut", started=False),)
    )
    return Cluster(state, "hpcm")


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
    assert (spec["argv"], spec["shell"], spec["gpubind"], spec["script_args"]) == (None, None, "rank", [])
    assert (spec["mpi_network"], spec["environment"], spec["join"]) == (None, {"A": "1"}, "oe")


def test_a_snapshot_shows_what_is_free_and_who_may_start() -> None:
    held = job(1, state=JobState.HELD, holds="u")
    blocked, waiting = job(2), job(3, excluded=("node9",))
    gpus = node().gpus
    dirty = replace(node(), gpus=(gpus[0], replace(gpus[1], state=GpuState.CLEANING)), cpus_used=3)
    picture = cluster(held, blocked, waiting, nodes=(dirty, node("node2", offline=True)))
    picture.nodes["node1"].link = picture.nodes["node2"].link = 1
    picture.blocked.add(blocked.key)
    snapshot, _ = cycle.snapshot(picture, None)
    first, second = snapshot.nodes
    assert (first.up, first.cpus_free, [gpu.free for gpu in first.gpus]) == (True, 5, [True, False])
    assert not second.up
    assert [(view.id.seq, view.excluded) for view in snapshot.pending] == [(3, frozenset({"node9"}))]
    assert snapshot.stopped_queues == {"shut"}


def test_only_the_front_of_the_queue_on_an_event() -> None:
    picture = cluster(*(job(seq) for seq in range(10, 0, -1)), job(99, priority=5))
    assert [view.id.seq for view in cycle.snapshot(picture, 3)[0].pending] == [99, 1, 2]
    picture.put(replace(job(1), state=JobState.COMPLETE))
    picture.put(job(2, priority=9))
    assert [view.id.seq for view in cycle.snapshot(picture, 3)[0].pending] == [2, 99, 3]


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
    assert not cycle.snapshot(picture, None)[0].pending
    assert picture.current(waiting.key) is None
    picture.release(picture.attempts["12.hpcm#2"], "node1")
    assert len(cycle.snapshot(picture, None)[0].pending) == 1
    assert not picture.attempts
