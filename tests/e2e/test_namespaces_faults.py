"""The ways in which ranks, launchers, links and hosts die: true codes, soon, and nothing is left on any host.

Six ranks on three hosts; all but the last wait for the last one, which has the fault.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
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
EVERY = [MPICH, RUN, OPENMPI5, OPENMPI4, MPICH4, IMPI]
BY_PATH = [stack.by_path() for stack in EVERY if stack is not RUN]
FEW, ALL = [MPICH, MPICH.by_path(), RUN], [*EVERY, *BY_PATH]
"""Stacks whose jobs run side by side, for a fault of the network takes its time; FEW: in `scripts/test --all`."""
GANG = ("-l", "nodes=3:ppn=2:gpus=1")
LEAN = ("-l", "nodes=3:ppn=1")
SOON, LINK, ALONE = 10.0, 30.0, 60.0
"""Seconds after a fault in which everything has to be over; LINK: when it is one of the network, or the launcher was
called by its path; ALONE: for which the ranks of other hosts may then run on without those of one."""

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
    return checked_seconds(job, time.time(), limit, since)


def checked_seconds(job: Job, ended: float, limit: float, since: float | None = None) -> float:
    begun = float((job.directory / "up").read_text().split()[1]) if since is None else since
    assert ended - begun < limit, f"over after {ended - begun:.1f} s\n{job.said}"
    return round(ended - begun, 2)


def when_over(jobs: dict[str, Job], timeout: float) -> dict[str, float]:
    """When each job was seen to have ended, in seconds since the epoch; all have, within ``timeout`` seconds."""
    seen: dict[str, float] = {}

    def look() -> bool:
        for name, job in jobs.items():
            if name not in seen and job.status.state == "C":
                seen[name] = time.time()
        return len(seen) == len(jobs)

    with suppress(AssertionError):
        wait_until(look, "the end of all", timeout, 0.1)
    left = [f"{name}: {job.status}\n{job.said}" for name, job in jobs.items() if name not in seen]
    assert not left, "\n".join(left)
    return seen


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
    assert [(step["code"], step["first_failed"]) for step in attempt.steps] == [(code, 5)], job.said
    (culprit,) = (rank for rank in attempt.ranks if rank["rank"] == 5)
    assert culprit["node"] == status.nodes[-1]
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


@pytest.mark.parametrize("fault", [*RANK_FAULTS, "differently"])
def test_a_rank_dies_without_the_front(cluster: NamespaceCluster, fault: str, record_property: Note) -> None:
    """The weaker promise: it is over, and the code is the launcher's. All stacks side by side."""
    program, text = PROGRAM, RANK_FAULTS.get(fault, ("", 0))[0]
    # What ends MPI on an exception comes with the front; without it Python itself has to be told.
    python = "-m mpi4py program.py" if fault == "exception" else "program.py"
    if fault == "differently":
        program = DIFFERENTLY
    jobs = {
        str(stack): cluster.submit(
            stack.script(stack.run(f'{python} "{text}"')),
            *("-l", "nodes=3:ppn=2"),
            files={"program.py": program},
        )
        for stack in present(BY_PATH)
    }
    # Hydra waits for ranks that wait for the one that left.
    limit = LINK + ALONE if fault == "exit" else LINK
    for name, ended in when_over(jobs, limit + 60).items():
        job = jobs[name]
        record_property(name, (checked_seconds(job, ended, limit), job.status.exit_status))
        # Hydra may say 0 of ranks that left by _exit behind MPI_Finalize.
        assert job.status.exit_status or fault == "differently", f"{name}: {job.said}"


def present(stacks: list[Stack]) -> list[Stack]:
    """Those that this machine has."""
    found = [stack for stack in stacks if not stack.why_missing()]
    if not found:
        pytest.skip(stacks[0].why_missing())
    return found


# --- launchers and what they start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
@pytest.mark.parametrize("stack", [*HELD, OPENMPI5, OPENMPI4, MPICH4, IMPI, *BY_PATH], indirect=True, ids=str)
def test_the_launcher_dies(
    cluster: NamespaceCluster, stack: Stack, number: signal.Signals, record_property: Note
) -> None:
    job = start(cluster, stack, script="{} & echo $! > launcher; wait $!")
    job.wait_file("up")
    pid = int(wait_until(job.wait_file("launcher").read_text, "the launcher's pid"))
    begun = time.time()
    os.kill(pid, number)
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


CUT_OFF = [(-1, False, ALL), (-1, True, ALL), pytest.param(0, True, FEW, marks=pytest.mark.full)]


@pytest.mark.parametrize(
    ("culprit", "from_master", "stacks"), CUT_OFF, ids=["from-its-gang", "from-everybody", "the-head"]
)
def test_a_host_is_cut_off(
    three: NamespaceCluster, culprit: int, from_master: bool, stacks: list[Stack], record_property: Note
) -> None:
    """In the middle of jobs of all stacks; ``from_master``: from everybody, else from the other nodes of its gang."""
    jobs = {
        str(stack): start_together(three, stack, "y" if stack is RUN else "n") for stack in present(stacks)
    }
    again = jobs.pop(str(RUN))
    nodes = again.nodes
    assert {tuple(job.nodes) for job in jobs.values()} == {tuple(nodes)}
    victim = nodes[culprit]
    others = [None] if from_master else [name for name in three.nodes if name != victim]
    begun = time.time()
    for other in others:
        three.hosts.cut(victim, other)
    check_lost(jobs, victim, begun, record_property)
    first = wait_until(lambda: first_end(again), "the end of the first attempt", begun + LINK - time.time())
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


def start_together(cluster: NamespaceCluster, stack: Stack, again: str = "n") -> Job:
    """Its ranks are there before the next ones start, for those keep a core busy. ``again``: as -r takes it."""
    job = start(cluster, stack, options=(*LEAN, "-r", again))
    job.wait_file("up")
    return job


def check_lost(jobs: dict[str, Job], victim: str, begun: float, note: Note) -> None:
    """The jobs end for the loss of that node, whatever their launchers return."""
    for name, ended in when_over(jobs, LINK + 20).items():
        job = jobs[name]
        status, (attempt,) = job.status, job.attempts()
        assert (status.exit_status, status.cause, attempt.culprit) == (-3, "NODE_LOST", victim), (
            f"{name}: {status}\n{attempt.message}\n{job.said}"
        )
        note(name, checked_seconds(job, ended, LINK, begun))


@pytest.mark.parametrize("stacks", [pytest.param(FEW, marks=pytest.mark.full), ALL], ids=["few", "all"])
def test_a_host_dies(three: NamespaceCluster, stacks: list[Stack], record_property: Note) -> None:
    """Launchers see that its connections are reset, and return whatever they do, long before our clock: it decides."""
    jobs = {str(stack): start_together(three, stack) for stack in present(stacks)}
    victim = jobs[str(RUN)].nodes[-1]
    begun = time.time()
    three.crash(victim)
    try:
        check_lost(jobs, victim, begun, record_property)
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
    jobs = {str(stack): start(three, stack, "pass", LEAN) for stack in present(EVERY)}
    for name, job in jobs.items():
        first = wait_until(
            lambda job=job: first_end(job), f"the end of the first attempt: {job.status}", LINK
        )
        record_property(name, round(time.time() - begun, 1))
        assert (first.cause, first.culprit) == ("START_FAILED", victim), f"{name}: {first.message}"
    assert time.time() - begun < LINK
    open_fourth(three)
    for name, job in jobs.items():
        status = job.wait()
        seen = (status.exit_status, status.attempt, victim in status.nodes)
        assert seen == (0, 2, False), f"{name}: {job.said}"
