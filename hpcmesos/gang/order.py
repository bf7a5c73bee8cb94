"""The total order in which waiting jobs are considered.

An order is a function from columns to sort keys, smallest first. Ties go to the older job, then to the lower id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from hpcmesos.gang import tables
from hpcmesos.gang.policy import Policy
from hpcmesos.gang.room import Floats, Ints
from hpcmesos.gang.snapshot import JobView, QueueView, RunningView, Snapshot
from hpcmesos.gang.tables import JobTable
from hpcmesos.model import Chunk, Request

Order = Callable[["Columns"], Sequence[Floats]]


class Columns:
    """What orders look at: columns of the jobs, an entry a job."""

    def __init__(self, values: Floats, policy: Policy, now: float) -> None:
        self.now = now
        self.priority = values[:, tables.PRIORITY]
        self.queued_at = values[:, tables.QUEUED_AT]
        self.tie = values[:, tables.TIE]
        self._values = values
        self._assumed = policy.assumed_walltime

    @property
    def procs(self) -> Floats:
        """GPUs, or CPUs of jobs without GPUs."""
        gpus = self._values[:, tables.GPUS]
        return np.where(gpus > 0, gpus, self._values[:, tables.CPUS])

    @property
    def walltime(self) -> Floats:
        named = self._values[:, tables.WALLTIME]
        return np.where(np.isnan(named), self._assumed, named)

    @property
    def remaining(self) -> Floats:
        known = self._values[:, tables.REMAINING]
        return np.where(np.isnan(known), self.walltime, known)

    @property
    def wait(self) -> Floats:
        waited: Floats = np.maximum(self.now - self.queued_at, 0.0)
        return waited


def _fcfs(jobs: Columns) -> Sequence[Floats]:
    """First come, first served."""
    return ()


def _sjf(jobs: Columns) -> Sequence[Floats]:
    """Shortest walltime first."""
    return (jobs.walltime,)


def _f1(jobs: Columns) -> Sequence[Floats]:
    """Carastan-Santos and de Camargo (SC17)."""
    return (
        np.log10(np.maximum(jobs.walltime, 0.1)) * jobs.procs
        + 870 * np.log10(np.maximum(jobs.queued_at, 0.1)),
    )


def _wfp3(jobs: Columns) -> Sequence[Floats]:
    """Tang et al. (Cluster 2009): waiting as part of the walltime, cubed, times processors."""
    return (-((jobs.wait / jobs.walltime) ** 3) * jobs.procs,)


def _unicep(jobs: Columns) -> Sequence[Floats]:
    """Tang et al. (Cluster 2009): waiting by size and walltime."""
    return (-jobs.wait / (np.log2(np.maximum(jobs.procs, 2)) * jobs.walltime),)


def _lxf(jobs: Columns) -> Sequence[Floats]:
    """Largest expansion factor first: the slowdown that a job has reached."""
    return (-(jobs.wait + jobs.walltime) / jobs.walltime,)


def _srsf(jobs: Columns) -> Sequence[Floats]:
    """Shortest remaining service first: time still needed times GPUs."""
    return (jobs.remaining * jobs.procs,)


def _srtf(jobs: Columns) -> Sequence[Floats]:
    """Shortest remaining time first."""
    return (jobs.remaining,)


def _priority(jobs: Columns) -> Sequence[Floats]:
    """Higher priority first."""
    return (-jobs.priority,)


ORDERS: dict[str, Order] = {
    "fcfs": _fcfs,
    "priority": _priority,
    "sjf": _sjf,
    "f1": _f1,
    "wfp3": _wfp3,
    "unicep": _unicep,
    "lxf": _lxf,
    "srsf": _srsf,
    "srtf": _srtf,
}


def ranked(snapshot: Snapshot, pending: JobTable, name: str, policy: Policy, now: float) -> Ints:
    """The slots of the waiting jobs, first to start first."""
    slots = pending.all_slots()
    jobs = Columns(pending.values[slots], policy, now)
    first: Ints = slots[_sorted(jobs, name, policy)]
    return first


def _sorted(jobs: Columns, name: str, policy: Policy) -> Ints:
    keys = [*ORDERS[name](jobs), jobs.queued_at, jobs.tie]
    if policy.patience is not None:
        overdue = jobs.wait > policy.patience
        keys = [np.where(overdue, jobs.queued_at, np.inf), *keys]
    order: Ints = np.lexsort(keys[::-1])
    return order


def merged(
    waiting: Sequence[JobView], running: Iterable[RunningView], policy: Policy, now: float
) -> list[JobView | RunningView]:
    """Waiting and running jobs in one order; a running job needs what is left until its end."""
    jobs: list[JobView | RunningView] = [*running, *waiting]
    table = JobTable()
    for job in jobs:
        table.put(job if isinstance(job, JobView) else _as_waiting(job, now))
    order = _sorted(Columns(table.values[: len(jobs)], policy, now), policy.order, policy)
    return [jobs[at] for at in order.tolist()]


def _as_waiting(job: RunningView, now: float) -> JobView:
    left = None if job.ends_at is None else max(0.0, job.ends_at - now)
    chunks = tuple(Chunk(1, member.cpus, len(member.gpus), member.mem) for member in job.members)
    return JobView(
        job.id, Request(chunks), job.priority, job.queued_at, job.queue, walltime=left, remaining=left
    )


def walltime(job: JobView, queues: Mapping[str, QueueView], policy: Policy) -> float:
    """Seconds that a job is taken to need at most: its own word, else its queue's, else the policy's."""
    if job.walltime is not None:
        return job.walltime
    if job.request.walltime is not None:
        return float(job.request.walltime)
    queue = queues.get(job.queue)
    return policy.assumed_walltime if queue is None or queue.walltime is None else queue.walltime


def order_key(job: JobView) -> tuple[int, float, int, str, int]:
    """Sorts first what starts first: high priority, then long waiting, then the lower id; never a tie."""
    index = job.id.index
    return (-job.priority, job.queued_at, job.id.seq, job.id.server, -1 if index is None else index)


def in_order(jobs: Iterable[JobView]) -> list[JobView]:
    """The jobs, first to start first; independent of the order they come in."""
    return sorted(jobs, key=order_key)
