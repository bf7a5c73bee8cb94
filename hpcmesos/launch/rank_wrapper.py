"""``rank_wrapper STEP -- PROGRAM ARGS...``: stands between an MPI launcher and one rank.

Gives the rank its GPUs, tells the shepherd of its start and of its true end, and turns a bad exit into a death by
signal, which is all that launchers react to on every host.
"""

from __future__ import annotations

import errno
import os
import select
import sys

from hpcmesos.launch import programs, protocol, quick, tasks
from hpcmesos.launch.pmi_tap import Tap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_PATIENCE = 3.0
"""Seconds that the shepherd may take to note an end; above those for which it waits for other ranks."""
_LOST_PEER = 14
"""MPI_ERR_UNKNOWN: with it Open MPI ends a rank whose connection to another one has closed."""
_OF_THE_GROUP = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
"""What launchers send to the rank's whole process group, Hydra, PRRTE and ORTE alike: passed on, it would come twice,
and a rank that has heard it and is about to end would die of the second."""
_OF_THE_HOST = (
    *("HPCMESOS_SOCKET", "HPCMESOS_GPUS", "HPCMESOS_NODE", "HPCMESOS_SHEPHERD"),
    *("HYDRA_HOST_FILE", "HYDRA_LAUNCHER_EXEC", "I_MPI_HYDRA_BOOTSTRAP_EXEC"),
    *("PRTE_MCA_plm_ssh_agent", "PRTE_MCA_prte_default_hostfile"),
    *("OMPI_MCA_plm_rsh_agent", "OMPI_MCA_orte_default_hostfile"),
)
_RANK = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID")
_SIZE = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS")
_LOCAL_RANK = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
_LOCAL_SIZE = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")


def main(argv: list[str]) -> NoReturn:
    """Runs the rank, and ends as it did: see the module."""
    step, command = argv[0], argv[argv.index("--") + 1 :]
    _take_back()
    rank, size = _number(_RANK, 0), _number(_SIZE, 1)
    local_rank, local_size = _number(_LOCAL_RANK, 0), _number(_LOCAL_SIZE, 1)
    gpus = choose_gpus(local_rank, local_size)
    os.environ |= {
        "HPCMESOS_RANK": str(rank),
        "HPCMESOS_STEP": step,
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_size),
        "PYTHONPATH": programs.python_path(os.environ.get("PYTHONPATH", "")),
    }
    if task := tasks.of_rank(local_rank, size):
        command, gpus = tasks.become(task, command), task["gpus"]
    about = {
        "step": step,
        "rank": rank,
        "size": size,
        "local_rank": local_rank,
        "pid": os.getpid(),
        "gpus": gpus,
    }
    shepherd = _tell_start(about)
    _give_input(rank)
    end = {"op": "rank_end", "step": step, "rank": rank}
    tap = _tap(shepherd, end) if shepherd else None
    status, asked = _run(command, tap)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    number = os.WTERMSIG(status) if code is None else None
    if shepherd:
        end |= {"code": code, "signal": number, "asked": asked}
        if code == _LOST_PEER and "OMPI_COMM_WORLD_RANK" in os.environ:
            end["dragged"] = True
        pmi = os.environ.get("PMI_FD", "") if code == 0 else ""
        if _tell_end(shepherd, end | {"company": bool(pmi)}) and pmi.isdigit():
            _say_goodbye(int(pmi))
    if code != 0:
        os.kill(os.getpid(), quick.signal.SIGKILL)
    os._exit(0)  # to tear the interpreter down costs 2 ms, and has no use


def choose_gpus(local_rank: int, local_size: int) -> list[str]:
    """The UUIDs for this rank, put into CUDA_VISIBLE_DEVICES too; with HPCMESOS_GPUBIND=none all of the node's."""
    share = [uuid for uuid in os.environ.get("HPCMESOS_GPUS", "").split(",") if uuid]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(share)
    if os.environ.get("HPCMESOS_GPUBIND") == "none" or not share or not 0 <= local_rank < local_size:
        return share
    from hpcmesos.gang import mpi  # not needed where there are no GPUs

    gpus, shared = mpi.rank_gpus(share, local_rank, local_size)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if shared and local_rank == 0:
        node = os.environ.get("HPCMESOS_NODE", "this node")
        sys.stderr.write(f"hpcmesos: {local_size} ranks share {len(share)} GPUs on {node}\n")
        sys.stderr.flush()
    return gpus


def _take_back() -> None:
    """Under Hydra: what its mpiexec needs on its own host stands in every rank's environment; the proxy has ours."""
    try:
        with open(f"/proc/{os.getppid()}/comm", "rb", buffering=0) as file:
            if not file.read(64).startswith(b"hydra_"):
                return
        with open(f"/proc/{os.getppid()}/environ", "rb", buffering=0) as file:
            entries = file.readall().split(b"\0")
    except OSError:
        return
    for entry in entries:
        name, _, value = os.fsdecode(entry).partition("=")
        if name in _OF_THE_HOST:
            os.environ[name] = value


