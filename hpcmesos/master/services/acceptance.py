"""What the server says to a job: whether it is let into its queue, and could ever run."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from hpcmesos.errors import ArrayTooLarge, NeverFits, QueueLimit, TooManyJobs, UsageError
from hpcmesos.gang.snapshot import JobView
from hpcmesos.master.auth import Caller
from hpcmesos.master.limits import why_never
from hpcmesos.master.services.admission import Applicant, Tally, admit, check_numbers, execution_group
from hpcmesos.master.services.hosts import peer_of
from hpcmesos.master.services.site import Site
from hpcmesos.model import JobId, Request
from hpcmesos.pbs.personalities import Personality
from hpcmesos.pbs.submission import Submission
from hpcmesos.queue.records import QueueRecord
from hpcmesos.queue.room import Kind


@dataclass(frozen=True, slots=True)
class Accepted:
    """Where a job goes, and to whom it is accounted."""

    queue: QueueRecord
    applicant: Applicant


class Acceptance:
    """Judges the jobs of one request of one user. Those that ask for the same are judged once; each is counted."""

    def __init__(self, site: Site, caller: Caller, personality: Personality) -> None:
        self._site = site
        self._caller = caller
        self._personality = personality
        self._tally = Tally(site.store)
        self._known: dict[Hashable, Accepted] = {}

    @property
    def room(self) -> Mapping[Kind, int]:
        """What limits leave for those that were accepted; see `Store.submit`."""
        return self._tally.room

    def accept(self, built: Submission) -> Accepted:
        """Where this job goes; it counts as one that is there from now on.

        Raises:
            Rejection: a leaf of it, for what is refused.
        """
        if built.array is not None:
            check_array(self._site, built, self._personality)
        wanted = self._wanted(built)
        found = self._known.get(wanted)
        if found is not None:
            try:
                check_numbers(self._site, found.queue, found.applicant, self._tally)
            except TooManyJobs:  # a route queue may have another destination
                found = None
        if found is None:
            found = self._known[wanted] = self._judge(built)
        self._tally.add(found.queue.name, found.applicant)
        return found

    def again(self, built: Submission, accepted: Accepted) -> Accepted:
        """As accept(), for one more job that asks for what ``built`` does, which was accepted so."""
        try:
            check_numbers(self._site, accepted.queue, accepted.applicant, self._tally)
        except TooManyJobs:  # a route queue may have another destination
            return self.accept(built)
        self._tally.add(accepted.queue.name, accepted.applicant)
        return accepted

    def _wanted(self, built: Submission) -> Hashable:
        """All that the verdict depends on."""
        flags = (built.interactive, built.array is not None, built.rerunable, built.gpu_idle)
        resources = tuple(built.resource_list.items())
        return built.queue, built.request, resources, built.group_list, built.project, flags

    def _judge(self, built: Submission) -> Accepted:
        site, caller = self._site, self._caller
        applicant = Applicant(
            user=caller.user,
            peer=peer_of(caller),
            resources=built.resource_list,
            groups=built.group_list,
            interactive=built.interactive,
            array=built.array is not None,
            rerunable=built.rerunable,
            lets_idle=built.gpu_idle == "allowed",
            project=built.project or caller.project,
            group=execution_group(caller.user, built.group_list),
        )
        queue = admit(site, built.queue or site.default_queue, applicant, tally=self._tally)
        check_fits(site, built.request)
        asked = JobView(
            JobId(0, ""),
            built.request,
            0,
            0.0,
            queue.name,
            user=caller.user,
            project=applicant.project,
            group=applicant.group,
        )
        check_ever(site, asked)
        return Accepted(queue, applicant)


def check_array(site: Site, built: Submission, personality: Personality) -> None:
    """What a family refuses of arrays, and the site's limit. Raises a Rejection."""
    assert built.array is not None
    given = site.server.recent()
    most = min(site.settings.max_array_size, int(given.get("max_job_array_size", 2**31)))
    if built.array.size > most:
        raise ArrayTooLarge(
            f"Array job exceeds server or queue size limit: {built.array.size} elements, at most {most}"
        )
    if (slots := int(given.get("max_slot_limit", 2**31))) < (built.array.limit or built.array.size):
        raise QueueLimit(f"Requested slot limit is too large, limit is {slots}")
    if personality is Personality.PBSPRO and built.array.size < 2:
        raise UsageError("illegal -J value: an array has at least two elements")
    if personality is Personality.PBSPRO and not built.rerunable:
        raise UsageError("cannot submit non-rerunable Array Job")


def check_ever(site: Site, job: JobView) -> None:
    """Raises QueueLimit for a job that a limit would keep waiting for ever."""
    if reason := why_never(job, site.queues.recent(), site.server.recent()):
        raise QueueLimit(f"Job violates queue and/or server resource limits: {reason.text}")


def check_fits(site: Site, request: Request) -> None:
    """Raises NeverFits; what was known a moment ago may accept a job, only a fresh look may refuse it."""
    known = site.nodes.recent()
    if known.nodes and known.why_never(request) is None:
        return
    if reason := site.nodes.fresh().why_never(request):
        raise NeverFits(f"Job exceeds what the cluster could ever give: {reason.text}")
