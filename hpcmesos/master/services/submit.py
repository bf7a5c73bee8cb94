"""qsub: from the words and the script to a job in the database, or to one clear line."""

from __future__ import annotations

import base64
import binascii
import hashlib
import pwd
import re
import shlex
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from hpcmesos.api_schema import CommandReply, CommandRequest, Need, Submission, SubmitReply, SubmitRequest
from hpcmesos.errors import (
    BadDependency,
    HpcmesosError,
    InvalidScript,
    InvalidValue,
    TooManyJobs,
    Unauthorized,
    UnknownJob,
    UsageError,
)
from hpcmesos.master import auth
from hpcmesos.master.auth import Caller
from hpcmesos.master.objects import fenced
from hpcmesos.master.services import output_paths, secrets, why, wishes
from hpcmesos.master.services.acceptance import Acceptance, Accepted
from hpcmesos.master.services.admission import default_resources
from hpcmesos.master.services.lookup import find_own
from hpcmesos.master.services.outputs import gateways_of
from hpcmesos.master.services.replies import information
from hpcmesos.master.services.site import Site, client_zone
from hpcmesos.model import JobId, JobState
from hpcmesos.pbs import submission as pbs
from hpcmesos.pbs.echo import understood
from hpcmesos.pbs.kin import Words
from hpcmesos.pbs.options import ParsedCommand
from hpcmesos.pbs.paths import PathTemplate
from hpcmesos.pbs.personalities import Personality
from hpcmesos.queue.dependencies import Dependency, DependencyKind
from hpcmesos.queue.records import JobFilter, JobKey, NewJob, RequestKey
from hpcmesos.queue.room import Kind

ALWAYS_SENT = frozenset({"HOME", "LOGNAME", "PATH", "MAIL", "SHELL", "TZ", "LANG", "PBS_DPREFIX"})
"""Variables that clients send unasked where they are set."""

_ASKED_BEFORE = 4096
_PIECE = 64 * 1024
"""Bytes of script, environment and words by which a job counts as one more."""
_NUMBERED = re.compile(r"(\d+\[\](?:\.[^\[\]]+)?)\[(\d{1,9})\]", re.ASCII)


