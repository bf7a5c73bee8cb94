"""MIG instances as devices of a whole cluster, over a stand-in for NVIDIA's library that agents read by pynvml."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.e2e.conftest import running
from tests.nvml.plugin import default_part, default_uuid

pytestmark = pytest.mark.full
LOOK = 40.0
"""Seconds: the probe is asked each 10 s."""

CARDS: list[dict[str, Any]] = [{}, {"mig": [{}, {"gpu": 9}]}]
"""A whole one, and one that is cut into two instances 1g.10gb."""

PARTS = [default_part(1, 0), default_part(1, 1)]
SHOW = "#!/bin/sh\necho $CUDA_VISIBLE_DEVICES\n"


@pytest.fixture
def cut(
    fake_nvml: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch, users_of_tests: None
) -> Iterator[LiveCluster]:
    """node1 with the whole card, node2 with the instances of the other one."""
    for name, value in fake_nvml(CARDS).items():
        monkeypatch.setenv(name, value)
    with running(LiveCluster(agents=2, gpus=2)) as cluster:
        wait_until(lambda: states(cluster) == ["free"] * 3, "all are free", LOOK)
        yield cluster


def states(cluster: LiveCluster) -> list[str]:
    with cluster.client() as client:
        return [gpu.state for node in client.nodes() for gpu in node.gpus]


def test_instances_are_given_to_who_asks_for_their_profile(
    cut: LiveCluster, fake_nvml: Callable[..., dict[str, str]]
) -> None:
    cluster = cut
    shown = cluster.run("pbsnodes", check=True).stdout
    assert f"gpu_id={PARTS[1]};gpu_mig_profile=1g.10gb;gpu_mig_card={default_uuid(1)};" in shown
    with cluster.client() as client:
        features = [word for word in client.nodes()[1].features if word.startswith("mig-")]
    assert features == ["mig-1g.10gb"]
    both = cluster.qsub(SHOW, "-l", "nodes=1:gpus=2:mig-1g.10gb", "-N", "both")
    whole = cluster.qsub(SHOW, "-l", "nodes=1:gpus=1", "-N", "whole")
    select = cluster.qsub(SHOW, "-l", "select=1:ngpus=1:mig-1g.10gb=true", "-N", "select")
    for job in (both, whole, select):
        assert cluster.wait(job)["Exit_status"] == 0
    assert sorted(cluster.output(both, "both").strip().split(",")) == sorted(PARTS)
    assert cluster.output(whole, "whole").strip() == default_uuid(0)
    assert cluster.output(select, "select").strip() in PARTS
    for asked, why in (
        ("nodes=2:gpus=1", "needs 2 nodes with 1 GPU each, the cluster has 1"),
        ("nodes=1:gpus=1:mig-7g.80gb", "no node has these features"),
    ):
        refused = cluster.run("qsub", "-l", asked, stdin=SHOW)
        assert (refused.returncode, why in refused.stderr) == (190, True), refused.stderr
    fake_nvml([CARDS[0], CARDS[1] | {"xids": [48]}])
    wait_until(lambda: states(cluster) == ["free", "quarantined", "quarantined"], "both are out of use", LOOK)
    cluster.run("pbsnodes", "-c", "--gpu", default_uuid(1), "node2", user="", check=True)
    wait_until(lambda: states(cluster) == ["free"] * 3, "the card is forgiven with all of it", LOOK)
