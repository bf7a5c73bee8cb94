"""PSI/J, qtoolkit, pysqa, DPDispatcher, ReFrame, batchspawner, ipyparallel and cluster-tools, from PyPI."""

from __future__ import annotations

import json

import pytest

from tests.e2e.clients_kit import PROGRAMS, Clients
from tests.e2e.cluster_kit import wait_until

pytestmark = pytest.mark.full
PERSONALITIES = ("torque", "pbspro")


@pytest.mark.parametrize(("executor", "personality"), [("pbs", "pbspro"), ("pbs_classic", "torque")])
def test_psij(clients: Clients, executor: str, personality: str) -> None:
    """PSI/J takes only 265 for a cancelled job: sites that use it set Torque's attribute for that."""
    manager = clients.cluster.run("qmgr", "-c", "set server exit_code_canceled_job = 265", user="")
    assert manager.returncode == 0, manager.stderr
    try:
        told = clients.program(personality, "psij_jobs.py", executor, clients.directory(f"psij-{executor}"))
    finally:
        clients.cluster.run("qmgr", "-c", "unset server exit_code_canceled_job", user="")
    assert told == {
        "good": ["COMPLETED", 0],
        "bad": ["FAILED", 3],
        "two": ["COMPLETED", 0],
        "cancelled": ["CANCELED", None],
    }


@pytest.mark.parametrize("personality", PERSONALITIES)
def test_qtoolkit(clients: Clients, personality: str) -> None:
    told = clients.program(personality, "qtoolkit_job.py", clients.directory(f"qtoolkit-{personality}"))
    assert told == {
        "state": "RUNNING",
        "name": "from-qtoolkit",
        "nodes": 1,
        "cpus": 1,
        "time_limit": 300,
        "listed": True,
        "cancelled": "SUCCESSFUL",
    }


@pytest.mark.parametrize("personality", PERSONALITIES)
def test_pysqa(clients: Clients, personality: str) -> None:
    """In qstat's plain list it reads no ids of arrays, as it would not of Torque's: others' are out of sight first."""
    cluster = clients.cluster
    assert cluster.run("qmgr", "-c", "set server keep_completed = 0", user="").returncode == 0
    try:
        wait_until(lambda: "[]" not in cluster.run("qstat").stdout, "no array is shown")
        told = clients.program(personality, "pysqa_jobs.py", clients.directory(f"pysqa-{personality}"))
    finally:
        cluster.run("qmgr", "-c", "unset server keep_completed", user="")
    assert told == ["running", "pending"]


@pytest.mark.parametrize(("batch", "personality"), [("PBS", "pbspro"), ("Torque", "torque")])
def test_dpdispatcher(clients: Clients, batch: str, personality: str) -> None:
    place = clients.directory(f"dpdispatcher-{batch}")
    done = clients.run(personality, "python", str(PROGRAMS / "dpdispatcher_task.py"), batch, str(place))
    assert done.stdout.splitlines()[-1].startswith("made by ")


@pytest.mark.parametrize(
    ("scheduler", "personality"), [("torque", "torque"), ("pbs", "torque"), ("pbspro", "pbspro")]
)
def test_reframe(clients: Clients, scheduler: str, personality: str) -> None:
    place = clients.directory(f"reframe-{scheduler}")
    files = ["-C", str(PROGRAMS / "reframe_config.py"), "-c", str(PROGRAMS / "reframe_checks.py")]
    done = clients.run(
        personality, "reframe", *files, "--system", f"here:{scheduler}", "--prefix", str(place), "-r"
    )
    assert "Ran 2/2 test case(s) from 2 check(s) (0 failure(s)" in done.stdout


@pytest.mark.parametrize(("spawner", "personality"), [("TorqueSpawner", "torque"), ("PBSSpawner", "pbspro")])
def test_batchspawner(clients: Clients, spawner: str, personality: str) -> None:
    told = clients.program(personality, "batchspawner_server.py", spawner)
    assert told["running"] and told["gone"]
    assert told["host"] == clients.cluster.job(told["job"])["exec_host"].partition("/")[0]


@pytest.mark.parametrize("personality", PERSONALITIES)
def test_ipyparallel(clients: Clients, personality: str) -> None:
    """Its engines are an array by Torque's ``-t``; the array is deleted by its bare number."""
    place = clients.directory(f"ipyparallel-{personality}")
    done = clients.run(
        personality,
        "python",
        str(PROGRAMS / "ipyparallel_engines.py"),
        environ={"IPYTHONDIR": str(place)},
    )
    jobs = json.loads(done.stdout.splitlines()[-1])
    array = jobs[0].partition("[")[0]
    assert [job.partition(".")[0] for job in jobs] == [f"{array}[1]", f"{array}[2]"]
    for job in jobs:
        clients.cluster.wait(job)


def test_cluster_tools(clients: Clients) -> None:
    """Its jobs import the module of the function that they call."""
    done = clients.run(
        "pbspro",
        "python",
        str(PROGRAMS / "cluster_tools_map.py"),
        environ={"PYTHONPATH": str(PROGRAMS)},
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [4, 9, 16]
