"""How much may run at once: from attributes that qmgr sets to the scheduler's limits. Pure.

======================= ============ ==========================================================================
attribute               of           limits
======================= ============ ==========================================================================
max_running             both         jobs at once
max_user_run            both         jobs at once of each user
max_group_run           both         jobs at once of each group (``egroup``) of users
max_run                 both         the same in OpenPBS' form: ``[o:PBS_ALL=9],[u:PBS_GENERIC=4],[u:ann=6],[p:chem=8]``
max_run_res.ngpus       both         GPUs at once, in that form
max_run_res.ncpus       both         CPUs at once, in that form
max_run_res.gpuhours    both         GPU-hours that what runs may still take by its walltimes, in that form
======================= ============ ==========================================================================

A limit that names a user, group or project holds instead of the generic one (pbs_queue_attributes(7B) of OpenPBS).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Literal

from hpcmesos.gang.limits import never
from hpcmesos.gang.snapshot import JobView, Limit
from hpcmesos.gang.tables import Shape
from hpcmesos.model import PendingReason
from hpcmesos.queue.records import QueueRecord

_ENTRY = re.compile(r"\[([ugpo]):([^=\]]+)=(\d+)\]")
_SCOPES = {"u": "user", "g": "group", "p": "project"}
_Unit = Literal["jobs", "gpus", "cpus", "gpu_hours"]
_FORMS: Mapping[str, _Unit] = {
    "max_run": "jobs",
    "max_run_res.ngpus": "gpus",
    "max_run_res.ncpus": "cpus",
    "max_run_res.gpuhours": "gpu_hours",
}


def limits(queues: Mapping[str, QueueRecord], server: Mapping[str, str]) -> tuple[Limit, ...]:
    """All limits that are set."""
    found = list(_limits(server, ""))
    for name, queue in queues.items():
        found += _limits(queue.attributes, name)
    return tuple(found)


def why_never(
    job: JobView, queues: Mapping[str, QueueRecord], server: Mapping[str, str]
) -> PendingReason | None:
    """The limit that the job exceeds by itself; None: it may run, if nothing else does."""
    return never(job, Shape.of(job), limits(queues, server))


def _limits(attributes: Mapping[str, str], queue: str) -> Iterator[Limit]:
    if "max_running" in attributes:
        yield _all(queue, "jobs", int(attributes["max_running"]))
    if "max_user_run" in attributes:
        yield Limit("user", jobs=int(attributes["max_user_run"]), queue=queue)
    if "max_group_run" in attributes:
        yield Limit("group", jobs=int(attributes["max_group_run"]), queue=queue)
    for name, unit in _FORMS.items():
        if name in attributes:
            yield from _read(attributes[name], unit, queue)


def _read(text: str, unit: _Unit, queue: str) -> Iterator[Limit]:
    if text.isdigit():
        yield _all(queue, unit, int(text))
    entries = [(letter, name, int(most)) for letter, name, most in _ENTRY.findall(text)]
    for letter, name, most in entries:
        if letter == "o":
            yield _all(queue, unit, most)
        elif name == "PBS_GENERIC":
            named = frozenset(other for kind, other, _ in entries if kind == letter)
            yield _limit(_SCOPES[letter], "*", queue, unit, most, named - {name})
        else:
            yield _limit(_SCOPES[letter], name, queue, unit, most)


def _all(queue: str, unit: _Unit, most: int) -> Limit:
    return _limit("queue", queue, queue, unit, most) if queue else _limit("server", "", "", unit, most)


def _limit(
    scope: str, name: str, queue: str, unit: _Unit, most: int, but: frozenset[str] = frozenset()
) -> Limit:
    return Limit(
        scope,
        name or "*",
        jobs=most if unit == "jobs" else None,
        gpus=most if unit == "gpus" else None,
        cpus=most if unit == "cpus" else None,
        gpu_hours=most if unit == "gpu_hours" else None,
        queue=queue,
        but=but,
    )
