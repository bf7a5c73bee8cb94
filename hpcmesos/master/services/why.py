"""Why and when, told whole: by ``qstat --why -f``, ``/v1/jobs/ID/why``, showstart and ``qsub --dry-run``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo

import msgspec

from hpcmesos import api_schema
from hpcmesos.errors import MasterUnreachable
from hpcmesos.gang.words import counted
from hpcmesos.master import links_client
from hpcmesos.master.links_client import Question, Trial
from hpcmesos.master.services.lookup import find, id_of
from hpcmesos.master.services.reasons import pending_reasons
from hpcmesos.master.services.site import Site
from hpcmesos.model import JobState
from hpcmesos.pbs.render_text import no_longer_waits
from hpcmesos.queue.records import JobKey, JobRecord, NewJob
from hpcmesos.queue.rows import request_json


def why(site: Site, text: str) -> api_schema.Why:
    """All that is known of when one job starts; of one that does not wait only its state.

    Raises:
        UnknownJob: there is none.
        MasterUnreachable: it waits, and no leader answers.
    """
    job = find(site, text)
    return explained(site, [job])[job.key]


def explained(site: Site, jobs: Sequence[JobRecord]) -> dict[JobKey, api_schema.Why]:
    """As why(), for several."""
    answers = _ask(site, Question(explain=[(job.seq, job.index) for job in jobs])).explained if jobs else []
    return {
        job.key: _own(site, job) if answer is None else msgspec.structs.replace(answer, id=str(id_of(job)))
        for job, answer in zip(jobs, answers, strict=True)
    }


def estimates(site: Site, jobs: Sequence[JobRecord]) -> dict[JobKey, float]:
    """When they start (epoch seconds), of those of which it is known; nothing while no leader answers."""
    try:
        told = explained(site, jobs)
    except MasterUnreachable:
        return {}
    return {key: one.starts_at for key, one in told.items() if one.starts_at is not None}


def dry_run(site: Site, new: NewJob, zone: tzinfo) -> str:
    """What would become of a job that the server would take: where it starts now, or why it waits and until when."""
    trial = Trial(
        request=request_json(new.request),
        queue=new.queue,
        user=new.owner,
        project=new.project,
        group=new.egroup,
        priority=new.priority,
        count=new.array_spec.size if new.array_spec else 1,
    )
    try:
        found = next(iter(_ask(site, Question(trial=trial)).explained), None)
    except MasterUnreachable:
        found = None
    if found is None:
        return "not known: no leader answers now\n"
    if found.code == "starts" or found.starts_at is None:
        return f"{found.text}\n"
    return f"would wait: {found.text}; would start about {shown_time(found.starts_at, zone)}\n"


def text(told: api_schema.Why, zone: tzinfo) -> str:
    """``qstat --why -f``: the reason, the place, the estimate, all factors of the order, and who holds what."""
    lines = [f"{told.id} {told.state} {told.text}"]
    if told.place is not None:
        lines.append(f"    place: {told.place} of {told.waiting} that wait")
    if told.starts_at is not None:
        lines.append(f"    estimated start: {shown_time(told.starts_at, zone)}")
    if told.factors:
        total = sum(factor.points for factor in told.factors.values())
        lines.append(f"    points in the order: {total:.1f}")
        lines += [
            f"        {name:<20}{factor.value:>12.3f} gives {factor.points:>10.1f}"
            for name, factor in told.factors.items()
        ]
    if told.holders:
        lines.append("    what runs, the first to end first:")
        lines += [f"        {_holder(holder, zone)}" for holder in told.holders]
    return "\n".join(lines) + "\n"


def _holder(holder: api_schema.Holder, zone: tzinfo) -> str:
    until = "?" if holder.until is None else shown_time(holder.until, zone)
    what = counted(holder.gpus, "GPU") if holder.gpus else counted(holder.cpus, "CPU")
    return f"{holder.job} of {holder.user}: {what} on {', '.join(holder.nodes)} until {until}"


def shown_time(at: float, zone: tzinfo) -> str:
    return datetime.fromtimestamp(at, zone).strftime("%Y-%m-%d %H:%M %Z")


def _own(site: Site, job: JobRecord) -> api_schema.Why:
    state = "S" if job.suspended and job.state is JobState.RUNNING else job.state.value
    over = no_longer_waits(state, job.exit_status, job.cause)
    if over and job.comment:
        over = f"{over}; {job.comment}"
    text = pending_reasons(site, [job], UTC).get(job.key, over)
    return api_schema.Why(id=str(id_of(job)), state=state, code="", text=text)


def _ask(site: Site, question: Question) -> links_client.Answer:
    leader = site.store.leader()
    if not leader.live or site.lines is None:
        raise MasterUnreachable("no leader answers now; jobs keep their places")
    return site.lines.ask(leader.address, question)
