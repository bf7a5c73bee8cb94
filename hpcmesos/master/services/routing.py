"""Jobs that wait in route queues: their destinations are tried again from time to time (pbs_queue_attributes(7B)).

Every API process does so, for it knows access lists and limits; the leader carries out the first wish and drops those
that it has outrun.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Mapping
from dataclasses import astuple, dataclass, field
from datetime import UTC, datetime

from hpcmesos.errors import Rejection
from hpcmesos.master.services import wishes
from hpcmesos.master.services.admission import admit, applicant_of, routes
from hpcmesos.master.services.site import Site
from hpcmesos.model import JobState
from hpcmesos.queue.records import JobFilter, JobRecord

log = logging.getLogger(__name__)

LOOK = 1.0
"""Seconds between two looks whether a retry is due."""
RETRY = 30.0
"""Seconds between two tries, if the queue's ``route_retry_time`` does not say so."""
USER = "router"
"""Whose wishes these are."""


@dataclass(slots=True)
class Router:
    """``_tried``: when each queue was last gone through, on our clock."""

    site: Site
    _tried: dict[str, float] = field(default_factory=dict)

    def look(self) -> None:
        """Sends the jobs on that a destination takes now."""
        for name, queue in self.site.queues.recent().items():
            if not routes(queue) or not queue.started or not self._due(name, queue.attributes):
                continue
            refused: set[Hashable] = set()
            for job in self._waiting(name, queue.attributes):
                self._route(job, queue.attributes, refused)

    def _due(self, name: str, attributes: Mapping[str, str]) -> bool:
        pause, now = float(attributes.get("route_retry_time", RETRY)), time.monotonic()
        if now - self._tried.get(name, float("-inf")) < pause:
            return False
        self._tried[name] = now
        return True

    def _waiting(self, queue: str, attributes: Mapping[str, str]) -> list[JobRecord]:
        states = {JobState.QUEUED}
        if attributes.get("route_held_jobs") == "True":
            states.add(JobState.HELD)
        if attributes.get("route_waiting_jobs") == "True":
            states.add(JobState.WAITING)
        wanted = JobFilter(queues=(queue,), states=frozenset(states), elements=False)
        return self.site.store.jobs(wanted)

    def _route(self, job: JobRecord, attributes: Mapping[str, str], refused: set[Hashable]) -> None:
        """``refused``: whose likes nobody has taken in this look; a long queue has few kinds of jobs."""
        applicant, found = applicant_of(job), job.queue
        kind = tuple(str(value) for value in astuple(applicant))
        if kind not in refused and self._has_changed(job):
            return  # the next look takes it as it is then
        try:
            if kind not in refused:
                found = admit(self.site, job.queue, applicant).name
        except Rejection as error:
            log.info("no destination takes job=%s: %s", job.id, error)
        if found != job.queue:
            self._wish(wishes.MOVE, job, {"queue": found, "from": job.queue})
            return
        refused.add(kind)
        lifetime = float(attributes.get("route_lifetime", 0))
        if lifetime and (datetime.now(UTC) - job.created_at).total_seconds() > lifetime:
            text = f"no destination of route queue {job.queue} has taken it within {lifetime:g} s"
            self._wish(wishes.DELETE, job, {"message": text, "from": job.queue})

    def _has_changed(self, job: JobRecord) -> bool:
        """Since the list was read: each job of it that was sent on has waited for the leader."""
        now = self.site.store.job(job.seq)
        return now is None or _judged_by(now) != _judged_by(job)

    def _wish(self, kind: str, job: JobRecord, payload: Mapping[str, object]) -> None:
        """Comes back when it has been carried out: the next job finds the destination fuller by one."""
        sent = self.site.store.wish(kind, job.seq, USER, {"index": job.index, **payload})
        self.site.notifier.poke()
        wishes.await_taken(self.site.store, [sent])


def _judged_by(job: JobRecord) -> tuple[object, ...]:
    return job.queue, job.state, applicant_of(job)
