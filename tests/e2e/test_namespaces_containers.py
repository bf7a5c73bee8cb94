"""MPI over containers on hosts with networks of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e import docker_kit
from tests.e2e.cluster_kit import wait_until
from tests.e2e.docker_kit import IMAGE, Engine
from tests.e2e.namespace_cluster import NamespaceCluster

pytestmark = [pytest.mark.hosts, pytest.mark.root, pytest.mark.full]

RANK = """
import os
from mpi4py import MPI
world = MPI.COMM_WORLD
with open("/etc/image") as file:
    image = file.read().strip()
seen = world.gather((os.readlink("/proc/self/ns/net"), os.environ["HPCMESOS_NODE"], image))
if world.rank == 0:
    for network, node, image in seen:
        print(network, node, image)
"""


engine = docker_kit.engine


@pytest.fixture
def hosts(
    engine: Engine, users_of_tests: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[NamespaceCluster]:
    monkeypatch.setenv("DOCKER_HOST", engine.url)
    with NamespaceCluster(["node1", "node2"]) as cluster:
        yield cluster


@pytest.mark.parametrize("launcher", ["mpiexec", "hpcmesos run"])
def test_eight_ranks(hosts: NamespaceCluster, engine: Engine, launcher: str) -> None:
    options = ("-l", "nodes=2:ppn=4:gpus=4", "--image", IMAGE)
    job = hosts.submit(f"exec {launcher} python3 rank.py", *options, files={"rank.py": RANK})
    assert job.wait(120).exit_status == 0, job.said
    places = [line.split(maxsplit=2) for line in job.output.splitlines()]
    assert len(places) == 8
    assert len({network for network, _, _ in places}) == 2
    for network, node, image in places:
        assert network in hosts.hosts[node].namespaces
        assert image == "this is the image"
    wait_until(lambda: not engine.containers(), "no container is left", 60)
