"""Classes of jobs and of nodes, and the keys that a site's plug-ins gave them (``hpcmesos.plugin``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from math import inf

import numpy as np

from hpcmesos.gang import tables
from hpcmesos.gang.room import Floats, Ints, Site
from hpcmesos.gang.snapshot import JobView, RunningView
from hpcmesos.gang.tables import JobTable
from hpcmesos.model import Request
from hpcmesos.plugin import JobClass, NodeClass

MOST = 10_000
"""Classes of waiting jobs that plug-ins are asked about: those that have waited longest."""


def class_of(job: JobView) -> JobClass:
    """A waiting job's class."""
    walltime = job.request.walltime if job.walltime is None else job.walltime
    return _class(job.request, job.queue, job.project, job.user, job.priority, walltime)


def class_of_running(job: RunningView) -> JobClass | None:
    """The class that a running job was of; None: its request is not known."""
    if job.request is None:
        return None
    return _class(job.request, job.queue, job.project, job.user, job.priority, job.request.walltime)


@lru_cache(maxsize=1 << 16)
def _class(
    request: Request, queue: str, project: str, user: str, priority: int, walltime: float | None
) -> JobClass:
    return JobClass(
        queue=queue,
        project=project,
        user=user,
        priority=priority,
        nodes=request.pieces,
        gpus=request.gpus,
        cpus=request.cpus,
        mem=request.mem,
        walltime=None if walltime is None else float(walltime),
        features=tuple(sorted({feature for chunk in request.chunks for feature in chunk.features})),
    )


def numbered(pending: JobTable, slots: Ints) -> tuple[list[JobClass], Ints]:
    """The classes of the slots' jobs, and the number of each one's class in that list."""
    columns = (tables.SHAPE, tables.QUEUE, tables.WHO, tables.PRIORITY, tables.WALLTIME)
    code = np.zeros(len(slots), np.int64)
    for column in columns:
        _, part = np.unique(np.nan_to_num(pending.values[slots, column], nan=-1.0), return_inverse=True)
        _, code = np.unique(code * (int(part.max(initial=0)) + 1) + part, return_inverse=True)
    _, first = np.unique(code, return_index=True)
    views = (pending.jobs[slot] for slot in slots[first].tolist())
    return [class_of(view) for view in views if view is not None], code


def standing(found: Sequence[JobClass], code: Ints, waits: Floats, overuse: Floats) -> list[JobClass]:
    """The classes with how they stand, those with the longest wait first; the other arguments have an entry a job."""
    counts = np.bincount(code, minlength=len(found))
    waited, over = np.zeros(len(found)), np.full(len(found), -inf)
    np.maximum.at(waited, code, waits)
    np.maximum.at(over, code, overuse)
    return [
        replace(found[at], waiting=int(counts[at]), waited=float(waited[at]), overuse=float(over[at]))
        for at in np.argsort(-waited, kind="stable").tolist()
    ]


def keys(pending: JobTable, slots: Ints, told: Mapping[JobClass, float]) -> Floats:
    """The key of each slot's job; of classes without one, infinity."""
    classes, code = numbered(pending, slots)
    return np.array([*(told.get(one, inf) for one in classes), inf])[code]


def node_classes(site: Site) -> tuple[list[NodeClass], Ints]:
    """The classes of a site's nodes, and the number of each row's class in that list."""
    kinds: dict[NodeClass, int] = {}
    rows = [
        kinds.setdefault(
            NodeClass(
                gpus=len(node.gpus),
                cpus=node.cpus,
                mem=node.mem,
                features=tuple(sorted(word for word in node.features if not word.startswith("switch="))),
            ),
            len(kinds),
        )
        for node in site.nodes
    ]
    return list(kinds), np.array(rows, np.int64)


def node_keys(numbers: Ints, classes: Sequence[NodeClass], told: Mapping[NodeClass, float]) -> Floats:
    """The key of each row; of classes without one, infinity."""
    return np.array([*(told.get(one, inf) for one in classes), inf])[numbers]
