"""What accounting wants to know of a job's submission, which the picture does not hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import islice
from typing import Any

from msgspec.structs import replace

from hpcmesos.master.cluster import Attempt
from hpcmesos.master.effects import Desk
from hpcmesos.master.submissions import Submissions
from hpcmesos.queue.records import JobRecord

_BILLED = ("account", "resource_list")
_AT_ONCE = 500
"""Submissions that are read together: each has a user's environment."""


def of(submission: Mapping[str, Any]) -> dict[str, Any]:
    """That part of it which is billed."""
    return {key: submission.get(key) or {} for key in _BILLED}


class Billing:
    """Keeps it with each attempt."""

    def __init__(self, desk: Desk, submissions: Submissions) -> None:
        self._desk = desk
        self._submissions = submissions

    def of_job(self, job: JobRecord, attempt: Attempt) -> JobRecord:
        """The job with what accounting wants to know; the picture's jobs have no submission."""
        if not attempt.billing:
            self._read(attempt)
        return replace(job, submission=attempt.billing)

    def _read(self, attempt: Attempt) -> None:
        """With those of other jobs: after a takeover none is known, and nodes have many ends to tell."""
        unread = defaultdict(list, {attempt.key.seq: [attempt]})
        for one in self._desk.cluster.attempts.values():
            if not one.billing:
                unread[one.key.seq].append(one)
        seqs = list(islice(unread, _AT_ONCE))
        found = self._submissions.currents(seqs)
        for seq in seqs:
            for one in unread[seq]:
                one.billing = of(found[seq])
