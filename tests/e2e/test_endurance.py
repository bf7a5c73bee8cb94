"""Many starts and ends of jobs with eight ranks, one after the other: nothing is left behind, and the counts say so.

HPCMESOS_TEST_JOBS: how many (40). With 1000: `HPCMESOS_TEST_JOBS=1000 scripts/test -m full -k endurance -s`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until

JOBS = int(os.environ.get("HPCMESOS_TEST_JOBS", "40"))
A_FEW = 16
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
    names = [path for path in below(agents, "*/**/attempts/*") if "#" in path.name]
    records = [path for path in below(agents, "*/**/journal/*") if "#" in path.name]
    return found | {
        "processes": len(cluster.job_processes()),
        "directories": len(names),
        "journals": len(records),
        "cgroups": len(below(Path("/sys/fs/cgroup"), f"**/{cluster.described.identity}/*/*#*")),
    }


def below(directory: Path, pattern: str) -> list[Path]:
    """Those that match. A directory that goes during the walk ends it: then it is begun anew."""

    def walk() -> tuple[list[Path]] | None:
        with suppress(FileNotFoundError):
            return (list(directory.glob(pattern)),)
        return None

    (found,) = wait_until(walk, f"a walk through {directory}") or ([],)
    return found


def grown(cluster: LiveCluster) -> dict[str, int]:
    """What may differ by a few: connections and spare files that are made when they are needed and then kept."""
    master = cluster.pid("master")
    family = [master, *map(int, Path(f"/proc/{master}/task/{master}/children").read_text().split())]
    return {
        "descriptors of the master": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in family),
        "files of the cluster": sum(1 for path in below(cluster.state, "agents/**/*") if path.is_file()),
    }


def litter(cluster: LiveCluster, since: float) -> list[str]:
    """What MPICH may leave of this user's; other clusters of the machine have some of it for a moment."""
    owner, found = cluster.work().stat().st_uid, []
    for directory, prefix in (("/tmp", "hydra_hwloc_xmlfile_"), ("/dev/shm", "mpich_shm_")):
        with os.scandir(directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if entry.name.startswith(prefix) and status.st_uid == owner and status.st_mtime >= since:
                        found.append(entry.path)
    return found


@pytest.mark.full
def test_nothing_is_left_of_many_jobs(make_cluster: Callable[..., LiveCluster]) -> None:
    cluster, begun = make_cluster(agents=2, gpus=4), time.time()
    for _ in range(4):  # connections and spare files that are made once
        assert cluster.wait(cluster.qsub(SCRIPT))["Exit_status"] == 0
    before = wait_until(lambda: settled(cluster), "a quiet cluster", 30)
    kept = grown(cluster)
    for number in range(JOBS):
        if number % 100 == 0:
            print(f"\n{number} jobs after {time.time() - begun:.0f} s: {counts(cluster) | grown(cluster)}")
        assert exit_status(cluster, cluster.qsub(SCRIPT)) == 0
    wait_until(lambda: settled(cluster) == before, f"{before}, not {counts(cluster)}", 60)
    print(
        f"\n{JOBS} jobs in {time.time() - begun:.0f} s: before and after {before}; {kept}, then {grown(cluster)}"
    )
    assert all(count <= kept[name] + A_FEW for name, count in grown(cluster).items())
    wait_until(lambda: not litter(cluster, begun), "no litter of MPICH", 60)


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
