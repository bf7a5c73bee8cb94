"""What arrays are beside their elements: counts, deletion of what has not started, their own end."""

from __future__ import annotations

from hpcmesos.master.effects import Desk
from hpcmesos.model import Cause, JobState
from hpcmesos.queue import accounting
from hpcmesos.queue import arrays as ranges
from hpcmesos.queue.arrays import Ranges
from hpcmesos.queue.records import JobKey, JobRecord

PARTLY_FAILED = 1
"""Exit_status of an array of which not all elements ended with 0 (OpenPBS)."""


def without(parent: JobRecord, gone: Ranges) -> dict[str, Ranges]:
    """What of an array changes when elements that have no row are deleted."""
    left = ranges.subtract(parent.todo or (), gone)
    return {"todo": left, "deleted": ranges.union(parent.deleted or (), gone)}


class Arrays:
    """Handlers for arrays, called within those of jobs; they note effects on the desk."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def find(self, seq: int) -> JobRecord | None:
        """The parent of a live array; None: the job is none."""
        job = self.desk.cluster.jobs.get(JobKey(seq))
        return job if job is not None and job.array_spec is not None else None

    def rows(self, parent: JobRecord, wanted: Ranges) -> list[JobRecord]:
        """The elements that have a row and are not complete, by index."""
        live = self.desk.cluster.arrays.live.get(parent.seq, ())
        keys = [key for key in live if key.index is not None and ranges.contains(wanted, key.index)]
        return [self.desk.cluster.jobs[key] for key in sorted(keys, key=lambda key: key.index or 0)]

    def element_over(self, element: JobRecord) -> None:
        """A row of an element is complete now: it counts, and was perhaps the last."""
        if element.index is None:
            return
        succeeded = int(element.exit_status == 0)
        self.desk.tally(element.seq, succeeded, 1 - succeeded)
        self.settle(element.seq)

    def delete_waiting(self, parent: JobRecord, wanted: Ranges, user: str, message: str) -> None:
        """Elements without a row will never get one; the parent tells of them."""
        spec = parent.array_spec
        assert spec is not None
        gone = ranges.intersect(parent.todo or (), wanted)
        if not spec.count(gone):
            return
        changes = without(parent, gone)
        payload = {"elements": spec.text(gone), "user": user, "message": message}
        self.desk.move(parent, parent.state, "elements deleted", payload, **changes)
        self.desk.effects.recheck.add(parent.seq)  # those elements are over for who waits for them
        name = f"{parent.seq}[{spec.text(gone)}].{parent.server}"
        self.desk.effects.accounting.append(accounting.deleted(parent, user, self.desk.now, name))

    def settle(self, seq: int) -> None:
        """Completes an array of which no element waits or runs; one of which none ever ran has no exit status."""
        parent = self.find(seq)
        if parent is None or parent.waiting_elements or self.desk.cluster.arrays.live.get(seq):
            return
        assert parent.array_spec is not None
        ran = bool(parent.succeeded or parent.failed)
        status = 0 if parent.succeeded == parent.array_spec.size else PARTLY_FAILED
        cause = (Cause.APP if status else Cause.OK) if ran else Cause.DELETED
        changes = {"cause": cause} | ({"exit_status": status} if ran else {})
        done = self.desk.move(
            parent, JobState.COMPLETE, "ended", {"cause": cause, "exit_status": status}, **changes
        )
        if ran:
            self.desk.effects.accounting.append(accounting.array_ended(done, self.desk.now))
