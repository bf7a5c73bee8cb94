"""Two minutes of `scripts/chaos`: every kind of fault under a mixture of jobs, and no promise broken."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.chaos import clusters, plan, verdict
from tests.chaos.run import run

SEED, SECONDS, JOBS = 20, 120.0, 250


@pytest.mark.full
def test_two_minutes_of_faults_break_no_promise(tmp_path: Path) -> None:
    kinds = clusters.kinds_here()
    planned = plan.make(SEED, SECONDS, JOBS, 2 * len(kinds), kinds)
    done = run(planned, lambda text: print(text, file=sys.stderr), tmp_path / "logs")
    print(verdict.table(done.verdict, done.faults, SEED, done.notes))
    assert done.verdict.kept, f"logs are in {tmp_path / 'logs'}"
    assert {fault.kind for fault in done.faults} == set(kinds)
