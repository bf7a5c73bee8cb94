"""Snakemake, from PyPI, with the cluster-generic executor and a status command that reads Torque's XML."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.e2e.clients_kit import PROGRAMS, Clients

pytestmark = pytest.mark.full


def snakemake(clients: Clients, place: Path, *more: str) -> subprocess.CompletedProcess[str]:
    submit = f"qsub -N {{rule}} -l nodes=1:ppn={{threads}} -l walltime=00:05:00 -j oe -o {place}/"
    return clients.run(
        "torque",
        *("snakemake", "-d", str(place), "-s", str(PROGRAMS / "Snakefile"), "--jobs", "3"),
        *("--executor", "cluster-generic", "--cluster-generic-submit-cmd", submit),
        *("--cluster-generic-status-cmd", str(PROGRAMS / "snakemake_status.py")),
        *("--cluster-generic-cancel-cmd", "qdel"),
        *("--seconds-between-status-checks", "1", "--max-status-checks-per-second", "10"),
        *more,
        check=False,
        timeout=100,
    )


def test_a_workflow(clients: Clients) -> None:
    place = clients.directory("snakemake")
    done = snakemake(clients, place)
    assert done.returncode == 0, done.stderr
    jobs = (place / "total.txt").read_text().split()
    assert len(set(jobs)) == 3
    assert [clients.cluster.job(job)["Job_Name"] for job in jobs] == ["count"] * 3
    [out] = place.glob("gather.o*")
    assert out.read_text()  # delivered, with what Snakemake said inside the job


def test_a_job_that_fails_is_seen(clients: Clients) -> None:
    place = clients.directory("snakemake-bad")
    done = snakemake(clients, place, "--config", "bad=1")
    assert done.returncode == 1
    assert "Error in rule gather" in done.stderr
    assert not (place / "total.txt").exists()
