"""examples/frameworks as they are, over hosts with networks of their own: real TensorFlow, real PyTorch, on CPUs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

from tests.e2e.cluster_kit import wait_until
from tests.e2e.namespace_cluster import Job, NamespaceCluster

pytestmark = [pytest.mark.hosts, pytest.mark.root, pytest.mark.full]
ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "frameworks"
PATIENCE = 300.0
"""Seconds; TensorFlow alone takes half a minute to be imported on a busy machine."""


def scripts(words: str) -> subprocess.CompletedProcess[str]:
    program = f"source {ROOT}/scripts/lib.sh\n{words}\n"
    return subprocess.run(["bash", "-c", program, "tests"], capture_output=True, text=True, check=False)


@cache
def environment(framework: str) -> tuple[Path, str]:
    """Where TensorFlow or PyTorch is, installed if need be; and why it is not."""
    place = ROOT / ".cache" / framework
    if framework == "torch" and not place.exists() and scripts("torch_is_for_cpus").returncode:
        return place, "no PyTorch for CPUs: pip would bring CUDA; scripts/frameworks gets it"
    done = scripts(f"install_{framework} {place}")
    name = {"torch": "PyTorch", "tensorflow": "TensorFlow"}[framework]
    return place, f"no {name}: {done.stderr.splitlines()[-1]}" if done.returncode else ""


def submit(cluster: NamespaceCluster, name: str) -> Job:
    """One of the examples, as a user would."""
    place, missing = environment("torch" if name.startswith("torch") else "tensorflow")
    if missing:
        pytest.skip(missing)
    cluster.count += 1
    directory = cluster.work() / str(cluster.count)
    shutil.copytree(EXAMPLES, directory)
    status = cluster.work().stat()
    os.chown(directory, status.st_uid, status.st_gid)
    variables = f"PATH={place}/bin:/usr/bin:/bin"
    done = cluster.run("qsub", "-v", variables, "-o", "STDIN.o", name, check=True, cwd=directory)
    return Job(cluster, done.stdout.strip(), directory)


def lines(job: Job) -> list[str]:
    return (job.directory / "STDIN.o").read_text(errors="replace").splitlines()


def accuracies(job: Job) -> list[float]:
    found = (re.search(r"test accuracy ([0-9.]+)", line) for line in lines(job))
    return [float(match[1]) for match in found if match]


def ends_well(job: Job, nodes: int) -> list[str]:
    """What it wrote, after an end with 0 on so many nodes."""
    status = job.wait(PATIENCE)
    text = "\n".join(lines(job))
    assert status.exit_status == 0, text
    assert len(set(status.nodes)) == nodes
    return lines(job)


def kill_rank(job: Job, rank: int, python: str = "python") -> None:
    """From outside, and of the rank's own processes only."""

    def of_rank() -> list[int]:
        mark = f"HPCMESOS_RANK={rank}\0".encode()
        found = []
        for pid, words in job.processes().items():
            environ = Path(f"/proc/{pid}/environ")
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                if Path(words[0]).name.startswith(python) and mark in environ.read_bytes():
                    found.append(pid)
        return found

    for pid in wait_until(of_rank, f"rank {rank} runs", 60):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_tensorflow_workers(namespaces: NamespaceCluster) -> None:
    job = submit(namespaces, "tf_multi_worker.pbs")
    text = "\n".join(ends_well(job, 2))
    found = accuracies(job)
    assert len(found) == 2
    assert min(found) >= 0.9
    assert len(set(found)) == 1, "both have the same weights"
    assert text.count("SIMULATED") == 2


def test_tensorflow_parameter_server(namespaces: NamespaceCluster) -> None:
    job = submit(namespaces, "tf_parameter_server.pbs")
    text = "\n".join(ends_well(job, 2))
    assert accuracies(job)[0] >= 0.9
    assert "weights on /job:ps" in text


@pytest.mark.parametrize("name", ["torch_ddp.pbs", "torchrun.pbs"])
def test_torch(namespaces: NamespaceCluster, name: str) -> None:
    job = submit(namespaces, name)
    text = "\n".join(ends_well(job, 2))
    found = accuracies(job)
    assert len(found) == 4
    assert min(found) >= 0.9
    assert text.count("the same on all ranks: True") == 4


@pytest.mark.parametrize("name", ["torch_ddp.pbs", "tf_multi_worker.pbs", "tf_parameter_server.pbs"])
def test_killed_worker_ends_the_job_and_is_named(namespaces: NamespaceCluster, name: str) -> None:
    job = submit(namespaces, name)
    kill_rank(job, 1)
    status = job.wait(60)
    assert status.exit_status == 128 + 9, "\n".join(lines(job))
    node = next(rank["node"] for rank in job.attempts()[-1].ranks if rank["rank"] == 1)
    assert f"hpcmesos run: rank 1 ({node}) was killed by signal 9" in lines(job)
    (step,) = job.status.attempts[-1].steps
    assert step.first_failed == 1
