"""The ways in which ranks and launchers die, under `mpiexec` and under `hpcmesos run`: true codes, soon, nothing left.

Each program is a plain ``python`` with MPI over two nodes; all ranks but one wait for that one.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpcmesos.launch import enclosure

from . import shepherd_kit as kit

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or not (Path(sys.executable).parent / "mpiexec").exists(),
    reason="needs the mpich and mpi4py wheels",
)
Start = Callable[..., kit.Run]
LAUNCHERS = ["mpiexec -n 6", "hpcmesos run -n 6"]
PROGRAM = """
import os, sys
from mpi4py import MPI
world = MPI.COMM_WORLD
world.barrier()
open(f"up.{world.rank}", "w").write(str(os.getpid()))
if world.rank == 4: exec(sys.argv[1])
if world.rank == 1 and sys.argv[2:]: exec(sys.argv[2])
world.recv(source=4)
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[kit.Node]]:
    root = tmp_path_factory.mktemp("state")
    with kit.cluster(root, ["node1", "node2"], cgroups=False) as nodes:
        kit.give_gpus(nodes, 3)
        yield nodes


@pytest.fixture
def gang(nodes: list[kit.Node], tmp_path: Path) -> Iterator[Start]:
    (tmp_path / "program.py").write_text(PROGRAM)
    with kit.runs(nodes, tmp_path) as start:
        yield start


def left_of(attempt: kit.Run) -> list[int]:
    """Processes of ranks and launchers that are still there; other shepherds may have an attempt of that name."""
    mark = f"HPCMESOS_ATTEMPT={attempt.attempt}".encode()
    places = {f"HPCMESOS_SOCKET={node.sockets}/ranks.sock".encode() for node in attempt.nodes}
    return [
        pid
        for pid in enclosure.process_table()
        if mark in (words := kit.environment_of(pid))
        and places & set(words)
        and any(word.startswith(b"HPCMESOS_STEP=") for word in words)
    ]


def ended_with(attempt: kit.Run) -> int:
    """The launcher's code, when it has ended and nothing of its step is left; then the script ends too.

    Soon: from when the rank was there that dies.
    """
    file = Path(attempt.spec["workdir"], "code")
    came_up(attempt)
    kit.wait_until(file.exists, "the launcher's end", timeout=10)
    kit.wait_until(lambda: not left_of(attempt), "nothing left", timeout=10)
    attempt.end()
    return int(file.read_text())


def came_up(attempt: kit.Run) -> None:
    """The rank that dies has begun, which takes a busy machine long; or the launcher has failed."""
    here = Path(attempt.spec["workdir"])
    kit.wait_until(lambda: (here / "up.4").exists() or (here / "code").exists(), "rank 4", timeout=60)


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("os._exit(3)", 3, "exited with code 3"),
        ("raise ValueError('wrong')", 1, "ValueError: wrong"),
        ("sys.exit(5)", 5, ""),
        ("os.kill(os.getpid(), 9)", 137, "was killed by signal 9"),
        ("os.kill(os.getpid(), 11)", 139, "was killed by signal 11"),
        ("world.Abort(7)", 7, ""),
    ],
)
def test_a_rank_dies(gang: Start, launcher: str, fault: str, code: int, said: str) -> None:
    """The script goes on: it decides what its own end is."""
    attempt = gang(
        f'{launcher} {sys.executable} program.py "{fault}"; echo $? > code.new; mv code.new code; exec sleep 600\n'
    )
    assert ended_with(attempt) == code, Path(attempt.spec["stderr"]).read_text()
    errors = attempt.tail("stderr")
    assert said in errors
    assert "rank 4 " in errors, errors


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_first_of_two(gang: Start, launcher: str) -> None:
    """Rank 1 exits with 4 when it is ended because of rank 4."""
    late = "import signal; signal.signal(15, lambda *_: os._exit(4)); [signal.pause() for _ in iter(int, 1)]"
    attempt = gang(f'{launcher} {sys.executable} program.py "os._exit(3)" "{late}"; exit $?\n')
    came_up(attempt)
    assert attempt.ended(timeout=10)["code"] == 3, attempt.tail("stderr")


LEAVING = """
import os, sys, time
from mpi4py import MPI
rank = MPI.COMM_WORLD.rank
MPI.COMM_WORLD.barrier()
MPI.Finalize()
if rank == 2: time.sleep(float(sys.argv[1]))
os._exit(6 if rank == 2 else 0)
"""


@pytest.mark.parametrize(("seconds", "codes"), [("0.3", {6}), ("600", {9, 255})])
def test_ranks_that_leave_by_exit_behind_finalize(
    gang: Start, tmp_path: Path, seconds: str, codes: set[int]
) -> None:
    """Hydra alone takes the first such end for the death of an MPI program, kills all of its host and may say 0."""
    (tmp_path / "leaving.py").write_text(LEAVING)
    attempt = gang(f"mpiexec -n 6 {sys.executable} leaving.py {seconds}; exit $?\n")
    ended = attempt.ended(timeout=20)
    assert ended["code"] in codes, attempt.tail("stderr")
    assert [step["code"] for step in ended["steps"]] == [ended["code"]]
    if ended["code"] == 6:
        assert "rank 2 (node1" in attempt.tail("stderr") and "exited with code 6" in attempt.tail("stderr")


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize(("name", "codes"), [("TERM", {143, 255}), ("KILL", {137})])
def test_the_launcher_is_killed(gang: Start, launcher: str, name: str, codes: set[int]) -> None:
    script = f"""
{launcher} {sys.executable} program.py pass & launcher=$!
until test -e up.0 -a -e up.1 -a -e up.2 -a -e up.3 -a -e up.4 -a -e up.5; do sleep 0.01; done
kill -{name} $launcher; wait $launcher; echo $? > code.new; mv code.new code; exec sleep 600
"""
    program = PROGRAM.replace("source=4", "source=world.rank")
    attempt = gang(script, environment={"PYTHONUNBUFFERED": "1"})
    Path(attempt.spec["workdir"], "program.py").write_text(program)
    assert ended_with(attempt) in codes


@pytest.mark.parametrize("victim", ["hydra_pmi_proxy", "remote_shell"])
def test_a_helper_of_hydra_is_killed(gang: Start, victim: str) -> None:
    """Hydra itself would wait for ever."""
    attempt = gang(
        f"mpiexec -n 6 {sys.executable} program.py pass; echo $? > code.new; mv code.new code; exec sleep 600\n"
    )
    here = Path(attempt.spec["workdir"])
    Path(here, "program.py").write_text(PROGRAM.replace("source=4", "source=world.rank"))
    kit.wait_until(lambda: len(list(here.glob("up.*"))) == 6, "ranks")
    kit.kill(helper(attempt, victim))
    assert ended_with(attempt) != 0


def helper(attempt: kit.Run, name: str) -> int:
    """The process of that name that serves the second node."""
    for pid in left_of(attempt):
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        node = next((w for w in kit.environment_of(pid) if w.startswith(b"HPCMESOS_NODE=")), b"")
        serves = node.endswith(b"node2") if name == "hydra_pmi_proxy" else "127.0.9.2" in words
        if serves and any(os.path.basename(word) == name for word in words):
            return pid
    raise AssertionError(f"no {name}")
