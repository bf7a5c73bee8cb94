"""May this job be in this queue? Access lists, limits of its size, numbers of jobs; and the defaults of a queue."""

from __future__ import annotations

import grp
import os
import pwd
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

from hpcmesos.errors import InvalidValue, QueueDenied, QueueDisabled, QueueLimit, TooManyJobs, UnknownQueue
from hpcmesos.master.bounds import of_queue, of_server
from hpcmesos.master.idleness import ASKED, Policy
from hpcmesos.master.services.hosts import Whereabouts
from hpcmesos.master.services.site import Site
from hpcmesos.pbs.manager_attributes import members, resources
from hpcmesos.pbs.resources import SHAPES
from hpcmesos.queue.reads import Reads
from hpcmesos.queue.records import JobRecord, QueueRecord
from hpcmesos.queue.room import Kind
from hpcmesos.units import parse_duration, parse_size

_DURATIONS = frozenset({"walltime", "cput", "pcput"})
_SIZES = frozenset({"mem", "pmem", "vmem", "pvmem", "file"})
_LIMITS = frozenset({"max_run", "max_run_res", "max_queued"})  # in OpenPBS' form, by users, groups, projects
_MOST_HOPS = 8  # of route queues


@dataclass(frozen=True, slots=True)
class Applicant:
    """Whose job it is, from where, and what it asks for as ``Resource_List`` shows it.

    ``peer``: where he is, see hosts.peer_of().
    """

    user: str
    peer: str
    resources: Mapping[str, str]
    groups: tuple[str, ...] = ()  # -W group_list; empty: those of the user
    interactive: bool = False
    array: bool = False
    rerunable: bool = True
    lets_idle: bool = False  # -W gpu_idle=allowed
    project: str = ""
    group: str = ""  # that they are accounted to; empty: not known
    new: bool = True  # False: they are in another queue until now

    @property
    def all_groups(self) -> list[str]:
        """What access lists judge: of the groups that are asked for those that are known to be the user's."""
        known = groups_of(self.user)
        asked = [group.partition("@")[0] for group in self.groups]
        return [group for group in asked if group in known] if asked else known


def applicant_of(job: JobRecord) -> Applicant:
    """Of a job that is there."""
    submission = job.submission
    return Applicant(
        user=job.owner,
        peer=str(submission.get("peer", "")),
        resources=submission.get("resource_list", {}),
        groups=tuple(submission.get("group_list", ())),
        interactive=bool(submission.get("interactive")),
        array=job.array_spec is not None,
        rerunable=job.rerunable,
        lets_idle=submission.get("gpu_idle") == "allowed",
        project=job.project,
        group=job.egroup,
        new=False,
    )


def find_queue(site: Site, name: str) -> QueueRecord:
    """The queue of that name; a fresh look when it is not known or takes no jobs.

    Raises:
        UnknownQueue: there is none.
    """
    queue = site.queues.recent().get(name)
    if queue is None or not queue.enabled:
        queue = site.queues.fresh().get(name)
    if queue is None:
        known = ", ".join(sorted(site.queues.recent())) or "none yet"
        raise UnknownQueue(f"Unknown queue '{name}'; known are: {known}")
    return queue


def default_resources(site: Site, name: str, asked: Mapping[str, str]) -> dict[str, str]:
    """What a job of this queue gets that does not ask for it itself.

    The queue's default counts before the server's; a walltime that nobody gives is the longest that is allowed
    (T:src/server/svr_jobfunc.c set_resc_deflt). A default shape is not added to a shape.
    """
    queue = site.queues.recent().get(name)
    attributes: Mapping[str, str] = queue.attributes if queue is not None else {}
    server = site.server.recent()
    found = resources(server, "resources_default") | resources(attributes, "resources_default")
    for longest in (server, attributes):
        if "walltime" not in found and (most := longest.get("resources_max.walltime")):
            found["walltime"] = most
    if not SHAPES.isdisjoint(asked):
        found = {key: value for key, value in found.items() if key not in SHAPES}
    return {key: value for key, value in found.items() if key not in asked and key != "nodect"}


