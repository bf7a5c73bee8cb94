"""The benchmarks still run: each small, without its peers. Figures are no test's business."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OF_PEERS = ("HyperQueue", "Slurm")


@pytest.mark.full
@pytest.mark.parametrize(
    "name",
    [
        "throughput",
        "latencies",
        "arrays",
        "answering",
        "many_agents",
        "schedule",
        "launch",
        "takeover",
        "stop",
    ],
)
def test_a_benchmark_runs_and_fills_its_lines_of_the_table(name: str, tmp_path: Path) -> None:
    words = [
        sys.executable,
        str(BENCHMARKS / "budgets.py"),
        "--small",
        "--only",
        name,
        "--directory",
        str(tmp_path),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    log = (tmp_path / f"{name}.log").read_text()
    assert done.returncode == 0 and f"{name}: done" in done.stderr, log
    rows = json.loads((tmp_path / "budgets.json").read_text())
    measured = [row for row in rows if row["value"] is not None]
    own = [
        row for row in rows if row["program"] == name and not any(peer in row["what"] for peer in OF_PEERS)
    ]
    assert measured == own
    figures = json.loads((tmp_path / f"{name}.json").read_text())
    if name == "throughput":
        assert figures["postgresql"]["fsync"] == figures["postgresql"]["synchronous_commit"] == "on"
        assert (tmp_path / "throughput.svg").read_text().startswith("<svg")


def test_the_table_of_budgets_says_what_was_not_measured(tmp_path: Path) -> None:
    (tmp_path / "schedule.json").write_text('[{"total_s": 2.0}]')
    (tmp_path / "takeover.json").write_text('{"median_s": 0.5, "max_s": 1.0}')
    words = [sys.executable, str(BENCHMARKS / "budgets.py"), "--directory", str(tmp_path), "--only", ""]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row for row in json.loads((tmp_path / "budgets.json").read_text())}
    decision, killed = (
        rows[f"{name} s"]
        for name in ("one decision, 100,000 on 10,000 nodes,", "leader killed: next job, longest")
    )
    assert (decision["value"], decision["kept"], killed["kept"]) == (2.0, False, True)
    assert (rows["qsub, ms"]["value"], rows["qsub, ms"]["kept"]) == (None, None)
    assert "qsub, ms" in done.stdout and "not measured" in done.stdout
