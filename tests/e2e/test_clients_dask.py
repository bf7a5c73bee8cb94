"""dask-jobqueue, from PyPI: its workers are our jobs; and its own PBS test file."""

from __future__ import annotations

import pytest

from tests.e2e.clients_kit import PROGRAMS, Clients

pytestmark = pytest.mark.full
PERSONALITIES = ("torque", "pbspro")


@pytest.mark.parametrize("personality", PERSONALITIES)
def test_workers_are_jobs(clients: Clients, personality: str) -> None:
    told = clients.program(personality, "dask_sum.py", clients.directory(f"dask-{personality}"))
    assert told["sum"] == sum(number * number for number in range(100))
    assert len(told["jobs"]) == 2
    for job in told["jobs"]:
        # The cluster that goes away deletes its jobs, unless its workers have ended by themselves.
        assert clients.cluster.wait(job)["Exit_status"] in (0, 271)


@pytest.mark.parametrize("personality", PERSONALITIES)
def test_its_own_tests(clients: Clients, personality: str) -> None:
    words = ["-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider", "-p", "dask_suite"]
    done = clients.run(
        personality,
        "python",
        *words,
        "--pyargs",
        "dask_jobqueue.tests.test_pbs",
        environ={"PYTHONPATH": str(PROGRAMS)},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "16 passed" in done.stdout
    assert "skipped" not in done.stdout