def _give_input(rank: int) -> None:
    """Of `hpcmesos mpirun`: a file on the host of rank 0."""
    path = os.environ.pop("HPCMESOS_STDIN", "")
    if rank or not path:
        return
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        sys.stderr.write(f"hpcmesos: rank 0 has no input: {path}: {error.strerror}\n")
        sys.stderr.flush()
        return
    os.dup2(fd, 0)
    os.close(fd)


def _number(names: tuple[str, ...], default: int) -> int:
    for name in names:
        if (value := os.environ.get(name, "")).isdigit():
            return int(value)
    return default


def _tap(shepherd: Any, about: dict[str, Any]) -> Tap | None:
    """Of the line from this rank to Hydra; None where there is none, or none that can be listened to."""
    pmi = os.environ.get("PMI_FD", "")
    if not pmi.isdigit():
        return None

    def aborted(code: int) -> None:
        _tell_end(shepherd, {**about, "code": code & 0xFF, "signal": None})

    try:
        return Tap(int(pmi), aborted)
    except (OSError, AttributeError):
        return None


def _run(command: list[str], tap: Tap | None) -> tuple[int, bool]:
    """Runs the program as a child that inherits every descriptor (PMI speaks over one).

    Answers its wait status, and whether it was told to end before: launchers do so when another rank has failed.
    """
    heard: list[int] = []

    def heed(number: int, _: object) -> None:
        heard.append(number)

    for name in _OF_THE_GROUP:
        number = getattr(quick.signal, name)
        if quick.signal.getsignal(number) != quick.signal.SIG_IGN:  # as nohup has it, for the rank too
            quick.signal.signal(number, heed)
    try:
        pid = _spawn(command, tap)
    except OSError as error:
        sys.stderr.write(f"hpcmesos: cannot run '{command[0]}': {error.strerror}\n")
        sys.stderr.flush()
        return (127 if error.errno in (errno.ENOENT, errno.ENOTDIR) else 126) << 8, False
    for number in tuple(heard):  # the rank was not there yet to hear it
        os.kill(pid, number)
    if tap:
        tap.serve(pid)
    status = os.waitpid(pid, 0)[1]
    return status, quick.signal.SIGTERM in heard


def _spawn(command: list[str], tap: Tap | None) -> int:
    """The child's pid. Nothing of this process is copied for it. Raises OSError."""
    program, environ = command[0], dict(os.environ)
    actions: list[tuple[int, int]] = []
    if tap:
        environ["PMI_FD"] = str(tap.theirs)
        actions = [(os.POSIX_SPAWN_CLOSE, tap.hydra)]
    # The interpreter ignores it; programs expect to die of it.
    fresh = (quick.signal.SIGPIPE,)
    try:
        return os.posix_spawnp(program, command, environ, file_actions=actions, setsigdef=fresh)
    except FileNotFoundError:
        if "/" in program:
            raise
        # Launchers look here too.
        found = os.path.join(".", program)
        return os.posix_spawn(found, command, environ, file_actions=actions, setsigdef=fresh)


def _tell_start(about: dict[str, Any]) -> Any:
    """The connection that stays open for as long as the rank lives; None without a shepherd."""
    path = os.environ.get("HPCMESOS_SOCKET")
    if not path:
        return None
    try:
        connection = protocol.connect(path)
        connection.sendall(protocol.message({"op": "rank", **about}))
        return connection
    except OSError as error:
        sys.stderr.write(f"hpcmesos: the shepherd cannot be told of a rank: {error.strerror}\n")
        return None


def _tell_end(shepherd: Any, message: dict[str, Any]) -> bool:
    """Waits until it is noted: who has ended cannot be asked who it was. True: no rank of the step is left here."""
    try:
        shepherd.sendall(protocol.message(message))
        if _readable(shepherd.fileno()):
            return bool((protocol.answer(shepherd, "noted") or {}).get("last"))
    except (OSError, protocol.FrameError) as error:
        sys.stderr.write(f"hpcmesos: the shepherd cannot be told of an end: {error}\n")
    return False


def _say_goodbye(pmi: int) -> None:
    """To Hydra, for a program that has not: one that left by _exit, even behind MPI_Finalize.

    It would take our end for the death of an MPI program and kill the launch, now that all have left well. And it dies
    itself if it cannot answer.
    """
    try:
        os.write(pmi, b"cmd=finalize\n")
        _readable(pmi)
    except OSError:  # said, and heard
        pass


def _readable(fd: int) -> bool:
    """Whether it is within `_PATIENCE`. Descriptors beyond 1023, which select(2) cannot take, are common here."""
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    return bool(waiting.poll(_PATIENCE * 1000))