_AMPLE, _FEW = 20_000, 100
"""Where there is room for so many jobs a request for few claims none: as many as can come at once do not fill it, and
to let in one after the other, and count all each time, would cost much.
"""


class Tally:
    """How many jobs are not over, those among them that come in by the same request and are not stored yet.

    ``room``: how many of each kind may be stored when those do come in; until then others are counted, too.
    """

    def __init__(self, store: Reads) -> None:
        self.room: dict[Kind, int] = {}
        self._store = store
        self._stored: dict[Kind, int] = {}
        self._coming: Counter[tuple[str, str, str, str]] = Counter()

    def add(self, queue: str, applicant: Applicant) -> None:
        """One comes in."""
        self._coming[queue, applicant.user, applicant.group, applicant.project] += 1

    def count(self, kind: Kind) -> int:
        """Those of a kind."""
        if kind not in self._stored:
            self._stored[kind] = self._store.live_count(kind)
        return self._stored[kind] + self._come(kind)

    def let_in(self, kind: Kind, most: int) -> None:
        """One more of a kind of which ``most`` may be there; where there is room for many nobody counts once more."""
        if self._come(kind) < _FEW and most - self.count(kind) > _AMPLE:
            return
        room = most - self._come(kind) - 1
        self.room[kind] = min(room, self.room.get(kind, room))

    def _come(self, kind: Kind) -> int:
        names = ("queue", "owner", "egroup", "project")
        wanted = [(names.index(name), value) for name, value in kind]
        coming = (
            number
            for one, number in self._coming.items()
            if all(one[place] == value for place, value in wanted)
        )
        return sum(coming)


def admit(
    site: Site, name: str, applicant: Applicant, *, operator: bool = False, tally: Tally | None = None
) -> QueueRecord:
    """The queue that takes the job: ``name``, or behind a route queue its first destination that would.

    The route queue itself, where the job waits, when it is stopped or one that is disabled or full may take it later.

    ``operator``: one moves the job; then only the queue has to exist. ``tally``: counts the jobs of a request.

    Raises:
        UnknownQueue, QueueDisabled, QueueDenied, QueueLimit, TooManyJobs: why it does not.
    """
    queue = find_queue(site, name)
    if operator and not routes(queue):
        return queue
    return _admit(site, queue, applicant, tally or Tally(site.store), hops=0)


def _admit(site: Site, queue: QueueRecord, applicant: Applicant, tally: Tally, hops: int) -> QueueRecord:
    if not queue.enabled:
        raise QueueDisabled(f"Queue '{queue.name}' is not enabled")
    if hops == 0 and queue.attributes.get("from_route_only") == "True":
        raise QueueDenied(f"queue {queue.name} takes jobs from route queues only")
    check_group_list(site, queue, applicant.user, applicant.groups)
    _check_access(f"queue {queue.name}", queue.attributes, applicant)
    _check_access("the server", site.server.recent(), applicant)
    if routes(queue):
        return _route(site, queue, applicant, tally, hops)
    _check_types(queue, applicant)
    _check_idle(site, queue, applicant)
    check_limits(site, queue, applicant.resources)
    check_numbers(site, queue, applicant, tally)
    return queue


def routes(queue: QueueRecord) -> bool:
    """Whether jobs only pass through it."""
    return queue.attributes.get("queue_type") == "Route"


