"""Philly's log of 82,247 jobs, replayed whole: nobody starves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hpcmesos.gang.policy import SHIPPED
from hpcmesos.gang.simulate import Replay, Run, Simulator
from hpcmesos.traces import clusters, gpu_csv, report
from tests.sim.trace_files import trace

HOUR = 3600.0


def bounds(runs: list[Run], patience: float) -> list[tuple[Run, float]]:
    """Of each job that has waited longer than ``patience``, when it starts at the latest (docs/scheduling.md).

    From when it is the oldest that waits, and has waited so long, it is first: it starts once what runs then is over.
    """
    runs = sorted(runs, key=lambda run: (run.job.submitted_at, run.job.id))
    starts, ends = (np.array([getattr(run, name) for run in runs]) for name in ("started_at", "ended_at"))
    before = np.maximum.accumulate(np.concatenate([[-np.inf], starts[:-1]]))
    found = []
    for run, last in zip(runs, before.tolist(), strict=True):
        if run.wait > patience:
            first = max(run.job.submitted_at + patience, last)
            running = (starts <= first) & (ends > first)
            found.append((run, max(first, float(ends[running].max(initial=first)))))
    return found


def check(replay: Replay, patience: float) -> int:
    late = bounds(replay.runs, patience)
    for run, latest in late:
        assert run.started_at <= latest, f"{run.job.id} waited {run.wait / HOUR:.1f} h"
    return len(late)


@pytest.mark.full
@pytest.mark.parametrize(("nodes", "used", "days"), [(96, 0.48, 2), (72, 0.64, 12)])
def test_the_whole_log_with_the_shipped_policy(nodes: int, used: float, days: int) -> None:
    """``used``: utilisation at least; ``days``: that any job waits at most, on 72 nodes beyond the patience of 7."""
    jobs = gpu_csv.read(trace("philly_82k.csv.gz"))
    site = clusters.grid(nodes, 8)
    replay = Simulator(site, jobs, SHIPPED, known=True).run()
    figures = report.summary("default", replay, site)
    assert (figures.jobs, figures.never) == (82247, 0)
    work = sum(job.runtime * job.request.gpus for job in jobs)
    begin, end = min(job.submitted_at for job in jobs), max(run.ended_at for run in replay.runs)
    assert figures.utilisation == pytest.approx(work / (end - begin) / (nodes * 8))
    assert figures.utilisation > used
    assert figures.wait.longest < days * 24 * HOUR
    assert figures.by_size["65+"].longest < 24 * HOUR
    assert (check(replay, 7 * 24 * HOUR) > 0) == (days > 7)


@pytest.mark.full
def test_nobody_waits_beyond_the_bound_when_patience_is_short() -> None:
    """With a bound that hundreds of jobs reach."""
    jobs = sorted(gpu_csv.read(trace("philly_82k.csv.gz")), key=lambda job: (job.submitted_at, job.id))
    policy = replace(SHIPPED, patience=2 * HOUR)
    replay = Simulator(clusters.grid(24, 8), jobs[:3000], policy, known=True).run()
    assert check(replay, 2 * HOUR) > 200
