"""`hpcmesos run` over four shepherds: placement, PMI-1, the end of a step, and what its users see."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from . import shepherd_kit as kit

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or not (Path(sys.executable).parent / "mpiexec").exists(),
    reason="needs the mpich and mpi4py wheels",
)
NAMES = ["node1", "node2", "node3", "node4"]
Start = Callable[..., kit.Run]


nodes = kit.both_ways(NAMES, gpus=4)
gang = kit.gang


def test_sixteen_ranks_with_a_gpu_each(gang: Start, tmp_path: Path) -> None:
    program = tmp_path / "ring.py"
    program.write_text(
        "import os\nfrom mpi4py import MPI\nw = MPI.COMM_WORLD\n"
        "token = w.allreduce(w.rank)\n"
        "names = 'HPCMESOS_NODE CUDA_VISIBLE_DEVICES RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE FOO'.split()\n"
        "lines = w.gather((w.rank, *(os.environ[name] for name in names), token))\n"
        "for line in lines or (): print(*line)\n"
    )
    attempt = gang(f"export FOO=bar\nhpcmesos run {sys.executable} {program}\n")
    ended = attempt.ended()
    assert ended["code"] == 0, attempt.tail("stderr")
    places = [(rank, NAMES[rank // 4], f"SIM-{NAMES[rank // 4]}-{rank % 4}") for rank in range(16)]
    assert attempt.tail("stdout").splitlines() == [
        f"{rank} {node} {gpu} {rank} 16 {rank % 4} 4 bar 120" for rank, node, gpu in places
    ]
    table = sorted((r["rank"], r["node"], r["gpu"], r["code"], r["step"]) for r in ended["ranks"])
    assert table == [(*where, 0, "0.1") for where in places]
    assert [(s["step"], s["command"][:2], s["code"]) for s in ended["steps"]] == [
        ("0.1", ["hpcmesos", "run"], 0)
    ]


def test_programs_without_mpi(gang: Start) -> None:
    script = """
hpcmesos run -n 5 --label sh -c 'echo $RANK/$WORLD_SIZE; echo trouble >&2' 2> errors
hpcmesos run -n 2 --gpus-per-rank 3 sh -c 'echo $HPCMESOS_NODE $CUDA_VISIBLE_DEVICES $MASTER_ADDR'
printf 'in %s\\n' put | hpcmesos run -n 3 --label sh -c 'cat; printf "no newline"' | sort
hpcmesos run -n 17 true; echo refused $?
hpcmesos run -n 17 --oversubscribe sh -c 'echo over $HPCMESOS_NODE' | sort | uniq -c
hpcmesos run -n 9 --gpus-per-rank 2 true; echo refused $?
hpcmesos run -n 2 nosuch; echo missing $?
hpcmesos run --what true; echo usage $?
hpcmesos run -n 1 -- sh -c 'exit 5'; echo exit $?
"""
    attempt = gang(script)
    assert attempt.ended()["code"] == 0, attempt.tail("stderr")
    lines = attempt.tail("stdout").splitlines()
    assert sorted(lines[:5]) == [f"[rank {r} node{1 + r // 4}] {r}/5" for r in range(5)]
    assert sorted(lines[5:7]) == [
        f"node{n} SIM-node{n}-0,SIM-node{n}-1,SIM-node{n}-2 127.0.9.1" for n in (1, 2)
    ]
    assert lines[7:11] == [
        "[rank 0 node1] in put",
        *(f"[rank {r} node1] no newline" for r in range(3)),
    ]
    words = [" ".join(line.split()) for line in lines[11:]]
    assert words == [
        "refused 2", "5 over node1", "4 over node2", "4 over node3", "4 over node4",
        "refused 2", "missing 127", "usage 2", "exit 5",
    ]  # fmt: skip
    errors = (Path(attempt.spec["workdir"]) / "errors").read_text().splitlines()
    assert sorted(errors) == [f"[rank {r} node{1 + r // 4}] trouble" for r in range(5)]
    said = attempt.tail("stderr")
    assert "17 ranks, but the job has 16 slots; --oversubscribe allows that" in said
    assert "9 ranks of 2 GPUs do not fit: the job has room for 8" in said
    assert "nosuch: No such file or directory" in said


def test_input_for_rank_0_and_output_of_any_size(gang: Start, tmp_path: Path) -> None:
    script = """
