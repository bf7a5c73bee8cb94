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
    "answering": ["--jobs", "50", "--repeat", "1", "--stranger", "1"],
    "many_agents": ["--agents", "20", "--rate", "10", "--seconds", "2"],
}


@pytest.mark.full
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_runs(name: str, tmp_path: Path) -> None:
    words = [sys.executable, str(BENCHMARKS / f"{name}.py"), *SMALL[name], "--json", "figures.json"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["machine"]
    if name == "throughput":
        assert figures["postgresql"]["fsync"] == figures["postgresql"]["synchronous_commit"] == "on"
        assert (tmp_path / "picture.svg").read_text().startswith("<svg")
