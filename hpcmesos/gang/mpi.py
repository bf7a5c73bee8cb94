"""What the script of a job finds on its nodes: host files, the PBS variables, and how each MPI launches ranks.

One environment block makes plain ``mpiexec`` and ``mpirun`` of MPICH, Intel MPI and Open MPI 4 and 5 find the hosts and
start their proxies through our remote shell instead of ssh. It works on the plain ``spec`` that a shepherd receives:

    attempt "12.hpcm#1", job "12.hpcm", number 1, name, queue, server, owner: strings; walltime: seconds or None
    index: the array index or None; environment: the job's own variables (-v, -V, PBS_O_*); gpubind: "rank" or "none"
    members: head first, each {node, address, peer_port, cpus, mem, slots, gpus: [{uuid, index, model, simulated}],
        ports: [numbers]}
    framework: "tensorflow:ps=1,worker=4" or None; with one, each port is a task's, and only tasks are ranks
    me: position in members of the host that this is for; mpi_network: CIDR or None; job_path: directories of PATH
    names_resolve: every member resolves every node's name to its address

Standard library only, and little of it: the shepherd imports this at every start.
"""

from __future__ import annotations

from collections import namedtuple

TYPE_CHECKING = False  # as type checkers know it; importing typing would cost every start 9 ms
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    Spec = Mapping[str, Any]

_EMULATED_VERSION = "TORQUE-6.1.3"
FOREIGN = ("PMI_", "PMIX_", "MPI_LOCAL", "OMPI_COMM_WORLD_", "SLURM_")
"""Prefixes of variables that -V may carry over from another job or rank, and that mislead every launcher."""


JobPaths = namedtuple(
    "JobPaths",
    (
        "directory",  # the job's own
        "bin",  # the fronts of mpiexec and mpirun
        "remote_shell",
        "nodefile",
        "gpufile",
        "hostfile",  # for Hydra
        "ompi_hostfile",
        "tasks",  # what each task of a framework is told
        "tmpdir",
        "secrets",
    ),
    defaults=("",),
)
"""Where a job's things lie on one host; absolute paths, as strings."""


def nodefile(spec: Spec) -> str:
    """PBS_NODEFILE: one line a slot, head first (T:start_exec.c); with a framework one line a task."""
    return _lines(host for member, host in _hosts(spec) for _ in range(seats(spec, member)))


def seats(spec: Spec, member: Mapping[str, Any]) -> int:
    """How many ranks belong on a member: its slots, or the tasks that it has of a framework."""
    return len(member["ports"]) if spec.get("framework") else int(member["slots"])


def hostfile_hydra(spec: Spec) -> str:
    """``address:slots`` a line. Addresses, for Hydra fails where a host's own name resolves to loopback."""
    placed = ((member["address"], seats(spec, member)) for member in spec["members"])
    return _lines(f"{address}:{count}" for address, count in placed if count)


def hostfile_openmpi(spec: Spec) -> str:
    """``address slots=N`` a line; a host without ``slots=`` would get as many as it has cores."""
    placed = ((member["address"], seats(spec, member)) for member in spec["members"])
    return _lines(f"{address} slots={count}" for address, count in placed if count)


def gpufile(spec: Spec) -> str:
    """PBS_GPUFILE as Torque writes it: ``host-gpuN`` a line, N being the index on that host."""
    return _lines(f"{host}-gpu{gpu['index']}" for member, host in _hosts(spec) for gpu in member["gpus"])