head -c 5000000 /dev/zero | tr '\\0' x > big
hpcmesos run -n 2 sh -c 'if [ $RANK = 0 ]; then cat; fi' < big > copy; cmp big copy && echo same
yes | hpcmesos run -n 1 head -c 10 | wc -c
hpcmesos run -n 4 sh -c 'head -c 1000000 big' | wc -c
"""
    attempt = gang(script)
    assert attempt.ended()["code"] == 0, attempt.tail("stderr")
    assert attempt.tail("stdout").split() == ["same", "10", "4000000"]


def test_what_is_not_run_goes_to_the_real_one(gang: Start) -> None:
    attempt = gang("hpcmesos --version")
    assert attempt.ended()["code"] == 0, attempt.tail("stderr")
    assert "hpcmesos" in attempt.tail("stdout")


def test_signals_reach_every_rank(gang: Start) -> None:
    program = 'trap "echo got; kill $!; exit 0" USR1; sleep 600 & touch up.$RANK; wait'
    script = f"""
hpcmesos run -n 6 sh -c '{program}' & step=$!
until test -e up.0 -a -e up.1 -a -e up.2 -a -e up.3 -a -e up.4 -a -e up.5; do sleep 0.01; done
kill -USR1 $step; wait $step; echo code $?
"""
    attempt = gang(script)
    assert attempt.ended(timeout=30)["code"] == 0, attempt.tail("stderr")
    assert attempt.tail("stdout").splitlines() == ["got"] * 6 + ["code 0"]


def test_steps_side_by_side_and_within_each_other(gang: Start) -> None:
    """The end of one step leaves the other alone; what a failed step left behind in its own session goes too."""
    script = """
hpcmesos run -n 4 sh -c 'until test -e over; do sleep 0.01; done' & other=$!
hpcmesos run -n 8 sh -c 'setsid sleep 611 & [ $RANK = 7 ] && exit 9; sleep 612'; echo code $?
pgrep -f 'sleep 61[12]' && echo left
touch over; wait $other; echo other $?
hpcmesos run -n 1 hpcmesos run -n 5 sh -c 'exit $RANK'; echo nested $?
"""
    attempt = gang(script)
    assert attempt.ended(timeout=15)["code"] == 0, attempt.tail("stderr")
    lines = attempt.tail("stdout").splitlines()
    assert lines[:2] == ["code 9", "other 0"]
    assert lines[2] in [f"nested {code}" for code in (1, 2, 3, 4)]


def test_a_lost_node_is_named(tmp_path: Path) -> None:
    """The shepherd of a node dies; the gang's clock ends the job some seconds later."""
    with kit.cluster(tmp_path, NAMES[:2], cgroups=False, **kit.CLOCK) as nodes:
        value = kit.spec(
            nodes, tmp_path, "hpcmesos run sh -c 'touch up.$RANK; exec sleep 600'; echo code $?; sleep 600\n"
        )
        attempt = kit.Run(nodes, value)
        kit.wait_until(lambda: len(list(tmp_path.glob("up.*"))) == 2, "ranks")
        nodes[1].kill()
        ended = attempt.ended()
        nodes[1].start()  # ends what the dead one left
        assert (ended["cause"], ended["culprit"]) == ("NODE_LOST", "node2")
        assert attempt.tail("stdout") == "code 255\n"
        assert "hpcmesos run: node2: the connection to node2 was lost" in attempt.tail("stderr")


def test_ranks_are_the_tasks_of_a_framework(tmp_path: Path) -> None:
    with kit.cluster(tmp_path, NAMES[:2], cgroups=False) as nodes:
        kit.give_gpus(nodes, 2)
        value = kit.spec(
            nodes,
            tmp_path,
            "hpcmesos run sh -c 'echo $TF_CONFIG' | grep -o '\"task\":.*type[^}]*' | tr -d ' ' | sort\n",
            framework="tensorflow:ps=1,worker=3",
        )
        for member, first in zip(value["members"], (21000, 21100), strict=True):
            member["ports"] = [first, first + 1]
        attempt = kit.Run(nodes, value)
        assert attempt.ended()["code"] == 0, attempt.tail("stderr")
        kinds = [word for word in ("ps", "worker") for _ in range(attempt.tail("stdout").count(f'"{word}"'))]
        assert kinds == ["ps", "worker", "worker", "worker"], attempt.tail("stdout")
