"""The ring before a job, and the administrator's."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, LiteralString
from xml.etree import ElementTree

import psycopg
import pytest
from psycopg import sql

from tests.e2e.cluster_kit import LiveCluster, wait_until

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="needs the mpi4py wheel")
SCRIPT = "#!/bin/sh\n#PBS -l nodes=2:ppn=2:gpus=2\n#PBS -W ring=check\ncat $PBS_JOBDIR/ring.txt\nexit 4\n"


def ranks_on(cluster: LiveCluster, node: str) -> list[int]:
    """Ranks of a ring on that node."""
    pid = cluster.pid(f"{node}/shepherd")
    found = []
    for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(OSError):
            if b"ring" in Path(f"/proc/{word}/cmdline").read_bytes().partition(b"hpcmesos")[2]:
                found.append(int(word))
    return found


def select(cluster: LiveCluster, query: LiteralString, table: str, job: str) -> list[tuple[Any, ...]]:
    """From the live table and its history."""
    seq = int(job.partition(".")[0])
    with psycopg.connect(cluster.database_url) as connection:
        return [
            row
            for name in (table, f"{table}_history")
            for row in connection.execute(sql.SQL(query).format(sql.Identifier(name)), [seq])
        ]


def attempts(cluster: LiveCluster, job: str) -> list[tuple[Any, ...]]:
    query: LiteralString = "SELECT cause, culprit, message FROM {} WHERE seq = %s ORDER BY number"
    return select(cluster, query, "attempts", job)


def test_the_ring_closes_and_the_job_runs(cluster: LiveCluster) -> None:
    job = cluster.qsub(SCRIPT)
    assert cluster.wait(job)["Exit_status"] == 4
    table = cluster.output(job).splitlines()
    assert [line.split()[0] for line in table[1:5]] == ["0", "1", "2", "3"]
    assert "the ring closed: 4 ranks on 2 nodes" in cluster.output(job, kind="e")


def test_a_broken_ring_costs_nothing_and_avoids_the_host(make_cluster: Callable[..., LiveCluster]) -> None:
    """The limit is the real one: 20 s and 0.3 s a rank."""
    cluster = make_cluster(agents=3, gpus=6)
    job = cluster.qsub(SCRIPT, "-l", "nodes=node1:ppn=2:gpus=2+1:ppn=2:gpus=2")

    def stopped_on() -> str | None:
        """The node that has its second part, once both ranks there stand still; each does from when it is seen."""
        for node in ("node2", "node3"):
            found = ranks_on(cluster, node)
            for pid in found:
                os.kill(pid, signal.SIGSTOP)
            if len(found) == 2:
                return node
        return None

    other = wait_until(stopped_on, "its ranks", 30)
    assert other is not None
    ended = cluster.wait(job, timeout=90)
    assert ended["Exit_status"] == 4
    assert ended["run_count"] == 1
    assert other not in ended["exec_host"] and "node1" in ended["exec_host"]
    assert "the ring closed" in cluster.output(job, kind="e")
    first, second = attempts(cluster, job)
    assert first[:2] == ("START_FAILED", other)
    assert "it broke between rank " in first[2] and f"({other}, " in first[2]  # at which of its two: chance
    assert second[0] == "APP"
    [(charged,)] = select(cluster, "SELECT charged_attempts FROM {} WHERE seq = %s", "jobs", job)
    assert charged == 0
    nodes = cluster.run("pbsnodes", "-l", check=True).stdout
    assert nodes == "", f"no node changes its state for a job's ring: {nodes}"


def test_an_administrators_ring(cluster: LiveCluster) -> None:
    picture = cluster.work("") / "ring.svg"
    done = cluster.hpcmesos("ring", "--nodes", "node1,node3,node4", "--svg", str(picture))
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines[1:4]] == ["node1", "node3", "node4"]
    assert lines[4].startswith("the ring closed: 3 ranks on 3 nodes")
    assert len(ElementTree.parse(picture).findall("{http://www.w3.org/2000/svg}path")) == 3
    unknown = cluster.hpcmesos("ring", "--nodes", "node1,nowhere", check=False)
    assert unknown.returncode and "nowhere" in unknown.stderr


def test_a_queue_demands_the_ring(cluster: LiveCluster) -> None:
    """Whatever the job says of it."""
    directives = (
        "create queue checked queue_type=Execution\nset queue checked enabled=True,started=True,ring=check\n"
    )
    cluster.run("qmgr", stdin=directives, user="", check=True)
    job = cluster.qsub(
        "#!/bin/sh\nexit 4\n", "-q", "checked", "-W", "ring=none", "-l", "nodes=2:ppn=1:gpus=1"
    )
    assert cluster.wait(job)["Exit_status"] == 4
    assert "the ring closed: 2 ranks on 2 nodes" in cluster.output(job, kind="e")
    cluster.run("qmgr", "-c", "delete queue checked", user="", check=True)


PRELOADED = """
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
__attribute__((constructor)) static void sabotage(void) {
    static const char lie[] = "{\\"stage\\": \\"init\\", \\"cut\\": \\"no route to host\\"}\\n";
    const char *rank = getenv("PMI_RANK");
    if (!rank || strcmp(rank, "1")) return;
    if (FORGES && write(1, lie, sizeof lie - 1) > 0) return;
    _exit(3);
}
"""


@pytest.mark.parametrize(
    ("forges", "verdict"), [(0, "exited with code 3"), (1, "no route to host")], ids=["breaks", "forges"]
)
def test_no_users_ring_changes_a_node(cluster: LiveCluster, forges: int, verdict: str) -> None:
    """A library that the user preloads breaks a ring of his own, or has a rank lie; the one before his job it does not
    meet. An administrator's command does not listen to it, nor is it his to give."""
    if (compiler := shutil.which("gcc")) is None:
        pytest.skip("no C compiler")
    library = cluster.work() / f"preloaded{forges}.so"
    command = [compiler, f"-DFORGES={forges}", "-shared", "-fPIC", "-x", "c", "-o", str(library), "-"]
    subprocess.run(command, input=PRELOADED, text=True, check=True)
    library.chmod(0o755)
    job = cluster.qsub(
        "#!/bin/sh\necho $LD_PRELOAD\nhpcmesos ring\n",
        *("-v", f"LD_PRELOAD={library}", "-W", "ring=check", "-l", "nodes=2:ppn=1:gpus=1"),
    )
    assert cluster.wait(job)["Exit_status"] == 1
    assert [attempt[:2] for attempt in attempts(cluster, job)] == [("APP", None)]
    assert "the ring closed: 2 ranks on 2 nodes" in cluster.output(job, kind="e")
    first, *table = cluster.output(job).splitlines()
    assert first == str(library)
    assert "rank 1" in table[-1] and verdict in table[-1], table
    assert cluster.run("pbsnodes", "-l", check=True).stdout == ""
    refused = cluster.run("pbsnodes", "-o", "node1")
    assert refused.returncode and cluster.run("pbsnodes", "-l", check=True).stdout == ""
