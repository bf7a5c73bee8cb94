"""The total order in which waiting jobs are considered."""

from __future__ import annotations

from collections.abc import Iterable

from hpcmesos.gang.snapshot import JobView


def order_key(job: JobView) -> tuple[int, float, int, str, int]:
    """Sorts first what starts first: high priority, then long waiting, then the lower id; never a tie."""
    index = job.id.index
    return (-job.priority, job.queued_at, job.id.seq, job.id.server, -1 if index is None else index)


def in_order(jobs: Iterable[JobView]) -> list[JobView]:
    """The jobs, first to start first; independent of the order they come in."""
    return sorted(jobs, key=order_key)
