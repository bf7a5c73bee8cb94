"""The ways in which ranks, launchers, links and hosts die: true codes, soon, and nothing is left on any host.

Six ranks on three hosts; all but the last wait for the last one, which has the fault.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpcmesos import api_schema
from hpcmesos.queue.records import AttemptRecord
from tests.e2e.cluster_kit import wait_until
from tests.e2e.namespace_cluster import (
    IMPI,
    MPICH,
    MPICH4,
    OPENMPI4,
    OPENMPI5,
    RUN,
    Job,
    NamespaceCluster,
    Stack,
    now,
)

Note = Callable[[str, object], None]
pytestmark = [pytest.mark.hosts, pytest.mark.root]
HELD = [pytest.param(stack, marks=pytest.mark.full) for stack in (MPICH, RUN)]
"""The stacks that every machine has: `scripts/test --all` holds these."""
GANG = ("-l", "nodes=3:ppn=2:gpus=1")
SOON, LINK = 10.0, 30.0
"""Seconds after a fault in which everything has to be over; LINK: when it is one of the network."""

PROGRAM = """
import os, sys, time
from mpi4py import MPI
world = MPI.COMM_WORLD
world.barrier()
def note(name):
    open(name + ".new", "w").write(f"{os.getpid()} {time.time()}")
    os.rename(name + ".new", name)
last = world.size - 1
def linger():
    message = world.irecv(source=last)
    while not message.test()[0]:
        time.sleep(0.02)
if world.rank == last:
    world.recv(source=0)
    note("up")
    exec(sys.argv[1])
reports = [world.recv(source=rank) for rank in range(1, last)] if world.rank == 0 else None
world.send(None, dest=0 if world.rank else last)
if "pass" not in sys.argv:
    linger()
"""
ENDLESS = "linger()"
RANK_FAULTS = {
    "exit": ("os._exit(3)", 3),
    "exception": ("raise ValueError('wrong')", 1),
    "kill": ("os.kill(os.getpid(), 9)", 137),
    "segv": ("os.kill(os.getpid(), 11)", 139),
    "abort": ("world.Abort(7)", 7),
}


def start(
    cluster: NamespaceCluster,
    stack: Stack,
    fault: str = ENDLESS,
    options: tuple[str, ...] = GANG,
    script: str = "{}",
) -> Job:
    """A job whose ranks wait for each other; ``fault``: what the last one does then."""
    launch = stack.run(f'program.py "{fault}"')
    return cluster.submit(stack.script(script.format(launch)), *options, files={"program.py": PROGRAM})


def seconds_to_end(job: Job, limit: float, since: float | None = None) -> float:
    """From the fault, by default that of the last rank, to the end of the job."""
    job.wait(timeout=limit + 20)
    ended = time.time()
    begun = float((job.directory / "up").read_text().split()[1]) if since is None else since
    assert ended - begun < limit, f"over after {ended - begun:.1f} s\n{job.said}"
    return round(ended - begun, 2)


@pytest.fixture
def cluster(namespaces: NamespaceCluster, record_property: Note) -> Iterator[NamespaceCluster]:
    """What a fault leaves is seen before the fixture below asks for the end of all jobs."""
    begun = now()
    yield namespaces
    cleaned = time.time()
    namespaces.check_nothing_left()
    # Hosts of a cluster have a /tmp each. These share one, also with whatever else runs for the same user on this
    # machine: files that may belong to somebody who lives are kept until he has ended.
    wait_until(lambda: not namespaces.litter(begun), "no litter", 60)
    record_property("cleaned", round(time.time() - cleaned, 2))


# --- ranks


@pytest.mark.parametrize("fault", RANK_FAULTS)
@pytest.mark.parametrize("stack", [*HELD, OPENMPI5, OPENMPI4, MPICH4, IMPI], indirect=True, ids=str)
def test_a_rank_dies(cluster: NamespaceCluster, stack: Stack, fault: str, record_property: Note) -> None:
    program, code = RANK_FAULTS[fault]
    job = start(cluster, stack, program)
    record_property("seconds", seconds_to_end(job, SOON))
    status = job.status
    assert status.exit_status == code, job.said
    (attempt,) = job.attempts()
    # Hydra kills one that aborts before anybody could hear which it was.
    known = fault != "abort" or stack.proxy != "hydra_pmi_proxy"
    assert [(step["code"], step["first_failed"]) for step in attempt.steps] == [
        (code, 5 if known else None)
    ], job.said
    (culprit,) = (rank for rank in attempt.ranks if rank["rank"] == 5)
    assert culprit["node"] == status.nodes[-1]
    if known:
        found = 128 + culprit["signal"] if culprit["signal"] is not None else culprit["code"]
        assert found == code, job.said


DIFFERENTLY = """
import os, time
from mpi4py import MPI
world = MPI.COMM_WORLD
rank = world.rank
if rank == 5:
    open("up", "w").write(f"{os.getpid()} {time.time()}")
