"""Health of GPUs in a whole cluster, over a stand-in for NVIDIA's library: the agents take the cards for real ones."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.e2e.conftest import running
from tests.nvml.plugin import default_uuid, machine_of

pytestmark = pytest.mark.full
LOOK = 40.0
"""Seconds: the probe is asked each 10 s."""


@pytest.fixture
def cards(fake_nvml: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Changes the machine's two cards."""

    def change(*gpus: dict[str, Any]) -> None:
        for name, value in fake_nvml(gpus or [{}, {}]).items():
            monkeypatch.setenv(name, value)

    change()
    return change


Cards = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def two_cards(fake_nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Cards:
    """Changes the two cards of `healthy`, which are none of those that other tests here have."""
    machine = machine_of(fake_nvml_library, tmp_path_factory.mktemp("cards"))
    uuids = [{"uuid": default_uuid(index)} for index in (10, 11)]

    def change(*gpus: dict[str, Any]) -> dict[str, str]:
        return machine([card | more for card, more in zip(uuids, gpus or ({}, {}), strict=True)])

    return change


@pytest.fixture(scope="module")
def node_of_two(two_cards: Cards, users_of_tests: None) -> Iterator[LiveCluster]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in two_cards().items():
            patch.setenv(name, value)
        with running(LiveCluster(agents=1, gpus=2)) as cluster:
            yield cluster


@pytest.fixture
def healthy(node_of_two: LiveCluster, two_cards: Cards) -> LiveCluster:
    """One node with two cards; `two_cards` changes them."""
    two_cards()
    node_of_two.new_work()
    wait_until(lambda: gpu_states(node_of_two) == ["free", "free"], "two free cards", LOOK)
    return node_of_two


def gpu_states(cluster: LiveCluster) -> list[str]:
    with cluster.client() as client:
        return [gpu.state for node in client.nodes() for gpu in node.gpus]


def test_a_bad_card_costs_one_card(healthy: LiveCluster, two_cards: Cards) -> None:
    cluster = healthy
    two_cards({"xids": [43, 31]}, {})
    two_cards({"xids": [43, 31]}, {"xids": [48]})
    wait_until(lambda: gpu_states(cluster) == ["free", "quarantined"], "the second card is out of use", LOOK)
    assert "XID 48: double-bit ECC error" in cluster.run("pbsnodes").stdout
    both = cluster.qsub("#!/bin/sh\ntrue\n", "-l", "nodes=1:gpus=2")
    one = cluster.qsub("#!/bin/sh\necho $CUDA_VISIBLE_DEVICES\n", "-l", "nodes=1:gpus=1")
    assert cluster.wait(one)["Exit_status"] == 0
    assert cluster.job(both)["job_state"] == "Q"
    refused = cluster.run("pbsnodes", "-c", "--gpu", "1", "node1")
    assert refused.returncode != 0, "a user may not"
    cluster.run("pbsnodes", "-c", "--gpu", "1", "node1", user="", check=True)
    assert cluster.wait(both)["Exit_status"] == 0


def test_an_operator_takes_a_card_out_of_use(healthy: LiveCluster) -> None:
    cluster = healthy
    words = ("pbsnodes", "-o", "--gpu", "0", "-N", "fan is loud", "node1")
    cluster.run(*words, user="", check=True)
    wait_until(lambda: gpu_states(cluster) == ["quarantined", "free"], "the first card is out of use", 10)
    assert re.search("note=fan is loud", cluster.run("pbsnodes").stdout)
    agent = cluster.pid("node1/agent")
    os.kill(agent, signal.SIGKILL)
    cluster.up()
    wait_until(lambda: gpu_states(cluster) == ["quarantined", "free"], "and stays so", LOOK)
    cluster.run("pbsnodes", "-c", "--gpu", "0", "node1", user="", check=True)
    wait_until(lambda: gpu_states(cluster) == ["free", "free"], "both are free", LOOK)
    for wrong, why in (
        (("-o", "--gpu", "7", "node1"), "Unknown GPU 7 of node1"),
        (("--gpu", "0", "node1"), "--gpu takes one node, and -o or -c"),
    ):
        done = cluster.run("pbsnodes", *wrong, user="")
        assert done.returncode != 0
        assert why in done.stderr


def test_islands_of_nvlink_are_shown(cards: Callable[..., None], users_of_tests: None) -> None:
    """Two pairs of cards, and one that is alone."""
    pairs = [{"nvlinks": [default_uuid(other)]} for other in (2, 3, 0, 1)]
    cards(*pairs, {})
    with running(LiveCluster(agents=1, gpus=5)) as cluster:
        wait_until(lambda: gpu_states(cluster) == ["free"] * 5, "five free cards", LOOK)
        with cluster.client() as client:
            found = [gpu.nvlink_island for node in client.nodes() for gpu in node.gpus]
        assert found == [0, 1, 0, 1, None]
        assert re.findall(r"gpu\[(\d)\][^,]*gpu_nvlink_island=(\d)", cluster.run("pbsnodes").stdout) == [
            ("0", "0"), ("1", "1"), ("2", "0"), ("3", "1")
        ]  # fmt: skip


def test_what_a_job_uses_is_in_its_record(healthy: LiveCluster, two_cards: Cards) -> None:
    cluster = healthy
    busy = {"utilization": 50, "used": 3 << 30}
    two_cards(busy | {"energy": 1_000_000}, {})
    job = cluster.qsub(
        "#!/bin/sh\nwhile [ ! -e done ]; do sleep 0.2; done\n",
        "-l",
        "nodes=1:gpus=1",
        "-d",
        str(cluster.work()),
    )
    cluster.wait_state(job, "R")
    wait_until(lambda: told(cluster, "hpcmesos_gpu_utilization") == [50.0, 0.0], "figures in /metrics", LOOK)
    shown = "gpu_memory_total=81920MB;gpu_memory_used=3072MB;gpu_utilization=50%"
    # Each of the two API processes remembers figures for a moment.
    wait_until(lambda: shown in cluster.run("pbsnodes").stdout, "figures in pbsnodes", LOOK)
    two_cards(busy | {"energy": 1_500_000}, {})
    wait_until(lambda: 1500.0 in told(cluster, "hpcmesos_gpu_energy"), "a sample of the end", LOOK)
    (cluster.work() / "done").touch()
    ended = cluster.wait(job)["resources_used"]
    assert (ended["gpu_percent"], ended["gpu_percent_max"]) in ((50, 50), ("50", "50"))
    assert ended["gpu_mem"] == f"{3 << 20}kb"
    assert ended["gpu_energy"] == "500J"


def told(cluster: LiveCluster, name: str) -> list[float]:
    """Values of a metric with labels, the largest first."""
    connection = http.client.HTTPConnection("localhost", timeout=10)
    try:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(cluster.described.api_socket))
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    return sorted(
        (float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + "{")), reverse=True
    )


def test_up_never_mixes_real_and_simulated_cards(cards: Callable[..., None], users_of_tests: None) -> None:
    """The machine's own when they are enough, else simulated ones."""
    for asked, real in ((4, False), (2, True)):
        with running(LiveCluster(agents=1, gpus=asked)) as cluster, cluster.client() as client:
            assert [gpu.simulated for node in client.nodes() for gpu in node.gpus] == [not real] * asked