def qsub(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """Submits a job, or tells what the client has to send along first.

    Raises:
        Rejection: a leaf of it; nothing was stored.
    """
    auth.check_may_submit(caller, site.settings)
    asked = pbs.needs(request.argv)
    if asked.information is not None:
        told = information("qsub", request.argv, Personality(request.personality))
        assert told is not None
        return told
    if asked.interactive and not request.terminal:
        return _ask_for_terminal(caller, request)
    if request.submit_filter and not request.filtered:
        return CommandReply(need=Need(script=asked.script, filter=True))
    if asked.script == "":
        raise InvalidScript("script file '': No such file or directory")
    if asked.script is not None and not _holds(request, asked.script):
        return CommandReply(need=Need(script=asked.script))
    script = decoded(request.script) if asked.script is not None else None
    text = None if script is None else pbs.check_script(script)
    wanted = pbs.environment_names(request.argv, text)
    if need := _missing(wanted, caller.user, request):
        return CommandReply(need=need)
    built = pbs.build_submission(request.argv, text, _context(site, caller, request))
    if built.interactive and not request.terminal and not built.dry_run:
        return _ask_for_terminal(caller, request)
    if built.interactive:
        script = None  # only its directives count (Torque)
    if built.dry_run:
        new = _accepted(site, caller, request, built, script)[0]
        start = why.dry_run(site, new, client_zone(request.environ.get("TZ")))
        return CommandReply(stdout=understood(built, new.queue) + f"start = {start}")
    try:
        seq = _take_in(site, caller, request, built, script)
    except HpcmesosError:
        # The first try may have filled the queue, or its submitter's rate: no reason to refuse the second.
        if (before := _before(site, caller, request)) is None:
            raise
        seq = before[0]
    site.notifier.poke()
    job_id = str(JobId(seq, site.settings.server, array=built.array is not None))
    then = ["wait", "--exit-status", job_id] if built.block else None
    silent = built.silent and not built.interactive  # who stays with the job has to know it
    return CommandReply(stdout="" if silent else f"{job_id}\n", then=then)


def _accepted(
    site: Site, caller: Caller, request: CommandRequest, built: pbs.Submission, script: bytes | None
) -> tuple[NewJob, int, Mapping[Kind, int]]:
    """The job as it would be stored, its weight, and the room that it needs. Raises a Rejection."""
    acceptance = Acceptance(site, caller, Personality(request.personality))
    accepted = acceptance.accept(built)
    new = structs.replace(_new_job(site, caller, request, built, accepted), script=script)
    return new, _weight(new, _check_kept(request, new)), acceptance.room


def _take_in(
    site: Site, caller: Caller, request: CommandRequest, built: pbs.Submission, script: bytes | None
) -> int:
    """The new job's number. Raises a Rejection."""
    new, weight, room = _accepted(site, caller, request, built, script)
    site.rates.take(caller.user, weight)
    while True:
        try:
            return site.store.submit(new, request.key, _digest(request), room).seq
        except TooManyJobs:  # others were quicker; a route queue may have another destination
            new, _, room = _accepted(site, caller, request, built, script)


def _before(site: Site, caller: Caller, request: CommandRequest | SubmitRequest) -> list[int] | None:
    """The jobs that the same request made when it came before; None: none."""
    if request.key is None:
        return None
    return site.store.submitted(caller.user, RequestKey(request.key, _digest(request)))


def _digest(request: CommandRequest | SubmitRequest) -> bytes:
    return hashlib.sha256(msgspec.json.encode(request)).digest()


def _ask_for_terminal(caller: Caller, request: CommandRequest) -> CommandReply:
    """The client that stays with an interactive job takes over, where there is a terminal.

    Raises:
        UsageError: the caller was asked already, so it has none.
    """
    if not _asked.first_time(caller.user, f"{request.key}:terminal" if request.key else None):
        raise UsageError("standard input and output must be a terminal for interactive job submission")
    return CommandReply(need=Need(terminal=["qsub-terminal", request.personality, *request.argv]))


def many(site: Site, caller: Caller, request: SubmitRequest) -> SubmitReply:
    """Submits all jobs of the request, or none.

    Raises:
        Rejection: a leaf of it, with the place of the job that is at fault, from 0; nothing was stored.
    """
    auth.check_may_submit(caller, site.settings)
    try:
        ids = _take_in_many(site, caller, request)
    except HpcmesosError:
        if (before := _before(site, caller, request)) is None:
            raise
        wanted = JobFilter(seqs=tuple(before), history=True, elements=False, brief=True)
        ids = [job.id for job in site.store.jobs(wanted)]
    site.notifier.poke()
    return SubmitReply(ids=[str(one) for one in ids])


def _take_in_many(site: Site, caller: Caller, request: SubmitRequest) -> list[JobId]:
    """The new jobs. Raises a Rejection."""
    news, desk = _judged(site, caller, request)
    site.rates.take(caller.user, desk.weight)
    while True:
        try:
            done = site.store.submit_many(news, request.key, _digest(request), desk.room)
        except TooManyJobs:  # others were quicker; a route queue may have another destination
            news, desk = _judged(site, caller, request)
        else:
            break
    arrays = (new.array_spec is not None for new in news)
    server = site.settings.server
    return [JobId(one.seq, server, array=array) for one, array in zip(done, arrays, strict=True)]


def _judged(site: Site, caller: Caller, request: SubmitRequest) -> tuple[list[NewJob], _Desk]:
    """The jobs as they would be stored. Raises a Rejection."""
    desk = _Desk(site, caller, request)
    news = []
    for place, job in enumerate(request.jobs):
        try:
            news.append(desk.take(job))
        except HpcmesosError as error:
            raise type(error)(f"job {place}: {error}") from error
    return news, desk


def _weight(new: NewJob, size: int) -> int:
    """As how many it counts of those that a user may submit in a time: one that has us keep much as several.

    ``size``: bytes that are kept beside its script.
    """
    return 1 + (len(new.script or b"") + size) // _PIECE


def template(site: Site, caller: Caller, request: SubmitRequest) -> NewJob:
    """The single job of the request, checked as if it were submitted now. Raises a Rejection."""
    auth.check_may_submit(caller, site.settings)
    return _Desk(site, caller, request).take(request.jobs[0])


@dataclass(frozen=True, slots=True)
class _First:
    """The first of its kin in a request: as it was asked for, where it goes, and as it is stored."""

    built: pbs.Submission
    accepted: Accepted
    new: NewJob


class _Desk:
    """Takes the jobs of one request, one after the other. ``weight``: as how many those count that were taken."""

    def __init__(self, site: Site, caller: Caller, request: SubmitRequest) -> None:
        self.weight = 0
        self._site = site
        self._caller = caller
        self._request = request
        self._context = _context(site, caller, request)
        self._acceptance = Acceptance(site, caller, Personality(request.personality))
        self._firsts: dict[Hashable, _First] = {}
        self._script: tuple[bytes, str] = (b"", "")  # the last one, and its text

    @property
    def room(self) -> Mapping[Kind, int]:
        """See `Acceptance.room`."""
        return self._acceptance.room

    def take(self, job: Submission) -> NewJob:
        """The job as it is stored. Raises a Rejection."""
        words = Words.read(job.argv)
        script = job.script if words.program is None else None
        text = None if script is None else self._text(script)
        kind = words.kind(text, self._context)
        first = self._firsts.get(kind)
        if first is None:
            built = self._read(words.shared, text)
            first = self._keep(kind, built, self._acceptance.accept(built))
        elif (accepted := self._acceptance.again(first.built, first.accepted)) is not first.accepted:
            first = self._keep(kind, first.built, accepted)
        stored = {**first.new.submission, "submit_args": words.submit_args}
        if words.program is not None:
            stored["argv"] = list(words.program)
        if variables := words.variables(self._context):
            stored["environment"] = {**stored["environment"], **variables}
        if (given := words.script_args) is not None:
            stored["script_args"] = list(given)
        new = structs.replace(first.new, name=words.name(first.new.name), script=script, submission=stored)
        self.weight += _weight(new, _check_kept(self._request, new))
        return new

    def _text(self, script: bytes) -> str:
        if script != self._script[0]:
            self._script = script, pbs.check_script(script)
        return self._script[1]

    def _read(self, command: ParsedCommand, text: str | None) -> pbs.Submission:
        """What kin have in common."""
        asked = pbs.needs_of(command)
        if asked.information is not None or asked.interactive:
            raise UsageError("a job among many can neither be interactive nor ask for information")
        if asked.script is not None and text is None:
            raise UsageError("it has neither a script nor a program behind --")
        built = pbs.build(command, text, self._context)
        if built.block or built.dry_run:
            raise UsageError("a job among many can neither block nor be a dry run")
        return built

    def _keep(self, kind: Hashable, built: pbs.Submission, accepted: Accepted) -> _First:
        new = _new_job(self._site, self._caller, self._request, built, accepted)
        first = self._firsts[kind] = _First(built, accepted, new)
        return first


def _holds(request: CommandRequest, operand: str) -> bool:
    """Clients send a file unasked that only looks like the script (``-S /bin/bash`` at the end of the words)."""
    return request.script is not None and request.script_path in (None, operand)


def decoded(encoded: str | None) -> bytes | None:
    """A script, or other standard input, as clients send it. Raises InvalidScript."""
    if encoded is None:
        return None
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidScript("the script did not arrive whole; send it in base64") from error


class _Asked:
    """Requests that were already asked for variables: what they lack still is not set at the client's."""

    def __init__(self) -> None:
        self._keys: OrderedDict[tuple[str, str], None] = OrderedDict()

    def first_time(self, user: str, key: str | None) -> bool:
        if key is None or (user, key) in self._keys:
            return False
        self._keys[user, key] = None
        while len(self._keys) > _ASKED_BEFORE:
            self._keys.popitem(last=False)
        return True


_asked = _Asked()


def _missing(wanted: pbs.EnvNeeds, user: str, request: CommandRequest) -> Need | None:
    """The variables that the client has to add; it is asked once."""
    sent = request.environ.keys()
    names = [name for name in wanted.names if name not in ALWAYS_SENT and name not in sent]
    lacks = not sent - ALWAYS_SENT if wanted.all else bool(names)
    if not lacks or not _asked.first_time(user, request.key):
        return None
    return Need(environ=["*"] if wanted.all else names)


def _context(site: Site, caller: Caller, request: CommandRequest | SubmitRequest) -> pbs.SubmitContext:
    if not request.cwd.startswith("/"):
        raise InvalidValue(f"the working directory '{request.cwd}' is not absolute")
    return pbs.SubmitContext(
        cwd=request.cwd,
        umask=request.umask,
        host=request.host or "localhost",
        user=caller.user,
        home=_home(caller.user, request.environ),
        environ=request.environ,
        server=site.settings.server,
        now=datetime.now(client_zone(request.environ.get("TZ"))),
        default_queue=site.default_queue,
        decimal_umask=request.personality == Personality.TORQUE,
        default_options=tuple(shlex.split(site.server.recent().get("default_qsub_arguments", ""))),
        default_resources=partial(default_resources, site),
        submit_filter=request.submit_filter if isinstance(request, CommandRequest) else None,
    )


def _home(user: str, environ: Mapping[str, str]) -> str:
    try:
        return pwd.getpwnam(user).pw_dir
    except (KeyError, ValueError):
        return environ.get("HOME", "/")


def _new_job(
    site: Site,
    caller: Caller,
    request: CommandRequest | SubmitRequest,
    built: pbs.Submission,
    accepted: Accepted,
) -> NewJob:
    """As it is stored, but for its script."""
    queue, applicant = accepted.queue, accepted.applicant
    secrets.check(site, caller.user, built.secrets)
    parents = dependencies(site, built.dependencies)
    holds = ("u" if built.hold else "") + ("d" if parents else "")
    waits = built.not_before is not None and built.not_before > datetime.now(UTC)
    state = JobState.HELD if holds else JobState.WAITING if waits else JobState.QUEUED
    before = followers(site, caller, built.dependencies)
    stored = (
        _stored(site, request, built)
        | ({"before": before} if before else {})
        | ({"via": caller.via} if caller.via else {})
        | {"peer": applicant.peer}
    )
    return NewJob(
        name=built.name,
        owner=caller.user,
        server=site.settings.server,
        queue=queue.name,
        request=fenced(built.request, queue),
        state=state,
        priority=built.priority,
        holds=holds,
        not_before=built.not_before.astimezone(UTC) if built.not_before else None,
        rerunable=built.rerunable,
        dependencies=parents,
        submit_host=request.host,
        project=applicant.project,
        egroup=applicant.group,
        submission=stored,
        array_spec=built.array,
    )


def dependencies(site: Site, terms: tuple[pbs.Dependency, ...]) -> tuple[Dependency, ...]:
    """The dependencies that the terms name. Raises BadDependency for a kind or job that there is not."""
    behind = [term for term in terms if not term.kind.startswith("before")]
    found = tuple(dependency for term in behind for dependency in _term(site, term))
    parents = [one for one in found if one.kind is not DependencyKind.ON]
    known = site.store.outcomes(JobKey(*dependency.parent) for dependency in parents) if parents else {}
    for dependency in parents:
        outcome = known.get(JobKey(*dependency.parent))
        if outcome is None:
            unknown = JobId(dependency.seq, site.settings.server, dependency.element)
            raise BadDependency(f"dependency {dependency.kind}:{dependency.seq}: Unknown Job Id {unknown}")
        if dependency.number and (outcome.progress is None or dependency.number > outcome.progress.total):
            raise BadDependency(
                f"dependency {dependency.kind}:{dependency.seq}[][{dependency.number}]: it has fewer elements"
            )
    return found


def followers(site: Site, caller: Caller, terms: tuple[pbs.Dependency, ...]) -> list[tuple[str, int]]:
    """Of the ``before...`` terms, which jobs wait for this one and how: (``afterok``, seq).

    Raises:
        BadDependency: such a job is not there, is not the caller's, or does not wait for others to name it (``on:N``).
    """
    found: list[tuple[str, int]] = []
    for term in terms:
        if not term.kind.startswith("before"):
            continue
        kind = term.kind.replace("before", "after", 1)
        for text in term.jobs:
            try:
                job = find_own(site, caller, text)
            except (UnknownJob, Unauthorized) as error:
                raise BadDependency(f"dependency {term}: {error}") from None
            if not any(one.kind is DependencyKind.ON and one.number for one in job.dependencies):
                raise BadDependency(f"dependency {term}: job {job.id} was not submitted with depend=on:COUNT")
            found.append((kind, job.seq))
    return found


def _term(site: Site, term: pbs.Dependency) -> Iterator[Dependency]:
    if term.kind == "on":
        yield Dependency(DependencyKind.ON, 0, None, int(term.jobs[0][:9]))
        return
    if term.kind.startswith("sync"):
        raise BadDependency(
            f"dependency '{term}' is not served: what has to start together is one job on many nodes"
        )
    try:
        kind = DependencyKind(term.kind)
    except ValueError:
        served = ", ".join(DependencyKind)
        raise BadDependency(f"dependency '{term.kind}' is not served; use one of {served}") from None
    for text in term.jobs:
        # Torque: 12[][5], five elements of the array
        plain, number = (
            (text, None) if not (found := _NUMBERED.fullmatch(text)) else (found[1], int(found[2]))
        )
        try:
            job = JobId.parse(plain, site.settings.server)
        except InvalidValue as error:
            raise BadDependency(f"dependency {term.kind}: {error}") from None
        if job.server != site.settings.server or job.seq >= 2**63 or (job.index or 0) >= 2**31:
            raise BadDependency(f"dependency {term.kind}:{text}: no job of server {site.settings.server}")
        if number is not None and not kind.counts:
            raise BadDependency(f"dependency {term.kind}:{text}: only kinds that end in array take a number")
        yield Dependency(kind, job.seq, job.index, number)


def _stored(site: Site, request: CommandRequest | SubmitRequest, built: pbs.Submission) -> dict[str, Any]:
    """What the leader and the status commands need later, as JSON; nothing that is not set."""
    pbspro = request.personality == Personality.PBSPRO
    paths = [replace(resolved(site, path), pbspro=pbspro) for path in (built.stdout_path, built.stderr_path)]
    silent = built.capture or built.interactive  # no output files
    places = {} if silent else dict(zip(output_paths.STREAMS, paths, strict=True))
    gateways = gateways_of(site, places, request.host)
    content = {
        "environment": dict(built.environment),
        "workdir": built.workdir,
        "umask": built.umask,
        "shell": built.shell,
        "argv": None if built.argv is None else list(built.argv),
        "script_args": list(built.script_args),
        "join": built.join,
        "keep": built.keep,
        "gpubind": built.gpubind,
        "ring": built.ring,
        "mps": built.mps or None,
        "gpu_idle": built.gpu_idle,
        "secrets": list(built.secrets) or None,
        "image": built.image,
        "image_pull": built.image_pull,
        "image_secret": built.image_secret,
        "submit_host": request.host,
        "submit_dir": request.cwd,
        "interactive": built.interactive or None,
        "x11": built.x11 or None,
        "stdout_template": None if silent else output_paths.stored(paths[0]),
        "stderr_template": None if silent else output_paths.stored(paths[1]),
        "gateways": gateways or None,
        "resource_list": dict(built.resource_list),
        "submit_args": built.submit_args,
        "personality": request.personality,
        "mail_points": built.mail_points,
        "mail_users": list(built.mail_users),
        "account": built.account,
        "project": built.project,
        "group_list": list(built.group_list),
        "checkpoint": built.checkpoint,
        "extra": dict(built.extra),
    }
    return {key: value for key, value in content.items() if value is not None}


def resolved(site: Site, template: PathTemplate) -> PathTemplate:
    """A path that is a directory here, where submit hosts and nodes see alike, gets the default name in it."""
    path = template.path
    if path is None or not any(Path(path).is_relative_to(tree) for tree in site.settings.shared_paths):
        return template
    try:
        return template.as_directory() if Path(path).is_dir() else template
    except (OSError, ValueError):
        return template


def _check_kept(request: CommandRequest | SubmitRequest, new: NewJob) -> int:
    """How many bytes of JSON environment and words of the job are.

    Raises:
        InvalidValue: more than can be kept, or text that PostgreSQL cannot hold: NUL, and bytes that are no UTF-8.
    """
    others = [new.name, request.host, request.key or ""]
    try:
        kept = msgspec.json.encode(new.submission)
        storable = b"\\u0000" not in kept and b"\\u0000" not in msgspec.json.encode(others)
    except UnicodeEncodeError:
        storable = False
    if not storable:
        _refuse_text([*others, new.submission])
    wishes.check_size(kept)
    return len(kept)


def _refuse_text(value: Any) -> None:
    """Raises InvalidValue for the first text in it that PostgreSQL cannot hold."""
    for text in _texts(value):
        if "\0" in text or not _is_unicode(text):
            raise InvalidValue(f"'{ascii(text[:40])[1:-1]}' holds a NUL byte or bytes that are not UTF-8")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