def _route(site: Site, queue: QueueRecord, applicant: Applicant, tally: Tally, hops: int) -> QueueRecord:
    if hops >= _MOST_HOPS:
        raise QueueDenied(f"queue {queue.name} routes in a circle")
    if not queue.started and hops == 0:
        return queue
    refusals: list[str] = []
    for_now = False
    for destination in members(queue.attributes.get("route_destinations", "")):
        try:
            found = find_queue(site, destination.partition("@")[0])
            return _admit(site, found, applicant, tally, hops=hops + 1)
        except (UnknownQueue, QueueDisabled, QueueDenied, QueueLimit, TooManyJobs) as error:
            refusals.append(f"{destination}: {error}")
            for_now = for_now or isinstance(error, QueueDisabled | TooManyJobs)
    if for_now and hops == 0:
        return queue
    why = "; ".join(refusals) or "it has no destinations"
    raise QueueLimit(f"Job rejected by all possible destinations of queue {queue.name} ({why})")


def check_limits(site: Site, queue: QueueRecord, asked: Mapping[str, str]) -> None:
    """Raises QueueLimit when the request is larger or smaller than the queue, or else the server, allows."""
    server = site.server.recent()
    most = resources(server, "resources_max") | resources(queue.attributes, "resources_max")
    least = resources(server, "resources_min") | resources(queue.attributes, "resources_min")
    for name, limit in most.items():
        if (given := _amount(name, asked)) is not None and given > _read(name, limit):
            raise QueueLimit(_outside(queue.name, name, asked, f"at most {limit}"))
    for name, limit in least.items():
        if (given := _amount(name, asked)) is not None and given < _read(name, limit):
            raise QueueLimit(_outside(queue.name, name, asked, f"at least {limit}"))


def _outside(queue: str, name: str, asked: Mapping[str, str], allowed: str) -> str:
    return (
        f"Job exceeds queue resource limits MSG=cannot satisfy queue {queue} requirement:"
        f" {name} is {asked.get(name, '0')}, {allowed}"
    )


def _amount(name: str, asked: Mapping[str, str]) -> float | None:
    """What the job asks for; None: nothing that could be compared."""
    text = asked.get(name)
    if name == "nodes":
        text = asked.get("nodect")
    elif name in ("procct", "procs"):
        text = asked.get("procs", asked.get("ncpus"))
    if text is None:
        return None
    try:
        return _read(name, text)
    except InvalidValue:
        return None


def _read(name: str, text: str) -> float:
    if name in _DURATIONS:
        return parse_duration(text)
    if name in _SIZES:
        return parse_size(text)
    if text.isascii() and text.isdigit():
        return int(text)
    raise InvalidValue(f"{name}={text} is no number")


def _check_types(queue: QueueRecord, applicant: Applicant) -> None:
    """``disallowed_types`` of Torque: batch interactive rerunable nonrerunable fault_tolerant job_array."""
    for word in members(queue.attributes.get("disallowed_types", "")):
        forbidden = {
            "interactive": applicant.interactive,
            "batch": not applicant.interactive,
            "job_array": applicant.array,
            "rerunable": applicant.rerunable,
            "nonrerunable": not applicant.rerunable,
        }
        if forbidden.get(word, False):
            raise QueueDenied(f"{word} job is not allowed for queue: queue is {queue.name}")


def _check_idle(site: Site, queue: QueueRecord, applicant: Applicant) -> None:
    """A job may ask that nobody minds its idle GPUs where ``gpu_idle_exempt`` names "asked", or nobody minds anyhow."""
    policy = Policy.of(queue.attributes, site.server.recent())
    if applicant.lets_idle and policy is not None and ASKED not in policy.exempt:
        raise QueueDenied(f"queue {queue.name} does not let jobs leave GPUs idle: drop -W gpu_idle=allowed")