world.barrier()
MPI.Finalize()
os._exit({0: 4, 5: 3}.get(rank, 0))
"""


@pytest.mark.parametrize("stack", [*HELD, OPENMPI5, OPENMPI4, MPICH4, IMPI], indirect=True, ids=str)
def test_two_ranks_fail_differently(cluster: NamespaceCluster, stack: Stack, record_property: Note) -> None:
    """The code is that of the first, whichever of the two it was; Hydra itself would return 7, both in one."""
    job = cluster.submit(stack.script(stack.run("program.py")), *GANG, files={"program.py": DIFFERENTLY})
    record_property("seconds", seconds_to_end(job, SOON))
    (attempt,) = job.attempts()
    first = attempt.steps[0]["first_failed"]
    assert (first, job.status.exit_status) in ((5, 3), (0, 4)), job.said


@pytest.mark.parametrize("fault", ["kill", "abort"])
@pytest.mark.parametrize("stack", [MPICH.by_path(), OPENMPI5.by_path()], indirect=True, ids=str)
def test_a_rank_dies_without_the_front(
    cluster: NamespaceCluster, stack: Stack, fault: str, record_property: Note
) -> None:
    """The weaker promise: over soon, and the code is the launcher's."""
    job = start(cluster, stack, RANK_FAULTS[fault][0])
    record_property("seconds", seconds_to_end(job, SOON))
    assert job.status.exit_status, job.said
    record_property("code", job.status.exit_status)


# --- launchers and what they start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
@pytest.mark.parametrize("stack", [*HELD, OPENMPI5, OPENMPI4, MPICH4, IMPI], indirect=True, ids=str)
def test_the_launcher_dies(
    cluster: NamespaceCluster, stack: Stack, number: signal.Signals, record_property: Note
) -> None:
    job = start(cluster, stack, script="{} & echo $! > launcher; wait $!")
    job.wait_file("up")
    begun = time.time()
    os.kill(int((job.directory / "launcher").read_text()), number)
    record_property("seconds", seconds_to_end(job, SOON, begun))
    status = job.status
    assert status.exit_status, job.said
    assert status.exit_status == 137 or number == signal.SIGTERM, job.said
    record_property("code", status.exit_status)


HELPERS = [
    pytest.param(stack, victim, marks=pytest.mark.full if first is MPICH else ())
    for first in (MPICH, OPENMPI5, OPENMPI4, MPICH4, IMPI)
    for stack in (first, first.by_path())
    for victim in ("proxy", "remote_shell")
]


@pytest.mark.parametrize(("stack", "victim"), HELPERS, indirect=["stack"], ids=str)
def test_a_helper_dies(cluster: NamespaceCluster, stack: Stack, victim: str, record_property: Note) -> None:
    job = start(cluster, stack)
    job.wait_file("up")
    last = job.nodes[-1]
    if victim == "proxy":
        pids = programs(job.processes(last), stack.proxy)
    else:
        pids = programs(job.processes(), "remote_shell", cluster.hosts[last].address)
    begun = time.time()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    record_property("seconds", seconds_to_end(job, SOON if stack.launch == "mpiexec" else LINK, begun))
    status = job.status
    # By path the code is the launcher's: Open MPI 5 says 0.
    assert status.exit_status or stack.launch != "mpiexec", job.said
    record_property("code", status.exit_status)


def programs(processes: dict[int, list[str]], name: str, word: str = "") -> list[int]:
    """Those with that program among the first words, and with this other word."""
    found = [
        pid
        for pid, words in processes.items()
        if name in [Path(each).name for each in words[:4]] and (not word or word in words)
    ]
    assert found, f"no {name}: {processes}"
    return found


# --- links and hosts


@pytest.fixture
def three(namespaces: NamespaceCluster) -> Iterator[NamespaceCluster]:
    """Jobs go to the first three nodes, until ``open_fourth``."""
    namespaces.run("pbsnodes", "-o", "node4", user="", check=True)
    yield namespaces
    open_fourth(namespaces)


def open_fourth(cluster: NamespaceCluster) -> None:
    cluster.run("pbsnodes", "-c", "node4", user="", check=True)


