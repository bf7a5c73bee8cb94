"""The ring over real shepherds: before a job's script, and inside it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hpcmesos.launch import preflight

from . import shepherd_kit as kit

needs_mpi = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or not (Path(sys.executable).parent / "mpiexec").exists(),
    reason="needs the mpich and mpi4py wheels",
)
NAMES = ["node1", "node2", "node3"]


nodes = kit.both_ways(NAMES, gpus=2, ring_patience=5)  # a ring that can close does so in a second


def ranks_on(node: kit.Node) -> list[int]:
    """Ranks of a ring that the shepherd of ``node`` has started."""
    pid = node.process.pid
    found = []
    for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(OSError):
            if b"ring" in Path(f"/proc/{word}/cmdline").read_bytes().partition(b"hpcmesos")[2]:
                found.append(int(word))
    return found


def stop_rank(node: kit.Node) -> int:
    """Stops the first rank of the ring that the node starts, when it is seen."""

    def stopped() -> int:
        for pid in ranks_on(node):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                return pid
        return 0

    return int(kit.wait_until(stopped, f"a rank on {node.name}"))


@needs_mpi
def test_a_closed_ring_lets_the_script_start(nodes: list[kit.Node], tmp_path: Path) -> None:
    with kit.runs(nodes, tmp_path) as start:
        job = start(
            "cat $PBS_JOBDIR/ring.json", ring="check", environment={"MPI4PY_LIBMPI": "/nowhere", "RANK": "7"}
        )
        ended = job.ended()
        assert (ended["cause"], ended["code"]) == ("OK", 0), ended["message"]
        assert "=>> hpcmesos: the ring closed: 6 ranks on 3 nodes" in job.tail("stderr")
        ranks = json.loads(job.tail("stdout"))["ranks"]
        assert [(rank["rank"], rank["host"], rank["gpus"]) for rank in ranks] == [
            (2 * i + k, f"node{i + 1}", [f"SIM-node{i + 1}-{k}"]) for i in range(3) for k in range(2)
        ]
        assert all(rank["latency"] > 0 and rank["bandwidth"] > 0 for rank in ranks)


@needs_mpi
def test_a_broken_ring_ends_the_attempt_and_names_the_break(nodes: list[kit.Node], tmp_path: Path) -> None:
    with kit.runs(nodes, tmp_path) as start:
        job = start("echo started", ring="check")
        pid = stop_rank(nodes[1])
        ended = job.ended(timeout=40)
        assert (ended["cause"], ended["culprit"]) == ("START_FAILED", "node2"), ended["message"]
        # Either rank of node2 may have been the first to be seen.
        ends = r"it broke between rank [12] \(node[12], SIM-node\d-\d\) and rank [23] \(node2, SIM-node2-\d\)"
        assert re.search(ends, ended["message"]), ended["message"]
        assert "has not reported" in ended["message"] or "fell silent" in ended["message"]
        assert not (tmp_path / "out").exists(), "the script must not have run"
        assert not kit.is_alive(pid)
        assert job.ended(1)["cause"] == "START_FAILED"


@needs_mpi
def test_a_rank_that_is_killed_is_named(nodes: list[kit.Node], tmp_path: Path) -> None:
    with kit.runs(nodes, tmp_path) as start:
        job = start("echo started", ring="check")
        os.kill(stop_rank(nodes[2]), signal.SIGKILL)
        ended = job.ended()
        assert (ended["cause"], ended["culprit"]) == ("START_FAILED", "node3"), ended["message"]
        assert "killed by signal 9" in ended["message"]


@needs_mpi
def test_an_order_to_end_ends_the_ring(nodes: list[kit.Node], tmp_path: Path) -> None:
    with kit.runs(nodes, tmp_path) as start:
        job = start("echo started", ring="check")
        stop_rank(nodes[1])
        job.end()
        assert job.ended()["cause"] == "DELETED"
        assert job.ended(1)["cause"] == "DELETED"


@needs_mpi
def test_inside_a_job_the_script_decides(nodes: list[kit.Node], tmp_path: Path) -> None:
    with kit.runs(nodes[:1], tmp_path) as start:
        job = start("hpcmesos ring; echo $?; hpcmesos ring --json --save .; echo $?")
        assert job.ended()["code"] == 0, job.tail("stderr")
        table, _, rest = job.tail("stdout").partition("\n0\n")
        assert table.startswith("rank  host") and "the ring closed: 2 ranks on 1 node" in table
        assert json.loads(rest.splitlines()[0])["closed"] and rest.splitlines()[1] == "0"
        assert (tmp_path / "ring.txt").read_text().startswith("rank  host")


def test_what_the_owner_makes_the_ring_say_names_nodes_of_the_job_only() -> None:
    said: dict[str, Any] = {
        "closed": False,
        "message": "x" * 5000,
        "ranks": [],
        "broken": None,
        "waiting": [],
    }
    data = f"noise\n{json.dumps(said | {'culprits': ['node9', 'node2', 'node1']})}\n".encode()
    outcome = preflight.judge(data, ["node1", "node2"])
    assert (outcome.closed, len(outcome.message), outcome.culprits) == (False, 1000, "node2+node1")


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"[]\n", b"{}\n", b'{"ranks": 5}\n', b'{"ranks": [[]]}\n', b"\xff\n"]
)
def test_nonsense_is_no_closed_ring(data: bytes) -> None:
    outcome = preflight.judge(data, ["node1"])
    assert not outcome.closed and outcome.culprits is None
