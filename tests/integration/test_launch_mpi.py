"""Real MPICH over two shepherds: placement, a GPU for each rank, true exit codes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from . import shepherd_kit as kit

REAL = Path(sys.executable).parent / "mpiexec"
pytestmark = pytest.mark.skipif(
    not REAL.exists() or importlib.util.find_spec("mpi4py") is None,
    reason="needs the mpich and mpi4py wheels",
)


nodes = kit.both_ways(["node1", "node2"], gpus=4)
gang = kit.gang


def test_every_rank_has_a_gpu_of_its_own(gang, tmp_path: Path) -> None:
    program = tmp_path / "ring.py"
    program.write_text(
        "import os\nfrom mpi4py import MPI\nw = MPI.COMM_WORLD\n"
        "token = w.allreduce(w.rank)\n"
        "names = 'HPCMESOS_NODE CUDA_VISIBLE_DEVICES RANK WORLD_SIZE LOCAL_RANK FOO'.split()\n"
        "lines = w.gather((w.rank, *(os.environ[name] for name in names), token))\n"
        "for line in lines or (): print(*line)\n"
    )
    attempt = gang(f"export FOO=bar\nmpiexec -n 8 {sys.executable} {program}\n")
    ended = attempt.ended()
    assert ended["code"] == 0, attempt.tail("stderr")
    expected = [
        f"{rank} node{1 + rank // 4} SIM-node{1 + rank // 4}-{rank % 4} {rank} 8 {rank % 4} bar 28"
        for rank in range(8)
    ]
    assert attempt.tail("stdout").splitlines() == expected
    table = sorted((r["rank"], r["node"], r["gpu"], r["code"], r["step"]) for r in ended["ranks"])
    assert table == [
        (rank, f"node{1 + rank // 4}", f"SIM-node{1 + rank // 4}-{rank % 4}", 0, "0.1") for rank in range(8)
    ]
    assert [(s["step"], s["command"][:3], s["code"]) for s in ended["steps"]] == [
        ("0.1", ["mpiexec", "-n", "8"], 0)
    ]


def test_the_code_of_the_rank_that_failed_first(gang, tmp_path: Path) -> None:
    """Rank 6, on the other node, leaves without a word while all others wait for it: Hydra alone would hang."""
    program = tmp_path / "fails.py"
    program.write_text(
        "import os, sys\nfrom mpi4py import MPI\nw = MPI.COMM_WORLD\n"
        "if w.rank == 6:\n    exec(sys.argv[1])\nw.barrier()\n"
    )
    python = f"{sys.executable} {program}"
    script = f"""
mpiexec {python} 'os._exit(3)'; echo code $?
mpirun -genv X y -n 4 {python} 'pass' : -n 4 {python} 'os._exit(5)'; echo code $?
mpiexec {python} 'os.kill(os.getpid(), 11)'; echo code $?
mpiexec {python} 'w.Abort(7)'; echo code $?
mpiexec -n 2 nosuch; echo code $?
"""
    attempt = gang(script)
    ended = attempt.ended(timeout=30)
    codes = [line.split()[1] for line in attempt.tail("stdout").splitlines() if line.startswith("code ")]
    assert codes == ["3", "5", "139", "7", "127"], attempt.tail("stderr")
    assert "rank 6 (node2, SIM-node2-2) exited with code 3" in attempt.tail("stderr")
    assert "cannot run 'nosuch': No such file or directory" in attempt.tail("stderr")
    assert [s["code"] is not None for s in ended["steps"]] == [True] * 5


def test_gpubind_none_and_programs_without_mpi(gang) -> None:
    attempt = gang(
        "mpiexec -n 2 sh -c 'echo $CUDA_VISIBLE_DEVICES'\npbsdsh -u sh -c 'echo $HPCMESOS_NODE'",
        gpubind="none",
    )
    assert attempt.ended()["code"] == 0, attempt.tail("stderr")
    lines = attempt.tail("stdout").splitlines()
    assert lines[:2] == ["SIM-node1-0,SIM-node1-1,SIM-node1-2,SIM-node1-3"] * 2
    assert sorted(lines[2:]) == ["node1", "node2"]


def test_pbsdsh_knows_a_host_by_each_of_its_names(gang) -> None:
    """Here PBS_NODEFILE has addresses, for names do not resolve."""
    ask = "sh -c 'echo $HPCMESOS_NODE'"
    attempt = gang(
        "two=$(tail -n 1 $PBS_NODEFILE)\n"
        + "".join(f"pbsdsh -h {host} {ask}\n" for host in ("node2", "$two", "node1", "localhost"))
        + "pbsdsh -h node9 true\necho $?\n"
    )
    assert attempt.ended()["code"] == 0
    assert attempt.tail("stdout").split() == ["node2", "node2", "node1", "node1", "255"]
    assert attempt.tail("stderr") == "pbsdsh: node9 is no host of this job\n"


def test_a_killed_proxy_ends_the_launch(gang, tmp_path: Path) -> None:
    """Hydra itself would wait for ever."""
    script = """
