"""Many starts and ends of jobs with eight ranks, one after the other: nothing is left behind, and the counts say so.

HPCMESOS_TEST_JOBS: how many (40). With 1000: `HPCMESOS_TEST_JOBS=1000 scripts/test -m full -k endurance -s`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until

JOBS = int(os.environ.get("HPCMESOS_TEST_JOBS", "40"))
SCRIPT = """#!/bin/sh
#PBS -l nodes=2:ppn=4:gpus=2
#PBS -o /dev/null -j oe
[ $((${PBS_JOBID%%.*} % 2)) = 0 ] && exec mpiexec /bin/true
exec hpcmesos run /bin/true
"""


def counts(cluster: LiveCluster) -> dict[str, int]:
    """What jobs could leave: processes, open descriptors, granted shares and ports, files, cgroups."""
    daemons = [f"{node}/{name}" for node in ("node1", "node2") for name in ("agent", "shepherd")]
    found = {f"descriptors of {name}": len(os.listdir(f"/proc/{cluster.pid(name)}/fd")) for name in daemons}
    with psycopg.connect(cluster.database_url) as connection:
        (found["allocations"],) = connection.execute("SELECT count(*) FROM allocations").fetchone() or (0,)
    agents = cluster.state / "agents"
    names = [path for path in agents.glob("*/**/attempts/*") if "#" in path.name]
    records = [path for path in agents.glob("*/**/journal/*") if "#" in path.name]
    return found | {
        "processes": len(cluster.job_processes()),
        "directories": len(names),
        "journals": len(records),
        "cgroups": len(list(Path("/sys/fs/cgroup").glob(f"**/{cluster.described.identity}/*/*#*"))),
    }


@pytest.mark.full
def test_nothing_is_left_of_many_jobs(make_cluster: Callable[..., LiveCluster]) -> None:
    cluster = make_cluster(agents=2, gpus=4)
    for _ in range(4):  # connections and spare files that are made once
        assert cluster.wait(cluster.qsub(SCRIPT))["Exit_status"] == 0
    before = wait_until(lambda: settled(cluster), "a quiet cluster", 30)
    for _ in range(JOBS):
        assert exit_status(cluster, cluster.qsub(SCRIPT)) == 0
    wait_until(lambda: settled(cluster) == before, f"{before}, not {counts(cluster)}", 60)
    print(f"\n{JOBS} jobs: before and after {before}")


def exit_status(cluster: LiveCluster, job: str) -> int:
    """Once it has ended; of one that hangs, what it looks like."""
    try:
        return int(cluster.wait(job)["Exit_status"])
    except AssertionError as error:
        logs = [path.read_text()[-2000:] for path in cluster.state.glob("agents/*/shepherd.log")]
        seen = [*cluster.job_processes(), cluster.run("qstat", "-f", job).stdout, *logs, str(counts(cluster))]
        raise AssertionError("\n".join([str(error), *seen])) from error


def settled(cluster: LiveCluster) -> dict[str, int] | None:
    """The counts, once nothing of a job is there."""
    found = counts(cluster)
    return (
        None
        if any(found[name] for name in ("allocations", "processes", "directories", "journals"))
        else found
    )
