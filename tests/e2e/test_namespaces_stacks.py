"""What else every MPI does over hosts with networks of their own: signals, spawned ranks, the network that is MPI's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network

import pytest

from tests.e2e.conftest import check_clean
from tests.e2e.namespace_cluster import IMPI, OPENMPI4, OPENMPI5, NamespaceCluster, Stack
from tests.e2e.test_namespaces_faults import HELD
from tests.e2e.test_namespaces_ranks import STACKS

pytestmark = [pytest.mark.hosts, pytest.mark.root]

SIGNALLED = """
import os, signal, time
from mpi4py import MPI
world = MPI.COMM_WORLD
heard = []
signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
world.barrier()
open(f"up.{world.rank}", "w").close()
while not heard:
    time.sleep(0.02)
hosts = world.gather(os.environ["HPCMESOS_NODE"])
if world.rank == 0:
    print(*hosts)
"""


@pytest.mark.parametrize("stack", STACKS, indirect=True, ids=str)
def test_a_signal_reaches_every_rank(namespaces: NamespaceCluster, stack: Stack) -> None:
    """USR1, with which jobs are warned: a launcher passes it on to all hosts, and the launch goes on."""
    script = f"""
{stack.run("program.py")} & launcher=$!
until [ $(ls | grep -c '^up\\.') = 6 ]; do sleep 0.1; done
kill -USR1 $launcher
wait $launcher
"""
    options = ("-l", "nodes=3:ppn=2")
    job = namespaces.submit(stack.script(script), *options, files={"program.py": SIGNALLED})
    assert job.wait().exit_status == 0, job.said
    first, second, third = job.nodes
    assert job.output.split() == [first] * 2 + [second] * 2 + [third] * 2, job.said


SPAWNS = """
import os, socket, sys
from mpi4py import MPI
parent = MPI.Comm.Get_parent()
if parent == MPI.COMM_NULL:
    root = MPI.ROOT if MPI.COMM_WORLD.rank == 0 else MPI.PROC_NULL
    parent = MPI.COMM_WORLD.Spawn(sys.executable, [__file__], maxprocs=6)
    for line in parent.gather(None, root=root) or ():
        print(line)
else:
    names = "HPCMESOS_NODE CUDA_VISIBLE_DEVICES".split()
    parent.gather(" ".join([socket.gethostname(), *(os.environ[name] for name in names)]), root=0)
parent.Barrier()  # MPICH returns from Spawn rank by rank: the second may connect when the first is done
parent.Disconnect()
"""
SPAWNING = [HELD[0], OPENMPI4, OPENMPI5, replace(IMPI, environ={**IMPI.environ, "I_MPI_SPAWN": "on"})]
"""Debian's MPICH cannot, launched by whomever."""


@pytest.mark.parametrize("stack", SPAWNING, indirect=True, ids=str)
def test_spawned_ranks(namespaces: NamespaceCluster, stack: Stack) -> None:
    """MPI_Comm_spawn: the new ranks take the slots that are free, and see the GPUs of the host where they are."""
    launch = f"{stack.launch} -n 2 {stack.python} program.py"
    options = ("-l", "nodes=2:ppn=4:gpus=2")
    job = namespaces.submit(stack.script(launch), *options, files={"program.py": SPAWNS})
    assert job.wait().exit_status == 0, job.said
    # UCX tells of connections to ranks that were quicker to leave, in lines of its own: "[time] [host:pid] ...".
    lines = [line.split() for line in job.output.splitlines() if not line.startswith("[")]
    assert len(lines) == 6, job.said
    assert {host for host, _, _ in lines} == set(job.nodes), job.said
    installed = {node.name: {gpu.uuid for gpu in node.gpus} for node in namespaces.api.nodes()}
    for host, node, gpus in lines:
        assert host == node, job.said
        assert len(gpus.split(",")) == 2 and set(gpus.split(",")) <= installed[host], job.said


@pytest.fixture
def bridged() -> Iterator[NamespaceCluster]:
    """Two hosts with Docker's bridge, which has the same address on both; the site says which network is MPI's."""
    cluster = NamespaceCluster(["node1", "node2"], gpus=1)
    network = ip_network(f"{cluster.hosts.addresses['node1']}/24", strict=False)
    cluster.site = {"mpi_network": str(network)}
    with cluster:
        for name in cluster.nodes:
            host = cluster.hosts[name]
            host.run(["ip", "link", "add", "docker0", "type", "veth", "peer", "name", "docker1"])
            host.run(["ip", "address", "add", "172.17.0.1/16", "dev", "docker0"])
            for end in ("docker0", "docker1"):
                host.run(["ip", "link", "set", end, "up"])
        yield cluster
        check_clean(cluster)


def test_the_network_that_the_site_names(bridged: NamespaceCluster) -> None:
    """Open MPI would hang: to each of its ranks the other host seems to be its own."""
    program = "from mpi4py import MPI\nprint(MPI.COMM_WORLD.allreduce(MPI.COMM_WORLD.rank))\n"
    stacks = [stack for stack in (OPENMPI4, OPENMPI5) if not stack.why_missing()]
    if not stacks:
        pytest.skip("no Open MPI")
    for stack in stacks:
        job = bridged.submit(
            stack.script(stack.run("program.py")), "-l", "nodes=2:ppn=2", files={"program.py": program}
        )
        assert job.wait().exit_status == 0, f"{stack}: {job.said}"
        assert job.output.split() == ["6"] * 4, f"{stack}: {job.said}"
