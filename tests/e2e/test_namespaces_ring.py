"""The ring over hosts with networks of their own, and a link between two of them that is cut."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests.e2e.cluster_kit import wait_until
from tests.e2e.namespace_cluster import MPICH, NamespaceCluster
from tests.e2e.test_namespaces_faults import first_end

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.root,
    pytest.mark.skipif(bool(MPICH.missing), reason=MPICH.missing or "there is one"),
]


@pytest.mark.full
def test_a_cut_link_is_named_and_costs_nothing(namespaces: NamespaceCluster) -> None:
    """Between two hosts that are not the head: nothing but MPI uses it, and only the ring finds out."""
    cluster = namespaces
    cluster.run("pbsnodes", "-o", "node4", user="", check=True)
    cluster.hosts.cut("node2", "node3")
    try:
        job = cluster.submit("exit 4", "-l", "nodes=3:ppn=1:gpus=1", "-W", "ring=check")
        first = wait_until(lambda: first_end(job), f"the end of the first attempt: {job.status}", 60)
        assert first.cause == "START_FAILED"
        assert set((first.culprit or "").split("+")) == {"node2", "node3"}, first
        pair = first.message.partition("broke between ")[2].partition("):")[0]
        assert [word for word in ("node1", "node2", "node3") if word in pair] == ["node2", "node3"], (
            first.message
        )
    finally:
        cluster.run("pbsnodes", "-c", "node4", user="", check=True)
    status = job.wait(90)
    assert (status.exit_status, status.attempt) == (4, 2), job.said
    assert not {"node2", "node3"} <= set(status.nodes), status.nodes
    assert charged(cluster, job.id) == 0
    assert cluster.run("pbsnodes", "-l", user="", check=True).stdout == "", "no node changed its state"


def test_an_administrator_takes_what_is_broken_out(namespaces: NamespaceCluster, tmp_path: Path) -> None:
    cluster = namespaces
    cluster.hosts.cut("node2", "node3")
    try:
        done = cluster.hpcmesos(
            "ring", "--nodes", "node1,node2,node3", "--offline-broken", timeout=90, check=False
        )
        assert done.returncode == 1, done
        assert "the ring broke between rank 1 (node2) and rank 2 (node3)" in done.stdout
        listed = cluster.run("pbsnodes", "-l", user="", check=True).stdout
        assert {line.split()[0] for line in listed.splitlines()} == {"node2", "node3"}, listed
    finally:
        for name in ("node2", "node3"):
            cluster.run("pbsnodes", "-c", name, "-N", "", user="", check=True)


def charged(cluster: NamespaceCluster, job: str) -> int:
    """Attempts that count against the job's limit."""
    seq = int(job.partition(".")[0])
    query = (
        "SELECT charged_attempts FROM jobs WHERE seq = %s"
        " UNION ALL SELECT charged_attempts FROM jobs_history WHERE seq = %s"
    )
    with psycopg.connect(cluster.database_url) as connection:
        [(count,)] = connection.execute(query, [seq, seq]).fetchall()
    return int(count)
