"""A host that loses power, and comes back: with another boot id, and nothing of what ran on it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import pytest

from hpcmesos import api_schema
from tests.e2e.cluster_kit import wait_until
from tests.e2e.namespace_cluster import RUN, Job, NamespaceCluster
from tests.e2e.test_namespaces_faults import LINK, first_end, start

pytestmark = [pytest.mark.hosts, pytest.mark.root]
BOOT_ID = "/proc/sys/kernel/random/boot_id"


def power_off(cluster: NamespaceCluster, node: str) -> None:
    """Everything on the host ends at once and says nothing: its links are dead first."""
    cluster.hosts.cut(node)
    host = cluster.hosts[node]
    holder = host.holder.pid

    def left() -> list[int]:
        pids = [pid for pid in host.processes() if pid != holder]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return pids

    wait_until(lambda: not left(), f"the end of all on {node}")


def power_on(cluster: NamespaceCluster, node: str) -> None:
    """With a boot id of its own from now on, which no other host sees."""
    number = cluster.root / f"boot-{node}"
    number.write_text(f"00000000-0000-4000-8000-{time.monotonic_ns() % 10**12:012}\n")
    cluster.hosts[node].run(["mount", "--bind", number, BOOT_ID])
    cluster.hosts.mend(node)
    cluster._spawn(cluster.hosts[node], "agent", cluster.agents[node].state / "agent.toml")


@pytest.fixture
def cluster(namespaces: NamespaceCluster) -> Iterator[NamespaceCluster]:
    """No host shares its boot id with another one afterwards, which would be the wrong way to end a test."""
    yield namespaces
    for node in namespaces.nodes:
        namespaces.hosts[node].run(["umount", BOOT_ID], check=False)


def runs_again(job: Job) -> api_schema.JobStatus | None:
    status = job.status
    return status if status.attempt == 2 and status.state == "R" else None


def test_a_node_dies_and_comes_back(cluster: NamespaceCluster) -> None:
    cluster.run("pbsnodes", "-o", "node4", user="", check=True)
    gang = start(cluster, RUN, options=("-l", "nodes=3:ppn=2", "-r", "y"))
    gang.wait_file("up")
    victim = gang.nodes[-1]
    script = "echo $$ >> tries; until [ -e go ]; do sleep 0.2; done; exit 7"
    single = cluster.submit(script, "-l", f"nodes={victim}", "-r", "y")
    single.wait_file("tries")
    cluster.run("pbsnodes", "-c", "node4", user="", check=True)
    began = time.time()
    power_off(cluster, victim)
    first = wait_until(lambda: first_end(gang), "the end of the gang's first attempt", LINK)
    assert (first.cause, first.culprit) == ("NODE_LOST", victim)
    assert time.time() - began < LINK
    again = wait_until(lambda: runs_again(gang), "the gang runs again", LINK + 20)
    assert victim not in again.nodes and "node4" in again.nodes
    assert single.status.state == "R", "nobody knows what became of it"
    power_on(cluster, victim)
    lost = wait_until(lambda: first_end(single), "the end of the single job's first attempt", 30)
    assert (lost.cause, lost.culprit) == ("NODE_LOST", victim)
    assert "rebooted" in lost.message
    wait_until(lambda: runs_again(single), "the single job runs again", LINK)
    assert not any(f"{gang.id}#1" in str(words) for words in gang.processes().values())
    (single.directory / "go").touch()
    assert single.wait().exit_status == 7
    cluster.run("qdel", "-W", "0", gang.id, check=True)
    gang.wait()
