"""A backup is restored under running jobs: nothing is killed, and what the database does not know is shown."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from hpcmesos.queue import postgres
from tests.e2e.cluster_kit import LiveCluster, wait_until


def waiting(gate: Path, code: int) -> str:
    """A script that waits at a FIFO, without a process beside its shell."""
    os.mkfifo(gate)
    return f"#!/bin/sh\nread word <{gate}\nexit {code}\n"


def release(gate: Path) -> None:
    """Lets the script go on that waits there; fails when none does."""
    os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))


def copy(cluster: LiveCluster, source: Path, target: Path) -> None:
    """The files of the server, which is stopped meanwhile, with their owner."""
    data = cluster.state / "postgres"
    postgres.stop(data)
    source, target = source.resolve(), target.resolve()
    owner = data.owner()
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
    for path in (target, *target.rglob("*")):
        shutil.chown(path, owner)
    postgres.start(data, cluster.described.sockets / "pg")


def scripts(cluster: LiveCluster) -> set[str]:
    return {line for line in cluster.job_processes() if line.endswith("/script")}


def led_in(cluster: LiveCluster) -> int:
    with cluster.client() as client:
        return client.leader().term


def gpu_states(cluster: LiveCluster) -> list[str]:
    with cluster.client() as client:
        return sorted(gpu.state for node in client.nodes() for gpu in node.gpus)


def test_an_old_backup_under_running_jobs(make_cluster: Callable[..., LiveCluster]) -> None:
    cluster = make_cluster(agents=1, gpus=2)
    gate = cluster.work() / "gate"
    known = cluster.qsub(waiting(gate, 3), "-l", "nodes=1:gpus=1")
    cluster.wait_state(known, "R")
    data, backup = cluster.state / "postgres", cluster.root / "backup"
    copy(cluster, data, backup)
    late_gate = cluster.work() / "late"
    late = cluster.qsub(waiting(late_gate, 4), "-l", "nodes=1:gpus=1")
    cluster.wait_state(late, "R")
    running = wait_until(lambda: len(found := scripts(cluster)) == 2 and found, "both scripts run")
    copy(cluster, backup, data)
    wait_until(
        lambda: gpu_states(cluster) == ["allocated", "unknown-attempt"],
        "the unknown attempt's GPU is withheld",
    )
    assert scripts(cluster) == running, "nothing was killed"
    shown = cluster.run("pbsnodes", "-a", user="").stdout
    assert late in shown, shown
    cluster.hpcmesos("migrate", "--restored", "--database-url", cluster.database_url)
    wait_until(lambda: led_in(cluster) > 1_000_000, "a leader whose term no agent has seen")
    after = cluster.qsub("#!/bin/sh\nexit 6\n")
    assert int(after.split(".")[0]) > int(late.split(".")[0])
    assert cluster.wait(after)["Exit_status"] == 6
    waits = cluster.qsub("#!/bin/sh\nexit 7\n", "-l", "nodes=1:gpus=1")
    release(gate)
    ended = cluster.wait(known)
    assert (ended["Exit_status"], ended["run_count"]) == (3, 1)
    assert cluster.wait(waits)["Exit_status"] == 7, "on the GPU of the known one"
    release(late_gate)
    wait_until(lambda: gpu_states(cluster) == ["free", "free"], "its GPU is free once it has ended by itself")
