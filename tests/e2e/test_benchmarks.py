"""The benchmarks still run: each small, without its peers. Figures are no test's business."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = {
    "throughput": ["--jobs", "100", "--submits", "3", "--repeat", "1", "--peers", "", "--svg", "picture.svg"],
    "latencies": ["--known", "50", "--repeat", "1", "--idle", "1"],
    "answering": ["--jobs", "50", "--repeat", "1", "--stranger", "1"],
    "launch": ["--nodes", "2", "--ranks", "4", "--repeat", "2"],
    "many_agents": ["--agents", "20", "--rate", "10", "--seconds", "2"],
}


@pytest.mark.full
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_runs(name: str, tmp_path: Path) -> None:
    if name == "launch" and not Path(sys.executable).with_name("mpiexec").exists():
        pytest.skip("no MPICH wheel")
    words = [sys.executable, str(BENCHMARKS / f"{name}.py"), *SMALL[name], "--json", "figures.json"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["machine"]
    if name == "throughput":
        assert figures["postgresql"]["fsync"] == figures["postgresql"]["synchronous_commit"] == "on"
        assert (tmp_path / "picture.svg").read_text().startswith("<svg")


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
    assert rows["qsub, ms"] == {"what": "qsub, ms", "value": None, "budget": "<= 20", "kept": None}
    assert "qsub, ms" in done.stdout and "not measured" in done.stdout
