"""A host of a gang is lost while leader after leader dies or hangs: the loss is known in time all the same."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import psycopg
import pytest

from tests.chaos import clusters
from tests.e2e.cluster_kit import wait_until
from tests.e2e.namespace_cluster import Job, NamespaceCluster
from tests.e2e.namespace_kit import why_not
from tests.e2e.test_namespaces_faults import LINK, Note, first_end

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.root,
    pytest.mark.full,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]


@pytest.fixture
def pair() -> Iterator[NamespaceCluster]:
    """Three nodes and two masters, one of which leads while the other is warm."""
    with NamespaceCluster(["node1", "node2", "node3"], masters=2) as cluster:
        stands_by(cluster)
        yield cluster


def stands_by(cluster: NamespaceCluster) -> None:
    wait_until(lambda: standbys(cluster), "a candidate that waits for the lock", 30)


def standbys(cluster: NamespaceCluster) -> int:
    """Candidates that would lead at once."""
    query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with psycopg.connect(cluster.database_url) as connection:
        row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0


def leader(cluster: NamespaceCluster) -> int:
    return wait_until(lambda: clusters.leader_pid(cluster), "a leader", 20) or 0


def kill(cluster: NamespaceCluster) -> None:
    """The leader, wherever it is with its work."""
    os.kill(leader(cluster), signal.SIGKILL)


def gang(cluster: NamespaceCluster) -> Job:
    job = cluster.submit("pbsdsh sh -c 'echo > $PBS_O_WORKDIR/up; sleep 600'", "-l", "nodes=2", "-r", "y")
    job.wait_file("up")
    return job


def is_accused(cluster: NamespaceCluster) -> bool:
    """Whether the member's word of its lost head is written down."""
    with psycopg.connect(cluster.database_url) as connection:
        row = connection.execute("SELECT count(*) FROM attempts WHERE ending IS NOT NULL").fetchone()
    return row is not None and row[0] > 0


def known_in_time(cluster: NamespaceCluster, job: Job, victim: str, began: float) -> float:
    """Seconds from the fault to the end in the database; the host is mended then."""
    first = wait_until(lambda: first_end(job), "the end of the first attempt", 60)
    took = time.time() - began
    assert first is not None
    assert (first.cause, first.culprit) == ("NODE_LOST", victim), first.message
    assert took < LINK, f"known after {took:.1f} s"
    cluster.hosts.mend(victim)
    cluster.run("qdel", "-W", "0", job.id, check=True)
    job.wait()
    return round(took, 1)


def test_two_leaders_are_killed_while_the_loss_is_waited_for(
    pair: NamespaceCluster, record_property: Note
) -> None:
    """The first when it has written down what the member says, the second just before it would decide."""
    job = gang(pair)
    head = job.nodes[0]
    began = time.time()
    pair.hosts.cut(head)
    wait_until(lambda: is_accused(pair), "the member's word", LINK)
    kill(pair)
    stands_by(pair)
    wait_until(lambda: time.time() - began > 23.5, "the last moments before the decision", LINK)
    second = leader(pair)
    os.kill(second, signal.SIGSTOP)  # so that it does not decide while this looks
    try:
        wait_until(lambda: time.time() - began > 25.0, "the moment before the decision", LINK)
        assert first_end(job) is None
    finally:
        os.kill(second, signal.SIGKILL)
    record_property("seconds", known_in_time(pair, job, head, began))


def test_the_leader_hangs_while_the_member_notices(pair: NamespaceCluster, record_property: Note) -> None:
    """The member tells a leader that is frozen; the next one has to hear it soon, and wait no longer for that."""
    job = gang(pair)
    head = job.nodes[0]
    began = time.time()
    pair.hosts.cut(head)
    wait_until(lambda: time.time() - began > 17.0, "the last moments of the silence", LINK)
    frozen = leader(pair)
    os.kill(frozen, signal.SIGSTOP)
    try:
        record_property("seconds", known_in_time(pair, job, head, began))
    finally:
        os.kill(frozen, signal.SIGCONT)
