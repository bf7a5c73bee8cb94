"""The site's health program takes a node out of use and back; the prolog sends a job elsewhere."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until


def configure(cluster: LiveCluster, node: str, **settings: object) -> None:
    """The agent of ``node`` is started again with these settings, and its shepherd too."""
    path = next((cluster.state / "agents" / node).rglob("agent.toml"))
    words = [f"{name} = {value}" for name, value in settings.items()]
    path.write_text(path.read_text() + "\n".join(words) + "\n")
    for daemon in ("agent", "shepherd"):
        os.kill(cluster.pid(f"{node}/{daemon}"), signal.SIGKILL)
    cluster.up()


def states(cluster: LiveCluster) -> dict[str, tuple[str, str]]:
    with cluster.client() as client:
        return {node.name: (node.state, node.note) for node in client.nodes()}


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return f'"{path}"'


@pytest.mark.full
def test_health_program(make_cluster: Callable[..., LiveCluster]) -> None:
    cluster = make_cluster(2, 2)
    sick = cluster.root / "sick"
    check = script(cluster.root / "check", f"[ ! -e {sick} ] || {{ echo the fan is dead; exit 1; }}")
    configure(cluster, "node1", health_program=check, health_interval=0.5)
    assert states(cluster)["node1"][0] == "free"
    sick.touch()
    told = ("offline", "health: check exited with 1: the fan is dead")
    wait_until(lambda: states(cluster)["node1"] == told, f"{told}", 20)
    job = cluster.qsub("#!/bin/sh\necho $HPCMESOS_NODE\n")
    assert cluster.wait(job)["Exit_status"] == 0
    assert cluster.output(job) == "node2\n"
    sick.unlink()
    wait_until(lambda: states(cluster)["node1"] == ("free", ""), "it is fit again", 20)
    cluster.run("pbsnodes", "-o", "node1", "-N", "mine", user="", check=True)
    sick.touch()
    job = cluster.qsub("#!/bin/sh\nsleep 2\n")
    cluster.wait(job)
    assert states(cluster)["node1"] == ("offline", "mine"), "what an operator said stays"


@pytest.mark.full
def test_a_job_goes_elsewhere_when_the_prolog_fails(make_cluster: Callable[..., LiveCluster]) -> None:
    cluster = make_cluster(2, 2)
    bad = script(cluster.root / "prolog", "echo no scratch >&2; exit 1")
    configure(cluster, "node1", prolog=bad)
    jobs = [cluster.qsub("#!/bin/sh\necho $HPCMESOS_NODE\n", "-l", "nodes=1:gpus=1") for _ in range(3)]
    for job in jobs:
        assert cluster.wait(job)["Exit_status"] == 0
        assert cluster.output(job) == "node2\n"
