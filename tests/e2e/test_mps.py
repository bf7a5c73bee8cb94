"""``-W mps=true`` from qsub to the ranks, with a stand-in for NVIDIA's program on the PATH of the agents."""

from __future__ import annotations

import os

import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.e2e.conftest import running
from tests.integration import shepherd_kit as kit
from tests.integration.test_launch_mps import GOOD

pytestmark = pytest.mark.full
RANK = 'read pid gpus <"$CUDA_MPS_PIPE_DIRECTORY/daemon"; kill -0 $pid && echo "rank $pid"'
RANKS = f"#!/bin/sh\nhpcmesos run -n 4 --oversubscribe sh -c '{RANK}'\n"


def test_ranks_share_a_gpu_by_the_service_of_their_job(
    users_of_tests: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = LiveCluster(agents=1, gpus=1)
    place = cluster.root / "bin"
    place.mkdir(mode=0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    words = ("-l", "nodes=1:ppn=4:gpus=1", "-W", "mps=true", "-N", "mps")
    with running(cluster):
        waits = cluster.qsub(RANKS, *words)
        told = wait_until(lambda: cluster.job(waits).get("comment", "").partition("mps: ")[2], "a refusal")
        assert told.startswith("there is no nvidia-cuda-mps-control in the agent's PATH")
        cluster.run("qdel", waits, check=True)
        program = place / "nvidia-cuda-mps-control"
        program.write_text(GOOD)
        program.chmod(0o755)
        job = cluster.qsub(RANKS, *words)
        assert cluster.wait(job)["Exit_status"] == 0
        ranks = cluster.output(job, "mps").splitlines()
        assert (len(ranks), len(set(ranks))) == (4, 1), ranks
        assert not kit.is_alive(int(ranks[0].split()[1])), "it is gone with the job"
