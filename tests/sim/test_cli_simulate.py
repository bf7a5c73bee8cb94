"""``hpcmesos simulate``: a trace in, figures and pictures out."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from hpcmesos.cli.main import root
from hpcmesos.errors import InvalidValue
from hpcmesos.gang.snapshot import GpuView, JobView, Member, NodeView, RunningView
from hpcmesos.model import Chunk, GpuUuid, JobId, NodeName, Request
from hpcmesos.traces.queue_file import QueueFile

SWF = """; MaxProcs: 4
1 0 -1 100 4 -1 -1 4 100 -1 1 1 1 -1 0 -1 -1 -1
2 10 -1 50 4 -1 -1 4 50 -1 1 1 1 -1 0 -1 -1 -1
3 20 -1 30 1 -1 -1 1 30 -1 1 2 1 -1 0 -1 -1 -1
4 30 -1 -1 1 -1 -1 1 30 -1 5 2 1 -1 0 -1 -1 -1
"""
MURI = """job_id,num_gpu,submit_time,iterations,model_name,batch_size,duration
0,2,0,1,a,1,60000
1,1,1000,1,a,1,10000
2,2,2000,1,a,1,10000
3,99,3000,1,a,1,10000
"""


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "log.swf.gz"
    path.write_bytes(gzip.compress(SWF.encode()))
    return path


def simulated(*arguments: object) -> list[dict[str, float]]:
    result = CliRunner().invoke(
        root, ["simulate", *map(str, arguments), "--json", "-"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    figures: list[dict[str, float]] = json.loads(result.output)
    return figures


def test_the_machine_is_the_logs_own_and_jobs_that_never_ran_are_left_out(trace: Path) -> None:
    (figures,) = simulated(trace, "--policy", "fcfs")
    assert figures["jobs"] == 3
    assert figures["wait"] == {"jobs": 3, "mean": 220 / 3, "median": 90, "p95": 90, "longest": 130}
    assert figures["makespan"] == 180
    assert figures["utilisation"] == (400 + 200 + 30) / (180 * 4)


def test_policies_side_by_side_and_more_nodes(tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text(MURI)
    figures = simulated(
        path, "--nodes", 1, "--gpus", 2, "--compare", "fcfs,srsf-preempt", "--known", "--add-nodes", 1
    )
    assert [entry["policy"] for entry in figures] == [
        "fcfs",
        "srsf-preempt",
        "fcfs +1 nodes",
        "srsf-preempt +1 nodes",
    ]
    assert [entry["never"] for entry in figures] == [1, 1, 1, 1]
    assert [entry["preempted"] for entry in figures[:3]] == [0, 1, 0]
    assert figures[1]["completion"] < figures[0]["completion"] > figures[2]["completion"]


def test_a_line_for_each_job_and_pictures(trace: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("jobs.csv", "gantt.svg", "use.svg")]
    simulated(trace, "--csv", files[0], "--gantt", files[1], "--utilisation", files[2], "--policy", "easy")
    rows = list(csv.DictReader(files[0].read_text().splitlines()))
    assert [(row["job"], row["started"], row["wait"]) for row in rows] == [
        ("1", "0.000", "0.000"),
        ("2", "100.000", "90.000"),
        ("3", "150.000", "130.000"),
    ]
    bars = ElementTree.parse(files[1]).getroot().iter("{http://www.w3.org/2000/svg}rect")
    assert len(list(bars)) == 1 + 3
    assert "CPUs in use, of 4" in "".join(ElementTree.parse(files[2]).getroot().itertext())


def test_a_cluster_file_has_groups_of_nodes_under_switches(tmp_path: Path) -> None:
    log, cluster = tmp_path / "jobs.csv", tmp_path / "cluster.toml"
    log.write_text(MURI)
    cluster.write_text('[[nodes]]\ncount = 3\ngpus = 1\nswitch = "core"\nnodes_per_switch = 2\n')
    (figures,) = simulated(log, "--cluster", cluster, "--policy", "easy")
    assert (figures["jobs"], figures["never"]) == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policy", "lottery"], "there is no policy 'lottery'"),
        (["--cluster", "CLUSTER"], "nodes table 1 has an unknown key 'gpu'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    trace: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    cluster = tmp_path / "c.toml"
    cluster.write_text("[[nodes]]\ngpu = 1\n")
    words = [str(cluster) if word == "CLUSTER" else word for word in arguments]
    with pytest.raises(InvalidValue, match=said):
        CliRunner().invoke(root, ["simulate", str(trace), *words], catch_exceptions=False)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.swf"
    path.write_text("; MaxProcs: 4\n1 0 zero\n")
    with pytest.raises(InvalidValue, match=r"log\.swf:2: no line of the Standard Workload Format"):
        CliRunner().invoke(root, ["simulate", str(path)], catch_exceptions=False)


def live(tmp_path: Path) -> Path:
    """Two nodes of two GPUs: one runs for 100 s more, and three jobs wait."""
    now = 1_800_000_000.0
    uuids = [GpuUuid(f"GPU-{at}") for at in range(4)]
    nodes = tuple(
        NodeView(
            NodeName(name), True, 8, free, 0, 0, tuple(GpuView(uuids[at], at % 2, free == 8) for at in gpus)
        )
        for name, free, gpus in (("a", 7, (0, 1)), ("b", 8, (2, 3)))
    )
    members = (Member(NodeName("a"), 1, 0, 1, (uuids[0], uuids[1])),)
    runs = RunningView(JobId(1, "hpcm"), members, now - 50, now + 100, "batch", "ann")
    both = Request((Chunk(2, 1, 2),), walltime=200)
    one = Request((Chunk(1, 1, 1),), walltime=30)
    waits = (
        JobView(JobId(2, "hpcm"), both, 5, now - 40, "batch", user="bob"),
        JobView(JobId(3, "hpcm", array=True), one, 0, now - 30, "batch", count=2, user="ann"),
    )
    path = tmp_path / "queue.json"
    path.write_bytes(QueueFile(now=now, server="hpcm", nodes=nodes, pending=waits, running=(runs,)).encode())
    return path


def test_a_live_queue_goes_on_where_it_is(tmp_path: Path) -> None:
    path, csv_path = live(tmp_path), tmp_path / "jobs.csv"
    (as_is, more) = simulated(path, "--add-nodes", 2, "--csv", csv_path)
    # The elements end before the gang may start, at the end of what runs; then the gang takes its walltime.
    assert (as_is["jobs"], as_is["makespan"]) == (3, 300)
    assert as_is["wait"]["longest"] == 140  # type: ignore[index]  # a table, as the report has it
    assert as_is["utilisation"] == (100 * 2 + 200 * 4 + 2 * 30) / (300 * 4)
    assert more["makespan"] == 200
    table = CliRunner().invoke(root, ["simulate", str(path)], catch_exceptions=False).output
    assert "default: the queue drains in 00:05:00, at 2027-01-15" in table


def test_another_file_is_no_queue(tmp_path: Path) -> None:
    path = tmp_path / "queue.json"
    path.write_text('{"format": "hpcmesos-queue", "version": 1}')
    with pytest.raises(InvalidValue, match="not written by hpcmesos queue export"):
        CliRunner().invoke(root, ["simulate", str(path)], catch_exceptions=False)
