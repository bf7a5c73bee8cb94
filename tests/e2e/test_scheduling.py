"""What the scheduler promises, on a living cluster: limits, reservations, shares."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.e2e.conftest import running
from tests.e2e.test_masters import leading

SLEEP = "#!/bin/sh\nexec sleep 600\n"
TRUE = "#!/bin/sh\ntrue\n"


@pytest.fixture(scope="module")
def own() -> Iterator[LiveCluster]:
    """Two nodes of two GPUs, whose queues these tests may change."""
    with running(LiveCluster(agents=2, gpus=4)) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def as_found(own: LiveCluster) -> Iterator[None]:
    yield
    own.run("qdel", "-W", "0", "all", user="")
    wait_until(lambda: own.run("qselect", "-s", "QRHWE", user="").stdout == "", "no jobs")


def qmgr(cluster: LiveCluster, *directives: str) -> None:
    done = cluster.run("qmgr", stdin="\n".join(directives), user="")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def why(cluster: LiveCluster, job: str) -> str:
    return cluster.run("qstat", "--why", job).stdout


def test_limits_hold_until_they_are_changed(own: LiveCluster, users: tuple[str, str]) -> None:
    ann, bob = users
    qmgr(own, "set queue batch max_run_res.ngpus = [u:PBS_GENERIC=2]")
    try:
        first = own.qsub(SLEEP, "-l", "nodes=1:gpus=2", user=ann)
        own.wait_state(first, "R")
        second = own.qsub(SLEEP, "-l", "nodes=1:gpus=1", user=ann)
        others = own.qsub(SLEEP, "-l", "nodes=1:gpus=1", user=bob)
        own.wait_state(others, "R")
        text = f"limit of user {ann} in queue batch: 2 of 2 GPUs in use, this job needs 1"
        wait_until(lambda: text in why(own, second), text)
        refused = own.run("qsub", "-l", "nodes=2:gpus=2", stdin=TRUE, user=ann)
        assert (refused.returncode, refused.stdout) == (190, "")
        assert f"limit of user {ann} in queue batch: 0 of 2 GPUs in use, this job needs 4" in refused.stderr
        qmgr(own, "set queue batch max_run_res.ngpus = [u:PBS_GENERIC=3]")
        own.wait_state(second, "R")
    finally:
        qmgr(own, "unset queue batch max_run_res")


def test_nodes_are_kept_for_a_reservation(own: LiveCluster, users: tuple[str, str]) -> None:
    ann, bob = users
    own.hpcmesos("reserve", "add", "course", "--nodes", "node1", "--end", "+1:00:00", "--users", ann)
    try:
        assert "course" in own.hpcmesos("reserve", "list").stdout
        twice = own.hpcmesos("reserve", "add", "more", "--nodes", "node1", "--end", "+1:00:00", check=False)
        assert (twice.returncode != 0, "course has node1" in twice.stderr) == (True, True)
        denied = own.run("hpcmesos", "reserve", "rm", "course", user=bob)
        assert (denied.returncode != 0, "only operators" in denied.stderr) == (True, True)
        kept_out = own.qsub(SLEEP, "-l", "nodes=2:gpus=1", user=bob)
        inside = own.qsub(SLEEP, "-l", "nodes=1:gpus=2,walltime=0:10:00", user=bob)
        assert own.wait_state(inside, "R")["exec_host"].startswith("node2/")
        own.run("qdel", inside, user=bob)
        let_in = own.qsub(SLEEP, "-l", "nodes=2:gpus=1", user=ann)
        own.wait_state(let_in, "R")
        wait_until(lambda: "kept for a reservation" in why(own, kept_out), "why it waits")
    finally:
        own.hpcmesos("reserve", "rm", "course")
    own.run("qdel", let_in, user=ann)
    own.wait_state(kept_out, "R")


def test_nobody_runs_into_maintenance(own: LiveCluster) -> None:
    own.hpcmesos("reserve", "add", "power", "--start", "+1:00:00", "--end", "+2:00:00")
    try:
        long = own.qsub(TRUE, "-l", "nodes=1:gpus=1,walltime=2:00:00")
        short = own.qsub(TRUE, "-l", "nodes=1:gpus=1,walltime=0:10:00")
        assert own.wait(short)["Exit_status"] == 0
        assert own.job(long)["job_state"] == "Q"
        wait_until(lambda: "power" in why(own, long), "why it waits")
    finally:
        own.hpcmesos("reserve", "rm", "power")
    assert own.wait(long)["Exit_status"] == 0


def test_use_counts_and_survives_a_new_leader(own: LiveCluster, users: tuple[str, str]) -> None:
    ann, _ = users
    own.hpcmesos("share", "--project", "chem", "--user", ann, "--set", "3")
    assert own.run("hpcmesos", "share", "--project", "chem", "--set", "9", user=ann).returncode != 0
    job = own.qsub(SLEEP, "-P", "chem", "-l", "nodes=1:gpus=2", user=ann)
    own.wait_state(job, "R")

    def used() -> float:
        done = own.run(
            "curl", "-sf", "--unix-socket", str(own.described.api_sockets[0]), "http://h/v1/shares", user=""
        )
        rows = {(row["project"], row["user"]): row for row in json.loads(done.stdout)}
        assert rows["chem", ann]["shares"] == 3.0
        return float(rows["chem", ann]["gpu_hours"])

    before = wait_until(used, "use is written down", 60)
    own.run("qdel", job, user=ann)
    wait_until(lambda: own.run("qselect", "-s", "RE", user="").stdout == "", "it has ended")
    first = leading(own)
    os.kill(first.pid, signal.SIGKILL)
    leading(own, above=first.term)
    after = wait_until(lambda: now if (now := used()) > before else None, "what ran since then counts", 60)
    assert after < before + 1.0
