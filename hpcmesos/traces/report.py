"""What a simulation was like, in figures: per job, in all, and by size of the jobs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from statistics import median
from typing import Any

from hpcmesos.gang.simulate import Replay, Run, bounded_slowdown
from hpcmesos.gang.snapshot import NodeView

SIZES = ((1, 1), (2, 7), (8, 8), (9, 16), (17, 64), (65, None))
"""Classes of jobs by GPUs, or by CPUs of jobs without: from, to (None: no end)."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds of waiting of some jobs."""

    jobs: int
    mean: float
    median: float
    p95: float
    longest: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A simulation. Times in seconds. ``utilisation``: held GPUs (CPUs, where there are no GPUs) as part of all, from
    the first submission to the last end. ``completion``: mean time from submission to end. ``slowdown``: bounded, 10 s.
    """

    policy: str
    jobs: int
    never: int
    preempted: int
    wait: Waits
    completion: float
    slowdown: float
    utilisation: float
    makespan: float
    by_size: dict[str, Waits]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def summary(policy: str, replay: Replay, nodes: Iterable[NodeView], start: float | None = None) -> Summary:
    """The figures of a replay on these nodes. ``start``: since when the cluster counts; None: the first submission."""
    runs = replay.runs
    gpus, cpus = (sum(amounts) for amounts in zip(*((len(n.gpus), n.cpus) for n in nodes), strict=True))
    every = [*runs, *replay.before]
    begin = min((run.job.submitted_at for run in runs), default=0.0) if start is None else start
    end = max((run.ended_at for run in every), default=begin)
    used = sum(run.job.runtime * (run.job.request.gpus if gpus else run.job.request.cpus) for run in every)
    offered = (end - begin) * (gpus or cpus)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_size_class(run), []).append(run)
    names = [_label(*size) for size in SIZES]
    return Summary(
        policy=policy,
        jobs=len(runs),
        never=len(replay.never),
        preempted=sum(run.preempted for run in runs),
        wait=_waits(runs),
        completion=sum(run.ended_at - run.job.submitted_at for run in runs) / max(1, len(runs)),
        slowdown=bounded_slowdown(runs),
        utilisation=used / offered if offered else 0.0,
        makespan=end - begin,
        by_size={name: _waits(groups[name]) for name in names if name in groups},
    )


def per_job(replay: Replay) -> str:
    """One line a job, as CSV, in the order of submission."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        (
            "job",
            "user",
            "queue",
            "gpus",
            "cpus",
            "submitted",
            "started",
            "ended",
            "wait",
            "preempted",
            "nodes",
        )
    )
    for run in sorted(replay.runs, key=lambda run: (run.job.submitted_at, run.job.id)):
        job = run.job
        times = (job.submitted_at, run.started_at, run.ended_at, run.wait)
        writer.writerow(
            (
                job.id.seq,
                job.user,
                job.queue,
                job.request.gpus,
                job.request.cpus,
                *(f"{time:.3f}" for time in times),
                run.preempted,
                "+".join(run.nodes),
            )
        )
    return out.getvalue()


def _waits(runs: Sequence[Run]) -> Waits:
    waits = sorted(run.wait for run in runs)
    if not waits:
        return Waits(0, 0.0, 0.0, 0.0, 0.0)
    return Waits(
        len(waits), sum(waits) / len(waits), median(waits), waits[int(0.95 * (len(waits) - 1))], waits[-1]
    )


def _size_class(run: Run) -> str:
    size = run.job.request.gpus or run.job.request.cpus
    return next(_label(low, high) for low, high in SIZES if high is None or size <= high)


def _label(low: int, high: int | None) -> str:
    return f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}"
