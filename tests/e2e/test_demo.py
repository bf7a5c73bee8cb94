"""`scripts/demo`, as a new user runs it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.full
def test_demo_prints_accuracy_and_leaves_nothing() -> None:
    done = subprocess.run(
        [str(ROOT / "scripts" / "demo")], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    accuracy = re.search(r"test accuracy (0\.\d+)", done.stdout)
    assert accuracy, done.stdout
    assert float(accuracy[1]) >= 0.9
    assert len(re.findall(r"SIM-|GPU-", done.stdout)) >= 8
    assert re.search(r"[Ee]xit_status = 0", done.stdout)
