"""An array's elements as jobs: a row begins as a copy of the parent; without one, the parent tells of them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from hpcmesos.model import Cause, JobState
from hpcmesos.queue import arrays
from hpcmesos.queue.arrays import Ranges
from hpcmesos.queue.records import JobRecord

DELETED_BEFORE = "deleted before it started"

_NO_PARENT: dict[str, Any] = dict.fromkeys(("array_spec", "todo", "deleted", "succeeded", "failed"))
_NO_START: dict[str, Any] = {
    **_NO_PARENT,
    "exit_status": None,
    "cause": None,
    "started_at": None,
    "ended_at": None,
    "comment": "",
}


def started(parent: JobRecord, index: int, now: datetime) -> JobRecord:
    """The element whose first attempt begins now; its row has no submission, readers put the parent's there."""
    return replace(
        parent,
        **_NO_START
        | {
            "index": index,
            "state": JobState.RUNNING,
            "attempt": 1,
            "started_at": now,
            "dependencies": (),
            "holds": "",
        },
    )


def without_row(parent: JobRecord, index: int) -> JobRecord | None:
    """An element that waits or was deleted before it started; None: the array has no such element without a row.

    When one was deleted is not kept: it is complete without ``ended_at``.
    """
    spec = parent.array_spec
    if spec is None or index not in spec:
        return None
    for kind, ranges in _kinds(parent):
        if arrays.contains(ranges, index):
            return replace(kind, index=index)
    return None


def all_without_row(parent: JobRecord) -> Iterator[tuple[JobRecord, range | list[int]]]:
    """As without_row(), for all of them: what they have in common (its ``index`` means nothing), and their indexes."""
    if parent.array_spec is not None:
        for kind, ranges in _kinds(parent):
            if members := list(parent.array_spec.members(ranges)):
                yield kind, members


def states_without_row(parent: JobRecord) -> tuple[JobState, JobState]:
    """The state of elements that wait, and of those that were deleted."""
    waits = {JobState.HELD, JobState.WAITING}
    return parent.state if parent.state in waits else JobState.QUEUED, JobState.COMPLETE


def _kinds(parent: JobRecord) -> tuple[tuple[JobRecord, Ranges], tuple[JobRecord, Ranges]]:
    waits, over = states_without_row(parent)
    waiting = replace(parent, **_NO_START | {"state": waits})
    gone = {"state": over, "cause": Cause.DELETED, "comment": DELETED_BEFORE}
    return (waiting, parent.todo or ()), (replace(parent, **_NO_START | gone), parent.deleted or ())