CUT_OFF = [(-1, False), (-1, True), pytest.param(0, True, marks=pytest.mark.full)]


@pytest.mark.parametrize(("culprit", "from_master"), CUT_OFF)
def test_a_host_is_cut_off(
    three: NamespaceCluster, culprit: int, from_master: bool, record_property: Note
) -> None:
    """In the middle of jobs of all stacks; ``from_master``: from everybody, else from the other nodes of its gang."""
    # Four jobs, for a node has four GPUs; the other stacks are in `test_a_host_dies`.
    stacks = [MPICH, MPICH.by_path(), *([] if OPENMPI5.why_missing() else [OPENMPI5.by_path()]), RUN]
    jobs = []
    for stack in stacks:  # one after the other: ranks that start keep a core busy
        again = "y" if stack is RUN else "n"
        jobs.append(start(three, stack, options=("-l", "nodes=3:ppn=1:gpus=1", "-r", again)))
        jobs[-1].wait_file("up")
    assert {tuple(job.nodes) for job in jobs} == {tuple(jobs[0].nodes)}
    victim = jobs[0].nodes[culprit]
    others = [None] if from_master else [name for name in three.nodes if name != victim]
    begun = time.time()
    for other in others:
        three.hosts.cut(victim, other)
    *final, again = jobs
    record_property("seconds", [seconds_to_end(job, LINK, begun) for job in final])
    for job in final:
        status, (attempt,) = job.status, job.attempts()
        assert (status.exit_status, status.cause, attempt.culprit) == (-3, "NODE_LOST", victim), (
            f"{status}\n{attempt.message}\n{job.said}"
        )
    first = wait_until(lambda: first_end(again), "the end of the first attempt", 10)
    assert (first.cause, first.culprit) == ("NODE_LOST", victim), first.message
    assert time.time() - begun < LINK
    wait_until(
        lambda: not three.job_processes(), f"processes: {three.job_processes()}", begun + LINK - time.time()
    )
    record_property("nothing left", round(time.time() - begun, 1))
    if not from_master:
        open_fourth(three)
        status = running_again(again)
        assert victim not in status.nodes
        assert "node4" in status.nodes
    three.run("qdel", "-W", "0", again.id, check=True)
    again.wait()


@pytest.mark.parametrize(
    "stack",
    [*HELD, MPICH.by_path(), OPENMPI5, OPENMPI5.by_path(), OPENMPI4, MPICH4, IMPI],
    indirect=True,
    ids=str,
)
def test_a_host_dies(three: NamespaceCluster, stack: Stack, record_property: Note) -> None:
    """Launchers see that its connections are reset, and return whatever they do, long before our clock: it decides."""
    job = start(three, stack, options=("-l", "nodes=3:ppn=1:gpus=1", "-r", "n"))
    job.wait_file("up")
    victim = job.nodes[-1]
    begun = time.time()
    three.crash(victim)
    try:
        record_property("seconds", seconds_to_end(job, LINK, begun))
        status, (attempt,) = job.status, job.attempts()
        assert (status.exit_status, status.cause, attempt.culprit) == (-3, "NODE_LOST", victim), (
            f"{status}\n{attempt.message}\n{job.said}"
        )
    finally:
        three.restart(victim)


def first_end(job: Job) -> AttemptRecord | None:
    """The first attempt once it is over."""
    attempts = job.attempts()
    return attempts[0] if attempts and attempts[0].ended_at else None


def running_again(job: Job) -> api_schema.JobStatus:
    return wait_until(
        lambda: status if (status := job.status).attempt == 2 and status.state == "R" else None,
        f"{job.id} runs again: {job.status}",
        20,
    )


@pytest.mark.parametrize(("culprit", "from_master"), [(-1, False), (0, True)])
def test_a_host_is_unreachable_at_the_start(
    three: NamespaceCluster, culprit: int, from_master: bool, record_property: Note
) -> None:
    victim = three.nodes[:3][culprit]
    for other in [None] if from_master else [name for name in three.nodes if name != victim]:
        three.hosts.cut(victim, other)
    begun = time.time()
    job = start(three, RUN, "pass")
    first = wait_until(lambda: first_end(job), f"the end of the first attempt: {job.status}", LINK)
    record_property("seconds", round(time.time() - begun, 1))
    assert (first.cause, first.culprit) == ("START_FAILED", victim), first.message
    open_fourth(three)
    status = job.wait()
    assert (status.exit_status, status.attempt, victim in status.nodes) == (0, 2, False), job.said
