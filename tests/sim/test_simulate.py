"""The simulator beside a small one that knows nothing but a number of processors."""

from __future__ import annotations

import heapq
import random
from bisect import insort
from collections.abc import Callable

import pytest

from hpcmesos.gang import schedule
from hpcmesos.gang.policy import Backfill, Policy
from hpcmesos.gang.simulate import TraceJob, simulate
from hpcmesos.gang.snapshot import Plan, Snapshot
from hpcmesos.model import Chunk, JobId, Placement, Request
from hpcmesos.traces import swf

PROCS = 16


def workload(seed: int, count: int = 150) -> list[TraceJob]:
    rng = random.Random(seed)
    jobs, now = [], 0
    for number in range(count):
        now += rng.choice((0, 0, 5, 10, 40))
        walltime = rng.choice((10, 20, 50, 100, 300))
        procs = rng.choice((1, 1, 2, 4, 8, PROCS))
        jobs.append(
            TraceJob(
                id=JobId(number, "t"),
                submitted_at=float(now),
                runtime=float(rng.choice((walltime, rng.randint(1, walltime)))),
                request=Request((Chunk(cpus=procs),), Placement.PACK),
                walltime=float(walltime),
            )
        )
    return jobs


def reference(jobs: list[TraceJob], shortest_first: bool) -> dict[JobId, float]:
    """EASY over one number: the textbook, with the extra nodes. When each job starts."""
    arrivals, queue, starts = list(jobs), list[TraceJob](), dict[JobId, float]()
    running: list[tuple[float, int, JobId]] = []  # by estimated end
    ends: list[tuple[float, JobId]] = []
    held = {job.id: job.request.cpus for job in jobs}
    free = PROCS

    def start(job: TraceJob, now: float) -> None:
        nonlocal free
        starts[job.id], free = now, free - held[job.id]
        assert job.walltime is not None
        insort(running, (now + job.walltime, held[job.id], job.id))
        heapq.heappush(ends, (now + job.runtime, job.id))

    while arrivals or ends:
        now = min([job.submitted_at for job in arrivals[:1]] + [end for end, _ in ends[:1]])
        while ends and ends[0][0] <= now:
            _, ended = heapq.heappop(ends)
            running = [entry for entry in running if entry[2] != ended]
            free += held[ended]
        while arrivals and arrivals[0].submitted_at <= now:
            queue.append(arrivals.pop(0))
        while queue and held[queue[0].id] <= free:
            start(queue.pop(0), now)
        if not queue:
            continue
        shadow, extra = _shadow(running, free, held[queue[0].id])
        rest = sorted(queue[1:], key=lambda job: job.walltime) if shortest_first else queue[1:]  # type: ignore[arg-type, return-value]  # all have one
        for job in rest:
            long = now + (job.walltime or 0) > shadow
            if held[job.id] <= min(free, extra if long else free):
                extra -= held[job.id] if long else 0
                start(job, now)
                queue.remove(job)
    return starts


def _shadow(running: list[tuple[float, int, JobId]], free: int, needed: int) -> tuple[float, int]:
    available, at = free, 0.0
    for end, procs, _ in running:
        if available >= needed and end > at:
            break
        available, at = available + procs, end
    return at, available - needed


@pytest.mark.parametrize("shortest_first", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_easy_is_the_textbooks(seed: int, shortest_first: bool) -> None:
    jobs = workload(seed)
    policy = Policy(order="fcfs", backfill_order="sjf" if shortest_first else "")
    replay = simulate(swf.machine(PROCS), jobs, policy)
    assert {run.job.id: run.started_at for run in replay.runs} == reference(jobs, shortest_first)


def test_the_simulator_decides_by_the_schedulers_own_function(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    real: Callable[[Snapshot, Policy, float], Plan] = schedule.schedule

    def counted(snapshot: Snapshot, policy: Policy, now: float) -> Plan:
        nonlocal calls
        calls += 1
        return real(snapshot, policy, now)

    monkeypatch.setattr(schedule, "schedule", counted)
    replay = simulate(swf.machine(PROCS), workload(1), Policy())
    assert calls == replay.calls > 100


def test_a_job_that_is_too_big_never_starts_and_holds_nobody_back() -> None:
    jobs = workload(2, 20)
    big = TraceJob(
        id=JobId(99, "t"),
        submitted_at=0.0,
        runtime=1.0,
        request=Request((Chunk(cpus=PROCS + 1),)),
        walltime=1.0,
    )
    replay = simulate(swf.machine(PROCS), [big, *jobs], Policy())
    assert replay.never == [big]
    assert len(replay.runs) == len(jobs)


@pytest.mark.parametrize("backfill", list(Backfill))
def test_every_job_runs_once_for_as_long_as_it_takes(backfill: Backfill) -> None:
    jobs = workload(3)
    replay = simulate(swf.machine(PROCS), jobs, Policy(backfill=backfill))
    assert sorted(run.job.id for run in replay.runs) == [job.id for job in jobs]
    assert all(run.ended_at - run.started_at == run.job.runtime for run in replay.runs)
    assert all(run.started_at >= run.job.submitted_at for run in replay.runs)
