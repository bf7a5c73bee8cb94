"""Two clusters on one host know nothing of each other; a foreground `up` takes everything down when interrupted."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable

from tests.e2e.cluster_kit import HPCMESOS, LiveCluster


def test_two_clusters(make_cluster: Callable[..., LiveCluster]) -> None:
    one, two = make_cluster(agents=1, gpus=1), make_cluster(agents=1, gpus=1)
    job = one.qsub("#!/bin/sh\necho $CUDA_VISIBLE_DEVICES\n", "-l", "nodes=1:gpus=1")
    other = two.qsub("#!/bin/sh\necho $CUDA_VISIBLE_DEVICES\n", "-l", "nodes=1:gpus=1")
    assert one.wait(job)["Exit_status"] == two.wait(other)["Exit_status"] == 0
    assert one.output(job) != two.output(other)
    one.down()
    assert one.processes() == []
    assert two.wait(two.qsub("#!/bin/sh\nexit 9\n"))["Exit_status"] == 9
    one.up()


def test_interrupted_up_leaves_nothing() -> None:
    cluster = LiveCluster(agents=1, gpus=1)
    try:
        process = subprocess.Popen(
            [*HPCMESOS, "up", *cluster.size, "--state", str(cluster.state)],
            stderr=subprocess.PIPE,
            env=cluster.environ,
            text=True,
        )
        assert process.stderr is not None
        assert any("use it" in line for line in process.stderr), "the cluster is up"
        assert cluster.processes()
        process.send_signal(signal.SIGINT)
        process.stderr.read()
        assert process.wait(timeout=30) == 0
        process.stderr.close()
        assert cluster.processes() == []
    finally:
        cluster.remove()
