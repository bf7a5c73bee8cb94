"""The total order in which waiting jobs are considered.

An order is a function from columns to sort keys, smallest first. Ties go to the older job, then to the lower id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log2

import numpy as np

from hpcmesos.gang import classes, fair, tables
from hpcmesos.gang.policy import DAY, Policy
from hpcmesos.gang.room import Floats, Ints
from hpcmesos.gang.snapshot import JobView, QueueView, RunningView, Snapshot
from hpcmesos.gang.tables import JobTable
from hpcmesos.model import Chunk, Request

Order = Callable[["Columns"], Sequence[Floats]]


class Columns:
    """What orders look at: columns of the jobs, an entry a job."""

    def __init__(self, pending: JobTable, slots: Ints, facts: Snapshot, policy: Policy, now: float) -> None:
        values = pending.values[slots]
        self.now = now
        self.policy = policy
        self.priority = values[:, tables.PRIORITY]
        self.queued_at = values[:, tables.QUEUED_AT]
        self.tie = values[:, tables.TIE]
        self.qos = values[:, tables.QOS]
        self._values = values
        self._pending, self._facts, self._slots = pending, facts, slots

    @property
    def queue_priority(self) -> Floats:
        queues = self._facts.queues
        steps = [queues[name].priority if name in queues else 0 for name in self._pending.queues]
        return self._of_each(steps, tables.QUEUE)

    @property
    def overuse(self) -> Floats:
        """How often each job's account has used what is due to it."""
        if not self._facts.accounts:
            return np.zeros(len(self._values))
        found = fair.standings(self._facts.accounts, self._facts.project_shares)
        used = [
            -log2(found[who].factor) if who in found and found[who].factor else 0.0
            for who in self._pending.who
        ]
        return self._of_each(used, tables.WHO)

    def _of_each(self, known: Sequence[float], column: int) -> Floats:
        found: Floats = np.array(known, np.float64)[self._values[:, column].astype(np.int64)]
        return found

    @property
    def procs(self) -> Floats:
        """GPUs, or CPUs of jobs without GPUs."""
        gpus = self._values[:, tables.GPUS]
        return np.where(gpus > 0, gpus, self._values[:, tables.CPUS])

    @property
    def walltime(self) -> Floats:
        return walltimes(self._pending, self._slots, self._facts.queues, self.policy)

    @property
    def expected(self) -> Floats:
        """Seconds that it will likely run: what is predicted, else the walltime, and never more than that."""
        predicted = self._values[:, tables.PREDICTED]
        return np.where(np.isnan(predicted), self.walltime, np.minimum(predicted, self.walltime))

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


def _area(jobs: Columns) -> Sequence[Floats]:
    """The least work first: GPUs times the seconds that it will likely run."""
    return (jobs.expected * jobs.procs,)


def _multifactor(jobs: Columns) -> Sequence[Floats]:
    """Most points first; see ``factors``."""
    return (-np.sum([weight * value for _, value, weight in factors(jobs)], axis=0),)


def factors(jobs: Columns) -> list[tuple[str, Floats, float]]:
    """What the order ``multifactor`` adds up: name, value for each job, and what it counts (``policy.Weights``)."""
    weights = jobs.policy.weights
    work = np.log2(np.maximum(jobs.expected, 1.0) * np.maximum(jobs.procs, 1.0))
    return [
        ("user priority", jobs.priority, weights.priority),
        ("queue priority", jobs.queue_priority, weights.priority),
        ("quality of service", jobs.qos, weights.qos),
        ("fair share", -jobs.overuse, weights.fair_share),
        ("days of waiting", jobs.wait / DAY, weights.age),
        ("work", -work, weights.work),
    ]


ORDERS: dict[str, Order] = {
    "fcfs": _fcfs,
    "priority": _priority,
    "sjf": _sjf,
    "f1": _f1,
    "wfp3": _wfp3,
    "unicep": _unicep,
    "lxf": _lxf,
    "area": _area,
    "multifactor": _multifactor,
    "srsf": _srsf,
    "srtf": _srtf,
}


def ranked(snapshot: Snapshot, pending: JobTable, name: str, policy: Policy, now: float) -> Ints:
    """The slots of the waiting jobs, first to start first."""
    slots = pending.all_slots()
    jobs = Columns(pending, slots, snapshot, policy, now)
    told = snapshot.plugged.order if name == policy.order else None
    site = [] if told is None else [-jobs.qos, classes.keys(pending, slots, told)]
    first: Ints = slots[_sorted(jobs, name, site)]
    return first


def points(snapshot: Snapshot, job: JobView, policy: Policy, now: float) -> dict[str, tuple[float, float]]:
    """Of one waiting job, each factor's value and the points that it gives under ``multifactor``."""
    table = JobTable([job])
    jobs = Columns(table, table.all_slots(), snapshot, policy, now)
    found = {name: (float(value[0]), float(value[0] * weight)) for name, value, weight in factors(jobs)}
    told = snapshot.plugged.order
    key = None if told is None else told.get(classes.class_of(job))
    return found if key is None else {"plug-in's key": (key, 0.0), **found}


def _sorted(jobs: Columns, name: str, site: Sequence[Floats] = ()) -> Ints:
    """``site``: keys of a plug-in, which come before those of the order."""
    keys = [*site, *ORDERS[name](jobs), jobs.queued_at, jobs.tie]
    if jobs.policy.patience is not None:
        overdue = jobs.wait > jobs.policy.patience
        keys = [np.where(overdue, jobs.queued_at, np.inf), *keys]
    order: Ints = np.lexsort(keys[::-1])
    return order


def merged(
    snapshot: Snapshot, waiting: Sequence[JobView], policy: Policy, now: float
) -> list[JobView | RunningView]:
    """Waiting and running jobs in one order; a running job needs what is left until its end."""
    jobs: list[JobView | RunningView] = [*snapshot.running, *waiting]
    table = JobTable()
    for job in jobs:
        table.put(job if isinstance(job, JobView) else _as_waiting(job, now))
    order = _sorted(Columns(table, np.arange(len(jobs)), snapshot, policy, now), policy.order)
    return [jobs[at] for at in order.tolist()]


def _as_waiting(job: RunningView, now: float) -> JobView:
    left = None if job.ends_at is None else max(0.0, job.ends_at - now)
    chunks = tuple(Chunk(1, member.cpus, len(member.gpus), member.mem) for member in job.members)
    return JobView(
        job.id, Request(chunks), job.priority, job.queued_at, job.queue, walltime=left, remaining=left
    )


def walltimes(pending: JobTable, slots: Ints, queues: Mapping[str, QueueView], policy: Policy) -> Floats:
    """Of each slot's job, as :func:`walltime`."""
    named = pending.values[slots, tables.WALLTIME]
    defaults = [queues[name].walltime if name in queues else None for name in pending.queues]
    assumed = np.array([policy.assumed_walltime if default is None else default for default in defaults])
    found: Floats = np.where(
        np.isnan(named), assumed[pending.values[slots, tables.QUEUE].astype(np.int64)], named
    )
    return found


def walltime(job: JobView, queues: Mapping[str, QueueView], policy: Policy) -> float:
    """Seconds that a job is taken to need at most: its own word, else its queue's, else the policy's."""
    if job.walltime is not None:
        return job.walltime
    if job.request.walltime is not None:
        return float(job.request.walltime)
    queue = queues.get(job.queue)
    return policy.assumed_walltime if queue is None or queue.walltime is None else queue.walltime
