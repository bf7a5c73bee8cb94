"""showq, checkjob, showstart, mdiag, msub, canceljob, mjobctl: Moab's and Maui's names for what the q-commands do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import msgspec

from hpcmesos.api_schema import CommandReply, CommandRequest
from hpcmesos.errors import UnknownJob, UsageError
from hpcmesos.master.auth import Caller
from hpcmesos.master.services import control, submit, why
from hpcmesos.master.services.facts import Surroundings, job_facts
from hpcmesos.master.services.lookup import find, full_id
from hpcmesos.master.services.reasons import pending_reasons
from hpcmesos.master.services.replies import Refusals, information
from hpcmesos.master.services.site import Site, client_zone
from hpcmesos.model import JobState
from hpcmesos.pbs import moab as render
from hpcmesos.pbs.facts import JobFacts
from hpcmesos.pbs.options import parse
from hpcmesos.pbs.personalities import Personality
from hpcmesos.queue.records import JobFilter, JobRecord


def showq(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """All jobs that are not over; ``-w user=NAME`` and ``-u NAME``: of one user."""
    personality = Personality(request.personality)
    if told := information("showq", request.argv, personality):
        return told
    command = parse("showq", request.argv)
    users = [text.partition("=")[2] for text in command.all("w") if text.startswith("user=")]
    users += command.all("u")
    live = frozenset(JobState) - {JobState.COMPLETE}
    jobs = site.store.jobs(JobFilter(owners=tuple(users) or None, states=live, elements=True))
    jobs = [job for job in jobs if job.array_spec is None or job.state is not JobState.RUNNING]
    facts = _facts(site, caller, jobs, request, with_reasons=False)
    if command.has("xml"):
        return CommandReply(stdout=render.showq_xml(facts))
    processors = sum(node.cpus for node in site.store.nodes() if node.up)
    zone = client_zone(request.environ.get("TZ"))
    return CommandReply(stdout=render.showq(facts, processors, zone))


def checkjob(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """Everything about jobs, one after the other."""
    return _about("checkjob", site, caller, request)


def showstart(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """When jobs start at the earliest."""
    return _about("showstart", site, caller, request)


def mdiag(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """``mdiag -j ID [--xml]``; other objects of mdiag are not served."""
    if (told := information("mdiag", request.argv, Personality(request.personality))) is not None:
        return told
    if not parse("mdiag", request.argv).has("j"):
        raise UsageError("only jobs are diagnosed: mdiag -j job_id [--xml]")
    return _about("mdiag", site, caller, request)


def _about(name: str, site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    personality = Personality(request.personality)
    if told := information(name, request.argv, personality):
        return told
    command = parse(name, request.argv)
    operands = (*command.operands, *(command.rest or ()))
    if not operands:
        raise UsageError(f"name at least one job: {name} job_id")
    refusals = Refusals(name, personality)
    jobs: list[JobRecord] = []
    for text in operands:
        try:
            jobs.append(find(site, text))
        except UnknownJob as error:
            refusals.add(full_id(site, text), error)
    facts = _facts(site, caller, jobs, request, with_reasons=True)
    if command.has("xml"):
        return refusals.reply(render.mdiag_xml(facts))
    zone, now = client_zone(request.environ.get("TZ")), datetime.now(UTC)
    if name == "showstart":
        starts = why.estimates(site, jobs)
        facts = [_estimated(fact, starts.get(job.key)) for fact, job in zip(facts, jobs, strict=True)]
        return refusals.reply("\n".join(render.showstart(job, now, zone) for job in facts))
    return refusals.reply("".join(render.checkjob(job, zone) for job in facts))


def _estimated(job: JobFacts, at: float | None) -> JobFacts:
    return job if at is None else replace(job, estimated_start=datetime.fromtimestamp(at, UTC))


def msub(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """qsub; ``--xml`` prints the id as XML."""
    words = [word for word in request.argv if word != "--xml"]
    reply = submit.qsub(site, caller, msgspec.structs.replace(request, argv=words))
    if len(words) == len(request.argv) or not reply.stdout or reply.code:
        return reply
    return msgspec.structs.replace(reply, stdout=render.submitted_xml(reply.stdout.strip()))


def canceljob(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """qdel, with a word for each job as Moab says it."""
    if told := information("canceljob", request.argv, Personality(request.personality)):
        return told
    return _cancel("canceljob", site, caller, request, parse("canceljob", request.argv).operands)


def mjobctl(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """``mjobctl -c ID[,ID...]`` cancels jobs; its other actions are not served."""
    if told := information("mjobctl", request.argv, Personality(request.personality)):
        return told
    command = parse("mjobctl", request.argv)
    if not command.has("c"):
        raise UsageError("only cancelling is served: mjobctl -c job_id[,job_id ...]")
    return _cancel("mjobctl", site, caller, request, command.operands)


def _facts(
    site: Site, caller: Caller, jobs: Sequence[JobRecord], request: CommandRequest, *, with_reasons: bool
) -> list[JobFacts]:
    """What there is to know of the jobs, but for their output."""
    started = [job.key for job in jobs if job.attempt]
    attempts = site.store.attempts(started, tails=False) if started else []
    shares = site.store.shares(started) if started else []
    zone = client_zone(request.environ.get("TZ"))
    reasons = pending_reasons(site, jobs, zone) if with_reasons else {}
    around = Surroundings.of(attempts, shares, (), reasons, {})
    now = datetime.now(UTC)
    return [job_facts(job, around, now, private=caller.may_touch(job.owner)) for job in jobs]


def _cancel(
    name: str, site: Site, caller: Caller, request: CommandRequest, operands: Sequence[str]
) -> CommandReply:
    ids = [job for text in operands for job in text.split(",") if job]
    if not ids:
        raise UsageError(f"name at least one job; see {name} --help")
    reply = control.qdel(site, caller, msgspec.structs.replace(request, argv=ids))
    gone = [job for job in ids if not _complained(site, job, reply)]
    stdout = "".join(f"\njob '{job}' cancelled\n" for job in gone)
    return msgspec.structs.replace(reply, stdout=stdout, stderr=reply.stderr.replace("qdel:", f"{name}:"))


def _complained(site: Site, job: str, reply: CommandReply) -> bool:
    return any(full_id(site, job) in line for line in reply.stderr.splitlines())
