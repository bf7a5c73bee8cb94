"""Gangs are whole or absent."""

from __future__ import annotations

import itertools
import json
import re

from tests.e2e.cluster_kit import LiveCluster, wait_until


def test_fifty_jobs_that_each_need_more_than_half(cluster: LiveCluster) -> None:
    """No two gangs of 3 whole nodes of 4 overlap: every job writes its interval, and the intervals are disjoint."""
    script = (
        "#!/bin/sh\n#PBS -l nodes=3:ppn=1:gpus=4\ndate +%s.%N; sort -u $PBS_GPUFILE | wc -l; date +%s.%N\n"
    )
    jobs = [cluster.qsub(script) for _ in range(50)]
    intervals = []
    for job in jobs:
        assert cluster.wait(job, timeout=180)["Exit_status"] == 0
        start, count, end = cluster.output(job).split()
        assert count == "12"
        intervals.append((float(start), float(end)))
    intervals.sort()
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(intervals))


def test_waiting_jobs_say_why(cluster: LiveCluster) -> None:
    gate = cluster.work() / "why.gate"
    hold_all = f"#!/bin/sh\n#PBS -l nodes=4:gpus=4\nwhile [ ! -e {gate} ]; do sleep 0.1; done\n"
    first = cluster.qsub(hold_all)
    cluster.wait_state(first, "R")
    second = cluster.qsub("#!/bin/sh\n#PBS -l nodes=2:gpus=4\ntrue\n")
    third = cluster.qsub("#!/bin/sh\ntrue\n", "-h")

    def why() -> str:
        return cluster.run("qstat", "--why", second, third, check=True).stdout

    wait_until(lambda: re.search(rf"{re.escape(second)}.*needs 2 nodes", why()), "what it needs")
    wait_until(lambda: re.search(rf"{re.escape(third)} H held by its user", why()), "who holds it")
    gate.touch()
    assert cluster.wait(second)["Exit_status"] == 0
    cluster.run("qrls", third, check=True)
    assert cluster.wait(third)["Exit_status"] == 0
    cluster.wait(first)


def test_dependencies_and_holds(cluster: LiveCluster) -> None:
    first = cluster.qsub("#!/bin/sh\nexit 0\n", "-h")
    after_ok = cluster.qsub("#!/bin/sh\ntrue\n", "-W", f"depend=afterok:{first}")
    after_bad = cluster.qsub("#!/bin/sh\ntrue\n", "-W", f"depend=afternotok:{first}")
    assert cluster.job(after_ok)["job_state"] == "H"
    cluster.run("qrls", first, check=True)
    assert cluster.wait(first)["Exit_status"] == 0
    assert cluster.wait(after_ok)["Exit_status"] == 0
    assert "Exit_status" not in cluster.wait(after_bad)


def test_qhold_shows_at_once(cluster: LiveCluster) -> None:
    job = cluster.qsub("#!/bin/sh\ntrue\n", "-a", "203001010000")
    assert cluster.job(job)["job_state"] == "W"
    cluster.run("qhold", job, check=True)
    assert cluster.job(job)["job_state"] == "H"
    cluster.run("qrls", job, check=True)
    assert cluster.job(job)["job_state"] == "W"
    cluster.run("qdel", job, check=True)
    cluster.wait(job)


def test_pbsnodes_says_what_is_simulated(cluster: LiveCluster) -> None:
    text = cluster.run("pbsnodes", "-a", check=True).stdout
    assert text.count("simulated=true") >= 16 or text.lower().count("simulated") >= 16, text
    nodes = json.loads(cluster.run("pbsnodes", "-a", "-F", "json", check=True).stdout)["nodes"]
    assert sorted(nodes) == ["node1", "node2", "node3", "node4"]
