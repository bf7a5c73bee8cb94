"""Ranks of every MPI over four hosts with networks of their own: where they run, and with which GPU."""

from __future__ import annotations

import subprocess

import pytest

from tests.e2e.namespace_cluster import MPICH, MPICH4, OPENMPI4, OPENMPI5, RUN, NamespaceCluster, Stack
from tests.e2e.test_namespaces_faults import HELD

pytestmark = [pytest.mark.hosts, pytest.mark.root]
WHOLE = ("-l", "nodes=4:ppn=4:gpus=4")

WHERE = """
import os, socket
from mpi4py import MPI
world = MPI.COMM_WORLD
here = (
    socket.gethostname(), os.readlink("/proc/self/ns/net"), os.environ["CUDA_VISIBLE_DEVICES"],
    os.environ["HPCMESOS_NODE"], "{}-{}".format(MPI.get_vendor()[0].replace(" ", ""), MPI.get_vendor()[1][0]),
)
seen = world.gather(here)
total = world.allreduce(world.rank)
if world.rank == 0:
    print(total)
    for each in seen:
        print(*each)
"""

HELLO = r"""
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv) {
    int rank, size, total;
    char host[256], net[256] = "", all[16 * 1024], line[1024];
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    gethostname(host, sizeof host);
    if (readlink("/proc/self/ns/net", net, sizeof net - 1) < 0) return 1;
    snprintf(line, sizeof line, "%s %s %s %s C", host, net, getenv("CUDA_VISIBLE_DEVICES"), getenv("HPCMESOS_NODE"));
    MPI_Gather(line, sizeof line, MPI_CHAR, all, sizeof line, MPI_CHAR, 0, MPI_COMM_WORLD);
    MPI_Allreduce(&rank, &total, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    if (rank == 0) {
        printf("%d\n", total);
        for (int i = 0; i < size; i++) puts(all + i * sizeof line);
    }
    return MPI_Finalize();
}
"""


def check_places(cluster: NamespaceCluster, output: str, library: str) -> None:
    """16 ranks, 4 on each host, block by block, each with a GPU of its own."""
    total, *lines = output.splitlines()
    assert total == "120", output
    places = [line.split() for line in lines]
    assert len({(host, network, gpu) for host, network, gpu, _, _ in places}) == 16, output
    networks = {name: cluster.hosts[name].namespaces for name in cluster.nodes}
    installed = {node.name: {gpu.uuid for gpu in node.gpus} for node in cluster.client.nodes()}
    for host, network, gpu, node, found in places:
        assert host == node
        assert network in networks[node]
        assert gpu in installed[node]
        assert found.startswith(library), found
    hosts = [place[0] for place in places]
    assert all(len(set(hosts[first : first + 4])) == 1 for first in range(0, 16, 4)), hosts


@pytest.mark.parametrize(
    ("stack", "library"),
    [
        pytest.param(MPICH, "MPICH-5", marks=pytest.mark.full),
        pytest.param(RUN, "MPICH-5", marks=pytest.mark.full),
        (MPICH4, "MPICH-4"),
        (MPICH4.under_run(), "MPICH-4"),
        (OPENMPI4, "OpenMPI-4"),
        (OPENMPI5, "OpenMPI-5"),
    ],
    indirect=["stack"],
    ids=str,
)
def test_sixteen_ranks(namespaces: NamespaceCluster, stack: Stack, library: str) -> None:
    job = namespaces.submit(stack.script(stack.run("where.py")), *WHOLE, files={"where.py": WHERE})
    status = job.wait()
    assert status.exit_status == 0, job.said
    check_places(namespaces, job.output, library)
    (attempt,) = job.attempts()
    assert sorted((rank["rank"], rank["code"]) for rank in attempt.ranks) == [(n, 0) for n in range(16)]
    assert [step["code"] for step in attempt.steps] == [0]


@pytest.mark.parametrize(
    "stack", [*HELD, MPICH4, MPICH4.under_run(), OPENMPI4, OPENMPI5], indirect=True, ids=str
)
def test_program_in_c(namespaces: NamespaceCluster, stack: Stack) -> None:
    directory = namespaces.root / "programs"
    directory.mkdir(mode=0o755, exist_ok=True)
    program = directory / f"hello-{stack}"
    compiled = subprocess.run(
        [stack.directory / "mpicc", "-x", "c", "-o", program, "-"],
        input=HELLO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert compiled.returncode == 0, compiled.stderr
    job = namespaces.submit(stack.script(f"{stack.launch} {program}"), *WHOLE)
    assert job.wait().exit_status == 0, job.said
    check_places(namespaces, job.output, "C")


@pytest.mark.full
def test_two_jobs_with_other_gpus_on_each_node(namespaces: NamespaceCluster) -> None:
    """A third job shifts what is free on one node: the same local rank has another index there."""
    for name in ("node3", "node4"):
        namespaces.run("pbsnodes", "-o", name, user="", check=True)
    hold = "touch up; until test -e over; do sleep 0.02; done"
    try:
        shift = namespaces.submit(hold, "-l", "nodes=1:ppn=1:gpus=1")
        shift.wait_file("up")
        program = WHERE + "if world.rank == 0:\n    open('up', 'w').close()\n"
        wait = "import time\nwhile not os.path.exists('over'): time.sleep(0.02)\n"
        jobs = [
            namespaces.submit(
                MPICH.script(f"sort $PBS_GPUFILE > gpus; {MPICH.run('where.py')}"),
                *("-l", f"nodes=2:ppn={count}:gpus={count}"),
                files={"where.py": f"{program}{wait}"},
            )
            for count in (1, 2)
        ]
        for job in jobs:
            job.wait_file("up")
        for job in (shift, *jobs):
            (job.directory / "over").touch()
        for job in jobs:
            assert job.wait().exit_status == 0, job.said
    finally:
        for name in ("node3", "node4"):
            namespaces.run("pbsnodes", "-c", name, user="", check=True)
    index = {gpu.uuid: (node.name, gpu.index) for node in namespaces.client.nodes() for gpu in node.gpus}
    seen: list[tuple[str, int]] = []
    for job, count in zip(jobs, (1, 2), strict=True):
        places = [line.split() for line in job.output.splitlines()[1:]]
        gpus = [index[gpu] for _, _, gpu, _, _ in places]
        assert [node for node, _ in gpus] == [host for host, *_ in places], job.said
        assert sorted(node for node, _ in gpus) == ["node1"] * count + ["node2"] * count, job.said
        granted = [line.rpartition("-gpu")[::2] for line in (job.directory / "gpus").read_text().split()]
        names = {namespaces.hosts[name].address: name for name in namespaces.nodes}
        assert sorted((names.get(host, host), int(number)) for host, number in granted) == sorted(gpus)
        seen += gpus
    assert len(set(seen)) == len(seen) == 6, seen
    by_node = {name: sorted(number for node, number in seen if node == name) for name in ("node1", "node2")}
    assert by_node["node1"] != by_node["node2"], by_node
