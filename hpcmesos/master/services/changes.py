"""qalter, qmove, qorder, qrerun, qsig, qmsg: wishes that change jobs, once it is clear that they may be had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from hpcmesos.api_schema import CommandReply, CommandRequest
from hpcmesos.errors import (
    NotRerunable,
    QueueDisabled,
    RunningJob,
    Unauthorized,
    UnknownJob,
    UnknownQueue,
    UsageError,
    WrongState,
)
from hpcmesos.master import auth
from hpcmesos.master.auth import Caller
from hpcmesos.master.cycle import job_view
from hpcmesos.master.services import output_paths, wishes
from hpcmesos.master.services.acceptance import check_ever, check_fits
from hpcmesos.master.services.admission import (
    admit,
    applicant_of,
    check_group_list,
    check_limits,
    execution_group,
    find_queue,
)
from hpcmesos.master.services.control import Command
from hpcmesos.master.services.lookup import find_own, full_id, id_of
from hpcmesos.master.services.outputs import gateways_of
from hpcmesos.master.services.replies import Refusals, information
from hpcmesos.master.services.site import Site, client_zone
from hpcmesos.master.services.submit import dependencies, resolved
from hpcmesos.model import JobState
from hpcmesos.pbs.alteration import Alteration, changed_request, lengthens, parse_qalter
from hpcmesos.pbs.options import ParsedCommand, parse
from hpcmesos.pbs.paths import PathTemplate
from hpcmesos.pbs.personalities import Personality
from hpcmesos.pbs.signals import parse_signal, parse_suspension
from hpcmesos.queue.records import JobRecord
from hpcmesos.queue.rows import dependencies_json

_ACTIVE = (JobState.RUNNING, JobState.EXITING)
Wish = tuple[str, Mapping[str, Any]]


def qsig(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """Sends a signal to processes of jobs that run; ``suspend`` and ``resume``: they stand still (operators)."""
    personality = Personality(request.personality)
    if told := information("qsig", request.argv, personality):
        return told
    command, ids = _words("qsig", request)
    text = command.last("s") or "TERM"

    def wanted(job: JobRecord) -> Wish:
        if (suspended := parse_suspension(text)) is not None:
            auth.check_operator(caller, f"{text} jobs")
            _check_runs(job)
            return wishes.SUSPEND, {"suspended": suspended}
        number = parse_signal(text)
        _check_runs(job)
        return wishes.SIGNAL, {"signal": number}

    return Command(site, caller, "qsig", personality).each(ids, wanted)


def qrerun(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """Puts running jobs back into their queue; operators only. ``-f`` and ``-W force`` leave no time to end."""
    personality = Personality(request.personality)
    if told := information("qrerun", request.argv, personality):
        return told
    command, ids = _words("qrerun", request)
    force = command.has("f") or "force" in command.all("W")
    payload: dict[str, Any] = {"kill_delay": 0 if force else None, "message": command.last("m")}

    def wanted(job: JobRecord) -> Wish:
        auth.check_operator(caller, "run jobs again")
        _check_runs(job)
        if not job.rerunable:
            raise NotRerunable("job is not rerunable")
        return wishes.RERUN, payload

    return Command(site, caller, "qrerun", personality).each(ids, wanted)


def qmsg(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """Writes a line into the output of jobs that run; without -E and -O: into their standard error."""
    personality = Personality(request.personality)
    if told := information("qmsg", request.argv, personality):
        return told
    command, (text, *ids) = _words("qmsg", request)
    if not ids:
        raise UsageError("name a message and at least one job: qmsg [-E] [-O] message job_id ...")
    streams = ("o" if command.has("O") else "") + ("e" if command.has("E") or not command.has("O") else "")
    payload = {"text": text.replace("\n", " ")[:1000], "streams": streams}

    def wanted(job: JobRecord) -> Wish:
        _check_runs(job)
        return wishes.MESSAGE, payload

    return Command(site, caller, "qmsg", personality).each(tuple(ids), wanted)


def qmove(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """Moves jobs that wait into another queue, which must take them; operators may move into a disabled one."""
    personality = Personality(request.personality)
    if told := information("qmove", request.argv, personality):
        return told
    _, (destination, *ids) = _words("qmove", request)
    if not ids:
        raise UsageError("name a queue and at least one job: qmove destination job_id ...")
    name = destination.partition("@")[0] or site.default_queue

    def wanted(job: JobRecord) -> Wish:
        _check_waits(job)
        try:
            queue = admit(site, name, applicant_of(job), operator=caller.privileged)
        except UnknownQueue:
            raise UnknownQueue(
                _moved_text("Unknown queue", "requested queue not found", personality, job)
            ) from None
        except QueueDisabled as error:
            raise QueueDisabled(_moved_text("Queue is not enabled", str(error), personality, job)) from None
        if not caller.privileged:
            check_ever(site, replace(job_view(job), queue=queue.name))
        return wishes.MOVE, {"queue": queue.name}

    return Command(site, caller, "qmove", personality).each(tuple(ids), wanted)


def _moved_text(text: str, why: str, personality: Personality, job: JobRecord) -> str:
    detail = f" MSG={why}" if personality is Personality.TORQUE else ""
    return f"{text}{detail} {id_of(job)}"


def qorder(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """Exchanges the places of two jobs that wait for their turn."""
    personality = Personality(request.personality)
    if told := information("qorder", request.argv, personality):
        return told
    _, ids = _words("qorder", request)
    if len(ids) != 2:
        raise UsageError("name two jobs: qorder job_id job_id")
    refusals = Refusals("qorder", personality)
    try:
        first, second = (find_own(site, caller, text) for text in ids)
        if first.index is not None or second.index is not None:
            raise UnknownJob("an element of an array has no place of its own")
        if {first.state, second.state} != {JobState.QUEUED}:
            raise WrongState("both jobs must be in state Q")
    except (UnknownJob, Unauthorized, WrongState) as error:
        if site.wished(caller, "order") is not None:
            return CommandReply()  # what has become of them since is no reason to refuse the second try
        names = " or ".join(full_id(site, text) for text in ids)
        refusals.add(names if isinstance(error, UnknownJob) else full_id(site, ids[0]), error)
        return refusals.reply()
    sent = site.wish(caller, wishes.ORDER, first.seq, {"other": second.seq}, "order")
    site.notifier.poke()
    wishes.await_taken(site.store, [sent])
    return CommandReply()


def qalter(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """Changes jobs that are not over. Of a job that runs its name, priority, mail and the like, and its walltime."""
    personality = Personality(request.personality)
    if told := information("qalter", request.argv, personality):
        return told
    now = datetime.now(client_zone(request.environ.get("TZ")))
    asked = parse_qalter(
        request.argv, now, request.environ, decimal_umask=request.personality == Personality.TORQUE
    )
    if asked.holds and set(asked.holds) & set("os"):
        auth.check_operator(caller, "set operator and system holds")
    wanted = partial(_alteration, site, caller, request, asked)
    return Command(site, caller, "qalter", personality).each(asked.ids, wanted)


def _alteration(
    site: Site, caller: Caller, request: CommandRequest, asked: Alteration, job: JobRecord
) -> Wish:
    """The wish, once it is clear that the job can have it."""
    running = job.state in _ACTIVE
    if running and asked.not_running:
        raise RunningJob(asked.not_running[0])
    fields = _fields(asked)
    submission = dict(asked.submission)
    shown = _checked(site, caller, job, asked.resources) if asked.resources else {}
    if asked.dependencies is not None:
        fields["dependencies"] = dependencies_json(dependencies(site, asked.dependencies))
    if "group_list" in submission:
        check_group_list(site, find_queue(site, job.queue), job.owner, submission["group_list"])
        fields["egroup"] = execution_group(job.owner, submission["group_list"])
    if asked.variables:
        submission["environment"] = dict(asked.variables)
    moved: dict[str, PathTemplate] = {}
    for letter, stream in (("o", "stdout"), ("e", "stderr")):
        template = asked.path(letter, request.cwd, request.host or "localhost")
        if template is not None:
            place = resolved(site, template)
            submission[output_paths.STREAMS[stream]] = output_paths.stored(place)
            moved[stream] = place
    if moved:
        others = {s: g for s, g in job.submission.get("gateways", {}).items() if s not in moved}
        submission["gateways"] = others | gateways_of(site, moved, job.submit_host)
    wishes.merged(job.submission, submission | ({"resource_list": shown} if shown else {}))
    payload: dict[str, Any] = {
        "fields": fields,
        "submission": submission,
        "resources": dict(asked.resources),
        "waits": bool(asked.not_running),
        "privileged": caller.privileged,
    }
    if asked.limit is not None:
        payload["limit"] = asked.limit
    return wishes.ALTER, payload


def _fields(asked: Alteration) -> dict[str, Any]:
    given: dict[str, Any] = {
        "name": asked.name,
        "priority": asked.priority,
        "rerunable": asked.rerunable,
        "holds": asked.holds,
        "not_before": None if asked.not_before is None else asked.not_before.astimezone(UTC).isoformat(),
    }
    return {name: value for name, value in given.items() if value is not None}


def _checked(site: Site, caller: Caller, job: JobRecord, wanted: Mapping[str, str]) -> dict[str, str]:
    """The job's Resource_List once these are changed, if they may be.

    A running job's walltime may be cut by its owner, and be raised by operators.
    """
    request, shown = changed_request(job.request, job.submission, wanted)
    if job.state in _ACTIVE:
        if lengthens(job.request, request) and not caller.privileged:
            raise Unauthorized(f"Unauthorized Request  {id_of(job)}")
        return shown
    if not caller.privileged:
        check_limits(site, find_queue(site, job.queue), shown)
    check_fits(site, request)
    check_ever(site, replace(job_view(job), request=request))
    return shown


def _words(name: str, request: CommandRequest) -> tuple[ParsedCommand, tuple[str, ...]]:
    command = parse(name, request.argv)
    operands = (*command.operands, *(command.rest or ()))
    if not operands:
        raise UsageError(f"name at least one job; see {name} --help")
    return command, operands


def _check_runs(job: JobRecord) -> None:
    if job.state is not JobState.RUNNING:
        raise WrongState(f"invalid state for job - {job.state.name}")


def _check_waits(job: JobRecord) -> None:
    if job.state in _ACTIVE:
        raise WrongState(f"invalid state for job - {job.state.name}")
