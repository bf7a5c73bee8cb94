"""Jobs outlive our daemons: each is killed under a running MPI job, which must not notice."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.cluster_kit import HPCMESOS, LiveCluster, wait_until
from tests.e2e.conftest import left_as_found, running

MPI_JOB = """#!/bin/sh
#PBS -l nodes=2:ppn=2:gpus=2
mpiexec -n 4 python -c '
import os, pathlib, time
from mpi4py import MPI
world = MPI.COMM_WORLD
go = pathlib.Path("{gate}")
turn = 0
while not world.bcast(go.exists() if world.rank == 0 else None):
    world.barrier()
    if world.rank == 0:
        print("turn", turn, flush=True)
        turn += 1
    time.sleep(0.05)
done = world.gather(world.rank)
if world.rank == 0:
    for rank in done:
        print("rank", rank, "done", flush=True)
'
exit 21
"""


def start(cluster: LiveCluster, name: str) -> tuple[str, Callable[[], None]]:
    """A running MPI job and the call that lets it end."""
    gate = cluster.work() / f"{name}.gate"
    job = cluster.qsub(MPI_JOB.format(gate=gate))
    wait_until(lambda: turns(cluster, job) > 3, "the ranks take turns", 30)
    return job, gate.touch


def turns(cluster: LiveCluster, job: str) -> int:
    path = cluster.work() / f"STDIN.o{job.split('.')[0]}"
    return path.read_text().count("turn") if path.exists() else 0


def goes_on(cluster: LiveCluster, job: str) -> None:
    seen = turns(cluster, job)
    wait_until(lambda: turns(cluster, job) > seen + 5, "the ranks go on", 20)


def check_whole(cluster: LiveCluster, job: str, ended: dict[str, Any]) -> None:
    lines = cluster.output(job).splitlines()
    numbers = [int(line.split()[1]) for line in lines if line.startswith("turn")]
    assert numbers == list(range(len(numbers))), "the log is whole"
    assert sorted(line for line in lines if line.startswith("rank")) == [f"rank {n} done" for n in range(4)]
    assert ended["Exit_status"] == 21
    assert ended["run_count"] == 1


@pytest.fixture(scope="module")
def enduring() -> Iterator[LiveCluster]:
    with running(LiveCluster(agents=2, gpus=4)) as cluster:
        yield cluster


@pytest.fixture
def cluster(enduring: LiveCluster) -> Iterator[LiveCluster]:
    """One after the other is killed, test by test; each leaves it whole."""
    with left_as_found(enduring):
        yield enduring


def test_each_daemon_killed_in_turn(cluster: LiveCluster) -> None:
    job, let_go = start(cluster, "daemons")
    for daemon in ("node1/agent", "node2/agent", "master"):
        os.kill(cluster.pid(daemon), signal.SIGKILL)
        goes_on(cluster, job)
    os.kill(cluster.pid("postgres"), signal.SIGQUIT)
    goes_on(cluster, job)
    cluster.up()
    goes_on(cluster, job)
    let_go()
    check_whole(cluster, job, cluster.wait(job))


@pytest.mark.full
def test_postgres_stopped_for_twenty_seconds(cluster: LiveCluster) -> None:
    job, let_go = start(cluster, "stopped")
    os.kill(cluster.pid("postgres"), signal.SIGINT)
    stopped_at = time.monotonic()
    wait_until(lambda: time.monotonic() > stopped_at + 20, "20 s pass", 30)
    goes_on(cluster, job)
    let_go()
    wait_until(lambda: cluster.output(job).count("done") == 4, "the ranks end without a database", 20)
    cluster.up()
    check_whole(cluster, job, cluster.wait(job))


def test_shepherd_killed(cluster: LiveCluster) -> None:
    here = ("-l", "nodes=node1")
    job = cluster.qsub("#!/bin/sh\nsleep 600\n", "-r", "n", *here)
    cluster.wait_state(job, "R")
    wait_until(lambda: cluster.job_processes(), "the job's process runs")
    os.kill(cluster.pid("node1/shepherd"), signal.SIGKILL)
    ended = cluster.wait(job, timeout=40)
    assert ended["Exit_status"] == -3
    assert "NODE_LOST" in str(ended)
    after = cluster.qsub("#!/bin/sh\nexit 6\n", *here)
    assert cluster.wait(after)["Exit_status"] == 6


def test_rerunnable_job_of_a_killed_shepherd_runs_again(cluster: LiveCluster) -> None:
    gate = cluster.work() / "again.gate"
    script = (
        f"#!/bin/sh\necho try >> {cluster.work()}/tries\nwhile [ ! -e {gate} ]; do sleep 0.1; done\nexit 8\n"
    )
    job = cluster.qsub(script, "-r", "y")
    wait_until(lambda: (cluster.work() / "tries").exists(), "the first attempt runs")
    node = cluster.job(job)["exec_host"].split("/")[0]
    os.kill(cluster.pid(f"{node}/shepherd"), signal.SIGKILL)
    wait_until(
        lambda: (cluster.work() / "tries").read_text().count("try") == 2, "the second attempt runs", 40
    )
    gate.touch()
    ended = cluster.wait(job)
    assert ended["Exit_status"] == 8
    assert ended["run_count"] == 2
    assert not ended["exec_host"].startswith(f"{node}/")


def test_up_restores_just_the_missing_daemon(cluster: LiveCluster) -> None:
    daemons = ["master", "node1/agent", "node2/agent", "node1/shepherd", "node2/shepherd", "postgres"]
    for victim in ("node2/agent", "master"):
        before = {daemon: cluster.pid(daemon) for daemon in daemons}
        os.kill(before[victim], signal.SIGKILL)
        cluster.up()
        after = {daemon: cluster.pid(daemon) for daemon in daemons}
        assert {daemon for daemon in daemons if before[daemon] != after[daemon]} == {victim}


STARTED = ("PostgreSQL runs", "master started", "node1 started", "node2 started")


@pytest.mark.parametrize(
    "seen", [pytest.param(line, marks=pytest.mark.full if line != STARTED[-1] else ()) for line in STARTED]
)
def test_down_ends_what_an_up_that_was_killed_had_just_started(seen: str) -> None:
    cluster = LiveCluster(agents=2, gpus=4)
    command = [*HPCMESOS, "up", *cluster.size, "--state", str(cluster.state), "--detach"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as up:
        assert up.stderr is not None
        assert any(seen in line for line in up.stderr)
        os.killpg(up.pid, signal.SIGKILL)
    try:
        cluster.down()
        assert not cluster.processes()
    finally:
        cluster.down()
        cluster.remove()
