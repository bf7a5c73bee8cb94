"""Ranks of every MPI over four hosts with networks of their own: where they run, and with which GPU."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.cluster_kit import HPCMESOS
from tests.e2e.namespace_cluster import IMPI, MPICH, MPICH4, OPENMPI4, OPENMPI5, NamespaceCluster, Stack
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
    installed = {node.name: {gpu.uuid for gpu in node.gpus} for node in cluster.api.nodes()}
    for host, network, gpu, node, found in places:
        assert host == node
        assert network in networks[node]
        assert gpu in installed[node]
        assert found.startswith(library), found
    hosts = [place[0] for place in places]
    assert all(len(set(hosts[first : first + 4])) == 1 for first in range(0, 16, 4)), hosts


STACKS = [*HELD, MPICH4, MPICH4.under_run(), OPENMPI4, OPENMPI5, IMPI, IMPI.under_run()]


@pytest.mark.parametrize("stack", STACKS, indirect=True, ids=str)
def test_sixteen_ranks(namespaces: NamespaceCluster, stack: Stack) -> None:
    job = namespaces.submit(stack.script(stack.run("where.py")), *WHOLE, files={"where.py": WHERE})
    status = job.wait()
    assert status.exit_status == 0, job.said
    check_places(namespaces, job.output, stack.library)
    (attempt,) = job.attempts()
    assert sorted((rank["rank"], rank["code"]) for rank in attempt.ranks) == [(n, 0) for n in range(16)]
    assert [step["code"] for step in attempt.steps] == [0]


@pytest.mark.parametrize("stack", STACKS, indirect=True, ids=str)
def test_program_in_c(namespaces: NamespaceCluster, stack: Stack) -> None:
    job = namespaces.submit(stack.script(f"{stack.launch} {compile_hello(namespaces, stack)}"), *WHOLE)
    assert job.wait().exit_status == 0, job.said
    check_places(namespaces, job.output, "C")


def compile_hello(cluster: NamespaceCluster, stack: Stack) -> Path:
    directory = cluster.root / "programs"
    directory.mkdir(mode=0o755, exist_ok=True)
    program = directory / f"hello-{stack}"
    compiled = subprocess.run(
        [stack.directory / "mpicc", "-x", "c", "-o", program, "-"],
        input=HELLO,
        env={**os.environ, **stack.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert compiled.returncode == 0, compiled.stderr
    return program


@pytest.mark.parametrize("stack", [HELD[0], MPICH4, OPENMPI4, OPENMPI5, IMPI], indirect=True, ids=str)
def test_from_a_login_shell(namespaces: NamespaceCluster, stack: Stack) -> None:
    """`hpcmesos mpirun`, with the caller's PATH: programs in Python and C, and the code of one that fails."""
    environ = {**stack.environ, "PATH": f"{stack.directory}:{namespaces.environ['PATH']}"}

    def mpirun(*program: str | Path) -> subprocess.CompletedProcess[str]:
        return namespaces.run(*HPCMESOS, "mpirun", *WHOLE, *map(str, program), environ=environ)

    for program, library in (
        ((stack.python, "-c", WHERE), stack.library),
        ((compile_hello(namespaces, stack),), "C"),
    ):
        done = mpirun(*program)
        assert done.returncode == 0, done.stderr
        check_places(namespaces, done.stdout, library)
    done = mpirun(stack.python, "-c", f"{WHERE}\nif world.rank == 13: os._exit(3)\nworld.barrier()")
    assert done.returncode == 3, done.stderr
    assert "rank 13 (node4" in done.stderr


MAYBE = """
import os, sys
from mpi4py import MPI
world = MPI.COMM_WORLD
world.barrier()
if world.rank == world.size - 1 and sys.argv[1] != "0":
    os._exit(int(sys.argv[1]))
world.barrier()
if world.rank == 0:
    print(world.size, "ranks", file=open("answers", "a"))
"""


@pytest.mark.parametrize("stack", STACKS, indirect=True, ids=str)
def test_the_script_decides_what_a_failed_launch_means(namespaces: NamespaceCluster, stack: Stack) -> None:
    """As in any PBS: a launch that fails is an exit code for the shell, and the job has the shell's own."""
    mpirun = stack.launch.replace("mpiexec", "mpirun")
    script = f"""
{stack.run("maybe.py 3")} || {stack.run("maybe.py 0")}
echo first or second $? >> answers
{mpirun} sh -c 'exit 7' || true
echo probe $? >> answers
{stack.run("maybe.py 4")}
echo alone $? >> answers
{mpirun} ./no-such-program || echo missing >> answers
exit 0
"""
    job = namespaces.submit(stack.script(script), "-l", "nodes=2:ppn=2:gpus=2", files={"maybe.py": MAYBE})
    status = job.wait()
    assert (status.exit_status, status.cause) == (0, "OK"), job.said
    answers = (job.directory / "answers").read_text().splitlines()
    assert answers == ["4 ranks", "first or second 0", "probe 0", "alone 4", "missing"], job.said
    (attempt,) = job.attempts()
    codes = [step["code"] for step in attempt.steps]
    assert codes[:4] == [3, 0, 7, 4], job.said
    assert codes[4], job.said
    assert [step["first_failed"] for step in attempt.steps[:2]] == [3, None], job.said
    assert attempt.steps[3]["first_failed"] == 3, job.said


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
    index = {gpu.uuid: (node.name, gpu.index) for node in namespaces.api.nodes() for gpu in node.gpus}
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