mpiexec sh -c 'echo $PPID > new.$RANK; mv new.$RANK wrapper.$RANK; sleep 600' & launcher=$!
until test -e wrapper.7; do sleep 0.01; done
read -r _ _ _ proxy _ < /proc/$(cat wrapper.7)/stat
kill -9 $proxy
wait $launcher
test $? -ne 0 && exit 44
"""
    attempt = gang(script)
    assert attempt.ended(timeout=10)["code"] == 44, attempt.tail("stderr")
    assert "killed by signal 9" in attempt.tail("stderr")


def test_a_launcher_by_absolute_path_is_ended_when_its_proxies_end_alone(tmp_path: Path) -> None:
    """Rank 1, on the other node, leaves without a word: Hydra waits for ever, and the front was not asked."""
    script = f"""
{REAL} -n 2 sh -c '[ $PMI_RANK = 1 ] && exit 3; exec sleep 600'; echo code $?
HPCMESOS_STRAGGLERS=wait {REAL} -n 2 sh -c '[ $PMI_RANK = 1 ] && exit 0; exec sleep 1'; echo code $?
"""
    with kit.cluster(tmp_path, ["node1", "node2"], cgroups=False, proxy_patience=0.3) as nodes:
        attempt = kit.Run(nodes, kit.spec(nodes, tmp_path, script))
        assert attempt.ended(timeout=30)["code"] == 0
        lines = attempt.tail("stdout").splitlines()
        assert [line for line in lines if line.startswith("code")] == ["code 255", "code 0"]
        assert "the ranks on 127.0.9.2 ended 0.3 s ago, those on 127.0.9.1 run on" in attempt.tail("stderr")


@pytest.mark.parametrize("launcher", ["mpiexec", "hpcmesos run"])
def test_no_shared_memory_is_left(gang, tmp_path: Path, launcher: str) -> None:
    (tmp_path / "waits.py").write_text(
        "from mpi4py import MPI\nw = MPI.COMM_WORLD\nw.barrier()\nmaps = open('/proc/self/maps').read()\n"
        "open(f'new.{w.rank}', 'w').write(maps)\nimport os; os.rename(f'new.{w.rank}', f'up.{w.rank}')\nw.recv()\n"
    )
    attempt = gang(f"{launcher} {sys.executable} waits.py\n")
    ranks = kit.wait_until(lambda: len(found := list(tmp_path.glob("up.*"))) == 8 and found, "ranks")
    lines = [line for rank in ranks for line in rank.read_text().splitlines() if "mpich_shm_" in line]
    memory = {Path(line.split()[5]) for line in lines}
    assert memory
    attempt.end(kill_delay=0.0)
    for index in (0, 1):
        attempt.ended(index)
    assert [path for path in memory if path.exists()] == []


def test_two_launches_that_end_together_leave_no_files(gang, tmp_path: Path) -> None:
    """What a killed proxy leaves may be a living one's; of two that die together, each has the other's to fear."""

    def files() -> set[Path]:
        return set(Path("/tmp").glob("hydra_hwloc_xmlfile_*"))  # where Hydra has them

    (tmp_path / "waits.py").write_text(
        "import sys\nfrom mpi4py import MPI\nw = MPI.COMM_WORLD\nw.barrier()\n"
        "open(f'up.{sys.argv[1]}.{w.rank}', 'w').close()\nw.recv()\n"
    )
    before = files()
    pair = [gang(f"mpiexec -n 6 {sys.executable} waits.py {one}\n") for one in range(2)]
    kit.wait_until(lambda: len(list(tmp_path.glob("up.*"))) == 12, "ranks", 40)
    made = files() - before
    assert made
    for attempt in pair:
        attempt.end(kill_delay=0.0)
    for attempt in pair:
        for index in (0, 1):
            attempt.ended(index)
    kit.wait_until(lambda: not made & files(), "its files are removed")


def test_spawned_ranks_see_their_own_host(gang, tmp_path: Path) -> None:
    """MPI_Comm_spawn of MPICH fails under HYDRA_ENV=none, which keeps the head's variables from the other hosts."""
    (tmp_path / "spawns.py").write_text(
        "import os, sys\nfrom mpi4py import MPI\nparent = MPI.Comm.Get_parent()\n"
        "if parent == MPI.COMM_NULL:\n"
        "    root = MPI.ROOT if MPI.COMM_WORLD.rank == 0 else MPI.PROC_NULL\n"
        "    parent = MPI.COMM_WORLD.Spawn(sys.executable, [__file__], maxprocs=6)\n"
        "    for line in parent.gather(None, root=root) or (): print(line)\n"
        "else:\n"
        "    names = 'HPCMESOS_NODE CUDA_VISIBLE_DEVICES TMPDIR FOO'.split()\n"
        "    parent.gather(' '.join(os.environ[name] for name in names), root=0)\n"
        "parent.Barrier()\n"  # MPICH returns from Spawn rank by rank: the second may connect when the first is done
        "parent.Disconnect()\n"
    )
    attempt = gang(f"export FOO=bar\nmpiexec -n 2 {sys.executable} spawns.py; echo code $?\n")
    assert attempt.ended()["code"] == 0, attempt.tail("stderr")
    *lines, code = attempt.tail("stdout").splitlines()
    assert (len(lines), code) == (6, "code 0"), attempt.tail("stderr")
    for line in lines:
        node, gpus, tmpdir, foo = line.split()
        assert gpus == ",".join(f"SIM-{node}-{i}" for i in range(4))
        assert f"/{node}/attempts/" in tmpdir
        assert foo == "bar"
    assert {line.split()[0] for line in lines} == {"node1", "node2"}
