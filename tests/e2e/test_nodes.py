"""Nodes as operators see and change them, and what becomes of jobs on nodes that do not answer."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from hpcmesos.master.absence import MARGIN
from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.e2e.conftest import running


def states(cluster: LiveCluster) -> dict[str, str]:
    """The one word of each node, as programs get it."""
    done = cluster.run("pbsnodes", "-a", "-F", "json", check=True)
    return {name: node["state"] for name, node in json.loads(done.stdout)["nodes"].items()}


def tries(cluster: LiveCluster, job: str) -> str:
    path = cluster.work() / f"{job}.tries"
    return path.read_text() if path.exists() else ""


def looping(cluster: LiveCluster, name: str) -> str:
    """A job that runs until it may end, and holds a lock as long as any process of it lives."""
    work = cluster.work()
    return f"""#!/bin/sh
exec 9>>{work}/{name}.lock
if flock -n 9; then echo alone; else echo overlap; fi >> {work}/{name}.tries
until [ -e {work}/{name}.go ]; do sleep 0.1; done
exit 7
"""


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_a_node_is_drained_and_put_back(cluster: LiveCluster) -> None:
    job = cluster.qsub(looping(cluster, "drain"), "-l", "nodes=node2")
    cluster.wait_state(job, "R")
    refused = cluster.run("pbsnodes", "-o", "node2")
    assert (refused.returncode != 0) == (cluster.user is not None), "only operators may"
    cluster.run("pbsnodes", "-o", "-N", "fan  broken", "node2", user="", check=True)
    try:
        assert states(cluster)["node2"] == "draining,offline"
        listed = cluster.run("pbsnodes", "-l", "-n", check=True).stdout
        assert listed.split() == ["node2", "draining,offline", "fan", "broken"]
        other = cluster.qsub("true\n", "-l", "nodes=node2")
        (cluster.work() / "drain.go").touch()
        assert cluster.wait(job)["Exit_status"] == 7
        wait_until(lambda: states(cluster)["node2"] == "offline", "the node is drained")
        assert cluster.job(other)["job_state"] == "Q"
    finally:
        cluster.run("pbsnodes", "-c", "node2", "-N", "", user="", check=True)
    assert cluster.wait(other)["Exit_status"] == 0
    assert states(cluster)["node2"] == "free"
    assert cluster.run("pbsnodes", "-l", check=True).stdout == ""


def test_a_node_that_is_up_cannot_be_called_gone(cluster: LiveCluster) -> None:
    done = cluster.run("pbsnodes", "--gone", "node1", user="")
    assert done.returncode != 0
    assert "node1 is up" in done.stderr


def test_views_of_the_nodes_agree(cluster: LiveCluster) -> None:
    names = ["node1", "node2", "node3", "node4"]
    text = cluster.run("pbsnodes", "-a", check=True).stdout
    assert [line for line in text.splitlines() if line and not line.startswith(" ")] == names
    xml = cluster.run("pbsnodes", "-x", check=True).stdout
    assert xml.count("<Node><name>") == 4
    assert list(states(cluster)) == names
    listed = cluster.run("pbsnodes", "-l", "all", check=True).stdout
    assert [line.split()[0] for line in listed.splitlines()] == names
    unknown = cluster.run("pbsnodes", "node9")
    assert unknown.returncode != 0
    assert "node9" in unknown.stderr
    assert cluster.run("pbsnodes", "-q", "node9").stderr == ""


def silent_node(cluster: LiveCluster, job: str) -> str:
    """Where the job runs."""
    return str(cluster.job(job)["exec_host"]).split("/")[0]


@pytest.fixture(scope="module")
def silent_pair(users_of_tests: None) -> Iterator[LiveCluster]:
    with running(LiveCluster(agents=2, gpus=2)) as cluster:
        yield cluster


@pytest.fixture
def pair(silent_pair: LiveCluster) -> Iterator[LiveCluster]:
    """Two nodes, which the tests leave as they found them."""
    silent_pair.new_work()
    yield silent_pair
    silent_pair.run("qmgr", "-c", "unset queue batch silence", user="", check=True)
    wait_until(lambda: set(states(silent_pair).values()) == {"free"}, "both nodes are back")


@pytest.mark.full
def test_a_silent_node_called_gone_gives_its_job_back(pair: LiveCluster) -> None:
    cluster = pair
    job = cluster.qsub(looping(cluster, "gone"), "-r", "y")
    wait_until(lambda: tries(cluster, "gone") == "alone\n", "the first attempt runs")
    node = silent_node(cluster, job)
    agent, shepherd = cluster.pid(f"{node}/agent"), cluster.pid(f"{node}/shepherd")
    with stopped(agent):
        wait_until(lambda: states(cluster)[node] == "down", "the node is down", 40)
        assert cluster.job(job)["job_state"] == "R", "a silent node's job waits"
        os.kill(shepherd, signal.SIGKILL)
        for line in cluster.job_processes():  # the operator has switched it off
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line.split()[0]), signal.SIGKILL)
        wait_until(lambda: not cluster.job_processes(), "the node is off")
        cluster.run("pbsnodes", "--gone", node, user="", check=True)
        assert states(cluster)[node] == "down,gone"
        wait_until(lambda: tries(cluster, "gone") == "alone\nalone\n", "it runs elsewhere")
        assert silent_node(cluster, job) != node
    (cluster.work() / "gone.go").touch()
    ended = cluster.wait(job)
    assert (ended["Exit_status"], ended["run_count"]) == (7, 2)
    assert f"culprit={node}" in ended["attempt_1"] and "cause=NODE_LOST" in ended["attempt_1"]
    wait_until(lambda: states(cluster)[node] == "free", "the node is back")


@pytest.mark.full
def test_a_fenced_queue_gives_up_a_silent_node_after_the_node_itself_has(pair: LiveCluster) -> None:
    cluster = pair
    limit = 12
    cluster.run("qmgr", "-c", f"set queue batch silence=fence:{limit}", user="", check=True)
    job = cluster.qsub(looping(cluster, "fence"), "-r", "y")
    wait_until(lambda: tries(cluster, "fence") == "alone\n", "the first attempt runs")
    node = silent_node(cluster, job)
    with stopped(cluster.pid(f"{node}/agent")):
        wait_until(lambda: not cluster.job_processes(), "the shepherd ends it by itself", limit + 12)
        assert cluster.job(job)["job_state"] == "R", "the leader does not know yet"
        wait_until(
            lambda: tries(cluster, "fence") == "alone\nalone\n", "it runs elsewhere", limit + MARGIN + 30
        )
        assert silent_node(cluster, job) != node
    (cluster.work() / "fence.go").touch()
    assert cluster.wait(job)["Exit_status"] == 7


@pytest.mark.full
def test_masters_that_are_away_shorter_than_the_limit_end_nothing(pair: LiveCluster) -> None:
    cluster = pair
    cluster.run("qmgr", "-c", "set queue batch silence=fence:30", user="", check=True)
    job = cluster.qsub(looping(cluster, "away"), "-r", "y")
    wait_until(lambda: tries(cluster, "away") == "alone\n", "the first attempt runs")
    os.kill(cluster.pid("master"), signal.SIGKILL)
    cluster.up()
    (cluster.work() / "away.go").touch()
    ended = cluster.wait(job)
    assert (ended["Exit_status"], ended["run_count"]) == (7, 1)


def audit(cluster: LiveCluster) -> list[Any]:
    import psycopg

    with psycopg.connect(cluster.database_url) as connection:
        return connection.execute("SELECT kind, payload FROM events WHERE seq IS NULL ORDER BY id").fetchall()


def test_who_changed_a_node_is_kept(cluster: LiveCluster) -> None:
    before = len(audit(cluster))
    cluster.run("pbsnodes", "-N", "hello", "node1", user="", check=True)
    cluster.run("pbsnodes", "-N", "", "node1", user="", check=True)
    user = cluster.described.user
    kept = audit(cluster)[before:]
    assert all(payload.pop("via").startswith("socket uid") for _, payload in kept)
    assert kept == [
        ("node note", {"user": user, "node": "node1", "note": "hello"}),
        ("node note", {"user": user, "node": "node1", "note": ""}),
    ]