def _check_access(where: str, attributes: Mapping[str, str], applicant: Applicant) -> None:
    """The access lists that are switched on; all must let the job in, with ``acl_logic_or`` one of them."""
    verdicts: list[bool] = []
    if attributes.get("acl_user_enable") == "True":
        is_user = partial(_is_user, applicant.user, Whereabouts(applicant.peer))
        verdicts.append(_lets_in(attributes.get("acl_users", ""), is_user))
    if attributes.get("acl_group_enable") == "True":
        groups = set(applicant.all_groups)
        if attributes.get("acl_group_sloppy") == "True":
            groups |= set(groups_of(applicant.user))
        verdicts.append(
            _lets_in(attributes.get("acl_groups", ""), lambda entry, bars: entry.partition("@")[0] in groups)
        )
    if attributes.get("acl_host_enable") == "True":
        place = Whereabouts(applicant.peer)  # its own: it has time to ask, whatever the other lists took
        verdicts.append(
            _lets_in(attributes.get("acl_hosts", ""), lambda entry, bars: place.fits(entry, bars=bars))
        )
    if not verdicts:
        return
    together = any if attributes.get("acl_logic_or") == "True" else all
    if not together(verdicts):
        raise QueueDenied(
            f"Unauthorized Request MSG=user {applicant.user}@{applicant.peer} is not allowed in {where}"
        )


def _lets_in(entries: str, fits: Callable[[str, bool], bool]) -> bool:
    """``[+|-]WHO,...``: the first entry that fits decides; none: no.

    ``fits(WHO, BARS)``; BARS: the entry has a minus, and fits where that is not certain.
    """
    for entry in members(entries):
        bars = entry.startswith("-")
        if fits(entry.lstrip("+-"), bars):
            return not bars
    return False


def _is_user(name: str, place: Whereabouts, entry: str, bars: bool) -> bool:
    user, _, host = entry.partition("@")
    return fnmatchcase(name, user) and (not host or place.fits(host, bars=bars))


def execution_group(user: str, asked: Sequence[str]) -> str:
    """The group that a job is accounted to: the first of ``-W group_list``, else the user's own; "": not known here.

    Of a user who is not known here the group is what he says; check_group_list() refuses it where anything hangs on it.

    Raises:
        InvalidValue: the user is no member of the group.
    """
    groups = groups_of(user) if asked else groups_of(user)[:1]
    wanted = [group.partition("@")[0] for group in asked]
    if wanted and groups and wanted[0] not in groups:
        raise InvalidValue(f"Bad GID for job execution: {user} is no member of group {wanted[0]}")
    return (wanted or groups or [""])[0]


def check_group_list(site: Site, queue: QueueRecord, user: str, asked: Sequence[str]) -> None:
    """``-W group_list`` of a user who is not known on this master is his word alone: no limit or list may rest on it.

    Raises:
        QueueDenied: groups decide or are limited in this queue or on the server.
    """
    if not asked or groups_of(user):
        return
    if any(map(_minds_groups, (queue.attributes, site.server.recent()))):
        raise QueueDenied(
            f"Bad GID for job execution: queue {queue.name} minds groups, and this master knows none of {user};"
            " leave out -W group_list"
        )


def _minds_groups(attributes: Mapping[str, str]) -> bool:
    if "max_group_run" in attributes or attributes.get("acl_group_enable") == "True":
        return True
    return any("[g:" in text for name, text in attributes.items() if name.partition(".")[0] in _LIMITS)


def groups_of(user: str) -> list[str]:
    """The names of the user's groups, the first one first; none for a user unknown here."""
    try:
        entry = pwd.getpwnam(user)
    except (KeyError, ValueError):
        return []
    found = []
    for number in os.getgrouplist(user, entry.pw_gid):
        try:
            found.append(grp.getgrgid(number).gr_name)
        except KeyError:
            continue
    return found


def check_numbers(site: Site, queue: QueueRecord, applicant: Applicant, tally: Tally) -> None:
    """Raises TooManyJobs when the queue, or the server, has as many jobs as it may: of all, of one user and so on."""
    who = applicant.user, applicant.group, applicant.project
    bounds = list(of_queue(queue, *who))
    if applicant.new:
        bounds += of_server(site.server.recent(), *who)
    for bound in bounds:
        if (there := tally.count(bound.kind)) >= bound.most:
            raise TooManyJobs(f"{bound.text} MSG={bound.told(there)}")
    for bound in bounds:
        tally.let_in(bound.kind, bound.most)
