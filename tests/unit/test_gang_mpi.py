"""Host files and environments that the MPI launchers find on the nodes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpcmesos.gang import mpi

ROOT = str(Path(mpi.__file__).parents[2])
PATHS = mpi.JobPaths(
    directory="/s/j",
    bin="/s/j/bin",
    remote_shell="/s/rsh",
    nodefile="/s/j/nodes",
    gpufile="/s/j/gpus",
    hostfile="/s/j/hydra",
    ompi_hostfile="/s/j/ompi",
    tasks="/s/j/tasks",
    tmpdir="/tmp/j",
)


def member(number: int, slots: int, *indices: int) -> dict[str, Any]:
    return {
        "node": f"node{number}",
        "address": f"127.0.1.{number}",
        "peer_port": 7000 + number,
        "cpus": 4,
        "mem": 0,
        "slots": slots,
        "gpus": [
            {"uuid": f"GPU-{number}-{i}", "index": i, "model": "H", "simulated": False} for i in indices
        ],
    }


def spec(**changes: Any) -> dict[str, Any]:
    return {
        "attempt": "12.hpcm#1",
        "job": "12.hpcm",
        "number": 1,
        "name": "train",
        "queue": "batch",
        "server": "hpcm",
        "owner": "anna",
        "walltime": 3600,
        "index": None,
        "environment": {"PBS_O_WORKDIR": "/home/anna/w", "PATH": "/usr/bin:/bin"},
        "gpubind": "rank",
        "me": 0,
        "members": [member(1, 2, 0, 3), member(2, 1, 5), member(3, 0)],
        "mpi_network": None,
        "job_path": ["/opt/mpich/bin", "/bin"],
        "names_resolve": False,
    } | changes


def test_nodefile_has_a_line_a_slot_with_addresses_unless_names_resolve() -> None:
    assert mpi.nodefile(spec()) == "127.0.1.1\n127.0.1.1\n127.0.1.2\n"
    assert mpi.nodefile(spec(names_resolve=True)) == "node1\nnode1\nnode2\n"


def test_host_files_hold_addresses_with_slots() -> None:
    for resolve in (True, False):
        assert mpi.hostfile_hydra(spec(names_resolve=resolve)) == "127.0.1.1:2\n127.0.1.2:1\n"
        assert mpi.hostfile_openmpi(spec(names_resolve=resolve)) == "127.0.1.1 slots=2\n127.0.1.2 slots=1\n"


def test_gpufile_counts_by_index_on_each_host() -> None:
    assert mpi.gpufile(spec(names_resolve=True)) == "node1-gpu0\nnode1-gpu3\nnode2-gpu5\n"


def test_the_pbs_union() -> None:
    env = mpi.job_environment(spec(), PATHS)
    expected = {
        "PBS_ENVIRONMENT": "PBS_BATCH",
        "PBS_JOBID": "12.hpcm",
        "PBS_JOBNAME": "train",
        "PBS_QUEUE": "batch",
        "PBS_SERVER": "hpcm",
        "PBS_O_QUEUE": "batch",
        "PBS_O_WORKDIR": "/home/anna/w",
        "PBS_NODEFILE": "/s/j/nodes",
        "PBS_GPUFILE": "/s/j/gpus",
        "PBS_NUM_NODES": "3",
        "PBS_NUM_PPN": "2",
        "PBS_NP": "3",
        "PBS_NODENUM": "0",
        "PBS_WALLTIME": "3600",
        "NCPUS": "4",
        "OMP_NUM_THREADS": "2",
        "PYTHONUNBUFFERED": "1",
    }
    assert expected.items() <= env.items()
    assert not {"PBS_ARRAYID", "PBS_ARRAY_INDEX", "HOME", "OMPI_ALLOW_RUN_AS_ROOT"} & env.keys()
    assert all(isinstance(value, str) for value in env.values())


def test_an_array_element_knows_its_index_in_both_dialects() -> None:
    env = mpi.job_environment(spec(job="12[7].hpcm", index=7, walltime=None), PATHS)
    assert (env["PBS_ARRAYID"], env["PBS_ARRAY_INDEX"], env["PBS_ARRAY_ID"]) == ("7", "7", "12[].hpcm")
    assert "PBS_WALLTIME" not in env


def test_the_users_own_settings_win_but_cannot_turn_the_launchers_away() -> None:
    own = {"PYTHONUNBUFFERED": "", "OMP_NUM_THREADS": "9", "HYDRA_LAUNCHER": "ssh", "PMI_RANK": "3", "A": "b"}
    env = mpi.job_environment(spec(environment=own), PATHS)
    assert (env["PYTHONUNBUFFERED"], env["OMP_NUM_THREADS"], env["A"]) == ("", "9", "b")
    assert env["HYDRA_LAUNCHER"] == "rsh"
    assert "PMI_RANK" not in env


def test_the_fronts_come_first_in_path_and_nothing_twice() -> None:
    assert mpi.job_environment(spec(), PATHS)["PATH"] == "/s/j/bin:/usr/bin:/bin:/opt/mpich/bin"


def test_launchers_use_our_remote_shell_and_our_host_files() -> None:
    env = mpi.job_environment(spec(mpi_network="10.77.0.0/24", owner="root"), PATHS)
    expected = {
        "HYDRA_LAUNCHER": "rsh",
        "HYDRA_LAUNCHER_EXEC": "/s/rsh",
        "HYDRA_LAUNCHER_AUTOFORK": "0",
        "HYDRA_HOST_FILE": "/s/j/hydra",
        "HYDRA_ENV": "none",
        "I_MPI_HYDRA_BOOTSTRAP_EXEC": "/s/rsh",
        "PRTE_MCA_plm_ssh_agent": "/s/rsh -n",
        "PRTE_MCA_prte_default_hostfile": "/s/j/ompi",
        "OMPI_MCA_plm_rsh_agent": "/s/rsh -n",
        "OMPI_MCA_orte_default_hostfile": "/s/j/ompi",
        "OMPI_MCA_btl_tcp_if_include": "10.77.0.0/24",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
    }
    assert expected.items() <= env.items()


def test_each_host_gets_its_own_gpus_and_a_share_without_gpus_sees_none() -> None:
    shown = [mpi.host_overlay(spec(me=me), PATHS) for me in range(3)]
    assert [o["CUDA_VISIBLE_DEVICES"] for o in shown] == ["GPU-1-0,GPU-1-3", "GPU-2-5", ""]
    assert [o["HPCMESOS_NODE"] for o in shown] == ["node1", "node2", "node3"]
    assert [o["PBS_NODENUM"] for o in shown] == ["0", "1", "2"]
    assert {o["TMPDIR"] for o in shown} == {"/tmp/j"}


@pytest.mark.parametrize(
    ("gpus", "size", "expected"),
    [
        (4, 4, ["0", "1", "2", "3"]),
        (4, 2, ["01", "23"]),
        (8, 3, ["01", "234", "567"]),
        (2, 4, ["0", "0", "1", "1"]),
        (0, 2, ["", ""]),
    ],
)
def test_ranks_share_out_the_gpus_of_their_node(gpus: int, size: int, expected: list[str]) -> None:
    uuids = [str(i) for i in range(gpus)]
    shares = [mpi.rank_gpus(uuids, local, size) for local in range(size)]
    assert ["".join(chosen) for chosen, _ in shares] == expected
    assert {shared for _, shared in shares} == {0 < gpus < size}


def test_it_imports_nothing_but_the_standard_library() -> None:
    heavy = ("numpy", "typing", "dataclasses", "hpcmesos.model")
    load = f"import sys; sys.path.insert(0, {ROOT!r}); import hpcmesos.gang.mpi"
    code = f"{load}; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-IS", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