def job_environment(spec: Spec, paths: JobPaths) -> dict[str, str]:
    """The variables of the job script on the head.

    The job's own variables, overlaid by the union of what Torque and OpenPBS set, by the launchers' settings and by
    ``host_overlay``. The user's PYTHONUNBUFFERED (default 1) and OMP_NUM_THREADS (default CPUs a rank) win over
    ours. HOME, USER, LOGNAME and SHELL are the shepherd's business.
    """
    own = {key: value for key, value in spec["environment"].items() if not key.startswith(FOREIGN)}
    head = spec["members"][0]
    defaults = {
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(max(1, head["cpus"] // max(1, head["slots"]))),
        "PBS_O_QUEUE": spec["queue"],
        "PBS_O_SERVER": spec["server"],
    }
    path = [paths.bin, *filter(None, own.get("PATH", "").split(":")), *spec["job_path"]]
    return {
        **defaults,
        **own,
        "PATH": ":".join(dict.fromkeys(path)),
        **_pbs(spec, paths),
        **_launchers(spec),
        **_rendezvous(spec),
        **host_overlay(spec, paths),
    }


def host_overlay(spec: Spec, paths: JobPaths) -> dict[str, str]:
    """What differs from host to host: the shepherd sets it for every process that it starts for the attempt."""
    member = spec["members"][spec["me"]]
    uuids = ",".join(gpu["uuid"] for gpu in member["gpus"])
    me = str(spec["me"])
    agent = f"{paths.remote_shell} -n"
    variables = {
        # Empty for a share without GPUs: unset would show all of them.
        "CUDA_VISIBLE_DEVICES": uuids,
        "HOSTNAME": member["node"],
        "TMPDIR": paths.tmpdir,
        "PBS_NODENUM": me,
        "PBS_VNODENUM": me,
        "PBS_NODEFILE": paths.nodefile,
        "PBS_MOMPORT": str(member["peer_port"]),
        "HPCMESOS_ATTEMPT": spec["attempt"],
        "HPCMESOS_NODE": member["node"],
        "HPCMESOS_GPUS": uuids,
        "HYDRA_HOST_FILE": paths.hostfile,
        "HYDRA_LAUNCHER_EXEC": paths.remote_shell,
        "I_MPI_HYDRA_BOOTSTRAP_EXEC": paths.remote_shell,
        "PRTE_MCA_plm_ssh_agent": agent,
        "PRTE_MCA_prte_default_hostfile": paths.ompi_hostfile,
        "OMPI_MCA_plm_rsh_agent": agent,
        "OMPI_MCA_orte_default_hostfile": paths.ompi_hostfile,
        **mps_directories(spec, paths.tmpdir),
        **({"HPCMESOS_TASKS": paths.tasks} if spec.get("framework") else {}),
        **({"HPCMESOS_SECRETS": paths.secrets} if spec.get("secrets") else {}),
    }
    if any(other["gpus"] for other in spec["members"]):  # as Torque: no file that says nothing
        variables["PBS_GPUFILE"] = paths.gpufile
    return variables


def mps_directories(spec: Spec, tmpdir: str) -> dict[str, str]:
    """Where NVIDIA's Multi-Process Service of this node's part is found (``-W mps=true``); nothing: there is none."""
    if not (spec.get("mps") and spec["members"][spec["me"]]["gpus"]):
        return {}
    return {
        "CUDA_MPS_PIPE_DIRECTORY": f"{tmpdir}/.mps",
        "CUDA_MPS_LOG_DIRECTORY": f"{tmpdir}/.mps-log",
    }


def rank_gpus(gpus: Sequence[str], local_rank: int, local_size: int) -> tuple[list[str], bool]:
    """The GPUs of rank ``local_rank`` of the ``local_size`` ranks (0 <= local_rank < local_size) on one node.

    Returns:
        Their UUIDs, a contiguous run of ``gpus``; and True when the rank shares its one GPU with other ranks, which
        deserves a warning.
    """
    first, end = local_rank * len(gpus) // local_size, (local_rank + 1) * len(gpus) // local_size
    if local_size <= len(gpus) or not gpus:
        return list(gpus[first:end]), False
    return [gpus[first]], True


def _hosts(spec: Spec) -> list[tuple[Mapping[str, Any], str]]:
    """Each member with what users shall call its host: a name that works on all members, else the address."""
    key = "node" if spec["names_resolve"] else "address"
    return [(member, member[key]) for member in spec["members"]]


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _pbs(spec: Spec, paths: JobPaths) -> dict[str, str]:
    """T:start_exec.c:1640-1835 and O:start_exec.c:3490-3570, but for what ``host_overlay`` has."""
    members = spec["members"]
    head, nodes = members[0], str(len(members))
    variables = {
        "PBS_ENVIRONMENT": "PBS_INTERACTIVE" if spec.get("interactive") else "PBS_BATCH",
        "PBS_JOBID": spec["job"],
        "PBS_JOBNAME": spec["name"],
        "PBS_QUEUE": spec["queue"],
        "PBS_SERVER": spec["server"],
        "PBS_JOBDIR": paths.directory,
        "PBS_NUM_NODES": nodes,
        "PBS_NNODES": nodes,
        "PBS_NUM_PPN": str(head["slots"]),
        "PBS_NP": str(sum(seats(spec, member) for member in members)),
        "PBS_TASKNUM": "1",
        # Kept for scripts that look for them; our remote shell knows its caller without a secret, and there is no MIC.
        "PBS_JOBCOOKIE": "0" * 32,
        "PBS_MICFILE": "/dev/null",
        "PBS_VERSION": _EMULATED_VERSION,
        "NCPUS": str(head["cpus"]),
        "HPCMESOS_GPUBIND": spec["gpubind"],
    }
    if spec.get("account"):
        variables["PBS_ACCOUNT"] = spec["account"]
    if spec["walltime"] is not None:
        variables["PBS_WALLTIME"] = str(spec["walltime"])
    if spec["index"] is not None:
        index = str(spec["index"])
        parent = spec["job"].replace(f"[{index}]", "[]")
        variables |= {"PBS_ARRAYID": index, "PBS_ARRAY_INDEX": index, "PBS_ARRAY_ID": parent}
    return variables


def _rendezvous(spec: Spec) -> dict[str, str]:
    """Where the ranks of a job without a framework may meet: torch's ``env://`` asks for no more under mpiexec."""
    head = spec["members"][0]
    if spec.get("framework") or not head.get("ports"):
        return {}
    return {"MASTER_ADDR": head["address"], "MASTER_PORT": str(head["ports"][0])}


def _launchers(spec: Spec) -> dict[str, str]:
    """MPICH's Hydra, Intel MPI, Open MPI 5 (PRRTE) and 4 (ORTE): start by our remote shell, bind nothing."""
    variables = {
        "HYDRA_LAUNCHER": "rsh",
        "HYDRA_LAUNCHER_EXTRA_ARGS": "-n",
        # Hydra would fork by itself for a host that it takes for local: agents on one machine all look so.
        "HYDRA_LAUNCHER_AUTOFORK": "0",
        # Else the head's whole environment, CUDA_VISIBLE_DEVICES included, would land on every host.
        "HYDRA_ENV": "none",
        "I_MPI_HYDRA_BOOTSTRAP": "rsh",
        "I_MPI_HYDRA_BOOTSTRAP_AUTOFORK": "0",
        "I_MPI_HYDRA_RMK": "pbs",
        "I_MPI_PIN": "0",
        "PRTE_MCA_plm": "ssh",
        "PRTE_MCA_plm_ssh_no_tree_spawn": "1",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
        "PRTE_MCA_rmaps_default_inherit": "1",  # else what MPI_Comm_spawn starts is bound all the same
        "OMPI_MCA_plm": "rsh",
        # Jobs that share a node would all be bound to its first cores.
        "OMPI_MCA_hwloc_base_binding_policy": "none",
    }
    if spec["mpi_network"]:
        # A bridge with the same address on every host (docker0) makes Open MPI hang.
        variables["OMPI_MCA_btl_tcp_if_include"] = spec["mpi_network"]
    if spec["owner"] == "root":
        variables |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        variables |= {"PRTE_ALLOW_RUN_AS_ROOT": "1", "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if any(member["slots"] > member["cpus"] for member in spec["members"]):
        variables["OMPI_MCA_mpi_yield_when_idle"] = "1"
    return variables
