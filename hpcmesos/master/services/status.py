"""qstat in all its views, and the typed status of jobs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, tzinfo

import msgspec

from hpcmesos.api_schema import CommandReply, CommandRequest, EventStatus, JobStatus
from hpcmesos.errors import HpcmesosError, JobFinished, UnknownJob, UnknownQueue
from hpcmesos.master.auth import Caller
from hpcmesos.master.objects import flat
from hpcmesos.master.services import why
from hpcmesos.master.services.brief import with_elements
from hpcmesos.master.services.facts import Surroundings, job_facts
from hpcmesos.master.services.launches import attempt_status
from hpcmesos.master.services.listing import Listed, expanded
from hpcmesos.master.services.lookup import find, full_id, id_of, names, parse_id
from hpcmesos.master.services.reasons import pending_reasons
from hpcmesos.master.services.replies import VERSION, Refusals, information
from hpcmesos.master.services.site import Site, client_zone, kept_for, server_attributes
from hpcmesos.model import JobId, JobState
from hpcmesos.pbs.facts import JobFacts, QueueFacts, ServerFacts, each
from hpcmesos.pbs.manager_attributes import resources, total_limit
from hpcmesos.pbs.personalities import Personality
from hpcmesos.pbs.render import View, render_jobs, render_queues, render_server
from hpcmesos.pbs.status import QstatFormat, QstatQuery, parse_qstat
from hpcmesos.queue.brief import BriefElements
from hpcmesos.queue.records import AttemptKey, JobFilter, JobKey, JobRecord, QueueRecord

_SHORT = frozenset({QstatFormat.PLAIN, QstatFormat.WHY})
_ABOUT_QUEUES = frozenset({QstatFormat.QUEUES, QstatFormat.LIMITS, QstatFormat.SERVER})
_FEW = 4  # ids
_ASKED_AT_MOST = 100  # jobs whose reason is asked for where it is not the point of the view


def qstat(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """Shows jobs, queues or the server; ids and queues that are unknown are named on stderr."""
    personality = Personality(request.personality)
    if told := information("qstat", request.argv, personality):
        return told
    query = parse_qstat(request.argv, personality)
    refusals = Refusals("qstat", personality)
    if query.format in _ABOUT_QUEUES:
        return refusals.reply(_queues_or_server(site, query, personality, refusals))
    zone = client_zone(request.environ.get("TZ"))
    now = datetime.now(UTC)
    listed = _selected(site, query, personality, now, refusals)
    if query.format in (QstatFormat.WHY_FULL, QstatFormat.WHY_JSON):
        return refusals.reply(_explained(site, query, [one.job for one in listed], zone))
    facts = _facts(site, caller, query, listed, zone, now)
    if _is_brief(query) and not query.arrays_only:
        jobs = [one.job for one in listed]
        facts = with_elements(jobs, facts, _brief_elements(site, query, personality, jobs, now))
    return refusals.reply(render_jobs(query, facts, _view(site, personality, now, zone)))


def _explained(site: Site, query: QstatQuery, jobs: Sequence[JobRecord], zone: tzinfo) -> str:
    told = why.explained(site, jobs).values()
    if query.format is QstatFormat.WHY_JSON:
        return msgspec.json.format(msgspec.json.encode(list(told))).decode() + "\n"
    return "\n".join(why.text(one, zone) for one in told)


def job_status(site: Site, text: str) -> JobStatus:
    """The typed status of one job, with the reason when it waits, and its attempts.

    Raises:
        UnknownJob: there is none.
    """
    job = find(site, text)
    found = statuses(site, [job], with_reasons=True)[0]
    if not job.attempt:
        return found
    attempts = site.store.attempts([job.key])  # before their shares: none is shown without its nodes
    nodes: defaultdict[AttemptKey, list[str]] = defaultdict(list)
    for share in site.store.shares([job.key]):
        nodes[share.attempt].append(share.node)
    shown = [attempt_status(attempt, nodes[attempt.key]) for attempt in attempts]
    return msgspec.structs.replace(found, attempts=shown)


def list_events(site: Site, after: int, limit: int, job: str | None) -> list[EventStatus]:
    """What happened behind the event ``after``; ``job``: to it, and to its elements if it is an array.

    Raises:
        UnknownJob: the text is no id of this server.
    """
    seq = None if job is None else parse_id(site, job).seq
    return [
        EventStatus(
            id=event.id,
            at=event.at.timestamp(),
            kind=event.kind,
            job=None if event.seq is None else str(JobId(event.seq, site.settings.server, event.index)),
            before=event.source,
            state=event.target,
        )
        for event in site.store.events(after, limit, seq)
    ]


def list_jobs(site: Site, *, history: bool) -> list[JobStatus]:
    """All jobs that are not over; with ``history`` also those that are."""
    live = None if history else frozenset(JobState) - {JobState.COMPLETE}
    return statuses(site, site.store.jobs(JobFilter(states=live, history=history, brief=True)))


def statuses(site: Site, jobs: Sequence[JobRecord], *, with_reasons: bool = False) -> list[JobStatus]:
    """Jobs as values for programs."""
    started = [job.key for job in jobs if job.attempt]
    nodes: defaultdict[tuple[JobKey, int], list[str]] = defaultdict(list)
    for share in site.store.shares(started) if started else []:
        nodes[share.attempt.job, share.attempt.number].append(share.node)
    reasons = pending_reasons(site, jobs, UTC) if with_reasons else {}
    return [
        JobStatus(
            id=str(id_of(job)),
            name=job.name,
            owner=job.owner,
            state=job.state.value,
            queue=job.queue,
            exit_status=job.exit_status,
            cause=job.cause.value if job.cause else None,
            attempt=job.attempt,
            nodes=nodes[job.key, job.attempt],
            reason=reasons.get(job.key),
            comment=job.comment,
        )
        for job in jobs
    ]


def _selected(
    site: Site, query: QstatQuery, personality: Personality, now: datetime, refusals: Refusals
) -> list[Listed]:
    """The jobs that the words name, in the order of the operands, else of the ids."""
    if query.ids:
        found = _by_ids(site, query, personality, refusals)
    else:
        _check_queues(site, query, refusals)
        found = _by_filter(site, query, personality, now)
    jobs = list({job.key: job for job in found}.values())
    if query.expand_arrays and not _is_brief(query):
        listed = expanded(jobs)
    else:
        listed = [Listed(job, (), _array_lives(site, job)) for job in jobs]
    if not query.ids and _hides_complete(query, personality):
        listed = [one for one in listed if one.in_live_array or one.job.state is not JobState.COMPLETE]
    return [one for one in listed if _wanted(one.job, query)]


def _array_lives(site: Site, job: JobRecord) -> bool:
    """Whether the job is an element of an array that is not complete."""
    parent = site.store.job(job.seq) if job.index is not None else None
    return parent is not None and parent.state is not JobState.COMPLETE


def _by_ids(site: Site, query: QstatQuery, personality: Personality, refusals: Refusals) -> list[JobRecord]:
    wanted = []
    for text in query.ids:
        try:
            wanted.append((text, parse_id(site, text)))
        except HpcmesosError as error:
            refusals.add(full_id(site, text), error)
    known = _known(site, [job for _, job in wanted])
    found: list[JobRecord] = []
    for text, job in wanted:
        row = known.get(JobKey(job.seq, job.index))
        if row is None or not names(job, row):
            full = full_id(site, text)
            refusals.add(full, UnknownJob(full))
        elif _hides_complete(query, personality) and _is_finished(site, row):
            refusals.add(str(id_of(row)), JobFinished("Job has finished"))
        elif query.expand_arrays and row.array_spec is not None and not _is_brief(query):
            brief = query.format in _SHORT
            found += site.store.jobs(JobFilter(seqs=(row.seq,), history=True, brief=brief))
        else:
            found.append(row)
    return found


def _known(site: Site, wanted: Sequence[JobId]) -> dict[JobKey, JobRecord]:
    """The rows of these jobs. A few are read one by one: only what has left the hot table costs a look at history."""
    few = wanted if len(wanted) <= _FEW else [job for job in wanted if job.index is not None]
    known = {row.key: row for job in few if (row := site.store.job(job.seq, job.index)) is not None}
    if len(wanted) > len(few):
        seqs = tuple({job.seq for job in wanted if job.index is None})
        rows = site.store.jobs(JobFilter(seqs=seqs, history=True, elements=False))
        known |= {row.key: row for row in rows}
    return known


def _is_finished(site: Site, job: JobRecord) -> bool:
    """OpenPBS tells about finished jobs only when -x or -H asks; about elements as long as their array lives."""
    return job.state is JobState.COMPLETE and not _array_lives(site, job)


def _by_filter(site: Site, query: QstatQuery, personality: Personality, now: datetime) -> list[JobRecord]:
    wanted = replace(_filter(query, personality), elements=query.expand_arrays and not _is_brief(query))
    return [
        job
        for job in site.store.jobs(wanted)
        if wanted.history or job.ended_at is None or now - job.ended_at <= kept_for(site, job.queue)
    ]


def _filter(query: QstatQuery, personality: Personality) -> JobFilter:
    history = query.include_history and personality is Personality.PBSPRO
    # With -t, elements that are over show as long as their array does.
    hidden = _hides_complete(query, personality) and not query.expand_arrays
    live = frozenset(JobState) - ({JobState.COMPLETE} if hidden else frozenset())
    return JobFilter(
        owners=query.users or None,
        states=None if history else live,
        queues=query.queues or None,
        history=history,
        brief=query.format in _SHORT,
    )


def _is_brief(query: QstatQuery) -> bool:
    """Whether no record of an element is needed for what is shown of it."""
    return query.expand_arrays and query.format is QstatFormat.PLAIN


def _brief_elements(
    site: Site, query: QstatQuery, personality: Personality, jobs: Sequence[JobRecord], now: datetime
) -> list[BriefElements]:
    """The elements with a row that the words name."""
    if query.ids:
        seqs = tuple({job.seq for job in jobs if job.array_spec is not None})
        return site.store.brief_elements(JobFilter(seqs=seqs, history=True)) if seqs else []
    wanted = _filter(query, personality)
    kept = {queue: now - kept_for(site, queue) for queue in site.queues.recent()}
    found = site.store.brief_elements(wanted, None if wanted.history else (kept, now - kept_for(site, "")))
    if not _hides_complete(query, personality):
        return found
    shown = {job.seq for job in jobs if job.array_spec is not None}
    return [row for row in found if row.seq in shown or row.looks.state != JobState.COMPLETE.value]


def _check_queues(site: Site, query: QstatQuery, refusals: Refusals) -> None:
    for name in query.queues:
        if name not in site.queues.recent() and name not in site.queues.fresh():
            refusals.add(name, UnknownQueue(f"Unknown queue {name}"))


def _hides_complete(query: QstatQuery, personality: Personality) -> bool:
    return personality is Personality.PBSPRO and not query.include_history


def _wanted(job: JobRecord, query: QstatQuery) -> bool:
    """Filters that the database does not do."""
    if query.states and job.state.value not in query.states:
        return False
    return not query.arrays_only or job.array_spec is not None


def _facts(
    site: Site,
    caller: Caller,
    query: QstatQuery,
    listed: Sequence[Listed],
    zone: tzinfo,
    now: datetime,
) -> list[JobFacts]:
    """The facts that the view shows, and no more reads than it needs."""
    jobs = [one.job for one in listed]
    detailed = query.format not in _SHORT
    asks_why = query.format is QstatFormat.WHY or (
        detailed and len(jobs) <= _ASKED_AT_MOST and bool(query.ids)
    )
    reasons = pending_reasons(site, jobs, zone) if asks_why else {}
    started = [job.key for job in jobs if job.attempt]
    timed = bool(started) and query.format is not QstatFormat.WHY
    full = detailed and bool(started)
    # A failed job's last lines come from its tails, 128 KiB each: not for long lists.
    attempts = site.store.attempts(started, tails=full and len(jobs) <= _ASKED_AT_MOST) if timed else []
    shares = site.store.shares(started) if full else []
    nodes = site.store.nodes() if any(share.gpus for share in shares) else []
    arrays = [job.seq for job in jobs if job.array_spec is not None]
    counted = site.store.arrays(arrays) if arrays and query.format is not QstatFormat.PLAIN else {}
    around = Surroundings.of(attempts, shares, nodes, reasons, counted)
    facts = [
        job_facts(one.job, around, now, private=caller.may_touch(one.job.owner), live=one.in_live_array)
        for one in listed
    ]
    alike = [replace(fact, alike=tuple(one.indexes)) for fact, one in zip(facts, listed, strict=True)]
    return alike if query.format is QstatFormat.PLAIN else list(each(alike))


def _view(site: Site, personality: Personality, now: datetime, zone: tzinfo | None = None) -> View:
    server = site.settings.server
    return View(server=server, version=VERSION, now=now, zone=zone, personality=personality)


def _queues_or_server(site: Site, query: QstatQuery, personality: Personality, refusals: Refusals) -> str:
    view = _view(site, personality, datetime.now(UTC))
    counts = site.store.counts()
    if query.format is QstatFormat.SERVER:
        total = sum(map(Counter, counts.values()), Counter[str]())
        given = server_attributes(site)
        most = total_limit(given, "max_running", "max_run")
        server = ServerFacts(
            name=site.settings.server,
            status="Active" if given["scheduling"] == "True" else "Idle",
            counts=dict(total),
            max_running=most,
            attributes={**given, "pbs_version": VERSION},
        )
        return render_server(query, server, view)
    known = site.queues.fresh()
    for name in query.queues:
        if name not in known:
            refusals.add(name, UnknownQueue(f"Unknown queue {name}"))
    shown = [
        _queue_facts(queue, counts.get(queue.name, {}))
        for queue in known.values()
        if not query.queues or queue.name in query.queues
    ]
    return render_queues(query, shown, view)


def _queue_facts(queue: QueueRecord, counts: Mapping[str, int]) -> QueueFacts:
    attributes = flat(queue)
    limits = resources(attributes, "resources_max")
    if "nodect" in limits:
        limits.setdefault("nodes", limits["nodect"])
    return QueueFacts(
        name=queue.name,
        enabled=queue.enabled,
        started=queue.started,
        routes=attributes["queue_type"] == "Route",
        max_running=total_limit(attributes, "max_running", "max_run"),
        counts=counts,
        limits=limits,
        attributes=attributes,
    )
