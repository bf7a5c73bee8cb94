"""A job that leaves real cards idle, over a stand-in for NVIDIA's library: warned, then ended, with its own cause."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.e2e.conftest import running

pytestmark = pytest.mark.full
LOOK = 120.0
"""Seconds: samples come each 10 s, the leader looks each 30 s, and the window is 20 s."""

SLEEP = "#!/bin/sh\nexec sleep 600\n"


@pytest.fixture
def idling(
    fake_nvml: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch, users_of_tests: None
) -> Iterator[LiveCluster]:
    """A node with a busy card and two idle ones; a queue that ends jobs with idle GPUs."""
    for name, value in fake_nvml([{"utilization": 70}, {}, {}]).items():
        monkeypatch.setenv(name, value)
    with running(LiveCluster(agents=1, gpus=3)) as cluster:
        with cluster.client() as client:
            states = [gpu.state for node in client.nodes() for gpu in node.gpus]
        assert len(states) == 3
        words = "gpu_idle_action = cancel, gpu_idle_window = 00:00:20, gpu_idle_exempt = name:notebook*"
        cluster.run("qmgr", "-c", f"set queue batch {words}", user="", check=True)
        yield cluster


def test_a_job_with_idle_gpus_is_warned_then_ended(idling: LiveCluster) -> None:
    cluster = idling
    refused = cluster.run("qsub", "-l", "gpus=1", "-W", "gpu_idle=allowed", stdin=SLEEP)
    assert (refused.returncode, "does not let jobs leave GPUs idle" in refused.stderr) == (176, True)
    busy = cluster.qsub(SLEEP, "-l", "nodes=1:gpus=1")  # on the first card
    cluster.wait_state(busy, "R")
    exempt = cluster.qsub(SLEEP, "-l", "nodes=1:gpus=1", "-N", "notebook-1")
    idle = cluster.qsub(SLEEP, "-l", "nodes=1:gpus=1")
    for job in (exempt, idle):
        cluster.wait_state(job, "R")
    warning = "idle GPUs: 1 GPU busy for 0.0 % of the last 00:00:20, less than the 5 % of queue batch"
    told = wait_until(lambda: cluster.job(idle).get("comment"), "a warning", LOOK)
    assert told.startswith(warning)
    assert f"R runs; {warning}" in cluster.run("qstat", "--why", idle).stdout
    ended = cluster.wait(idle, timeout=LOOK)
    assert ended["Exit_status"] == 271
    assert ended["comment"].startswith("GPU_IDLE: 1 GPU busy for 0.0 %")
    for job in (busy, exempt):
        assert (cluster.job(job)["job_state"], cluster.job(job).get("comment")) == ("R", None)
    cluster.run("qdel", busy, exempt, check=True)
    for job in (busy, exempt):
        cluster.wait(job)
