"""Users' schedules: made, listed, paused, fired by hand, removed. Their owner and operators may."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import msgspec

from hpcmesos import api_schema
from hpcmesos.errors import InvalidValue, Unauthorized, UnknownSchedule
from hpcmesos.master.auth import Caller
from hpcmesos.master.services import submit, wishes
from hpcmesos.master.services.site import Site
from hpcmesos.model import JobId
from hpcmesos.pbs.kin import Words
from hpcmesos.queue import rules
from hpcmesos.queue.schedule_rows import Run, Schedule

ACTIONS = ("pause", "resume", "run", "remove")
_NAME = re.compile(r"\w[\w.-]{0,63}", re.ASCII)
_FOLLOWS = "after:"
_AS_GIVEN = ("timezone", "missed", "overlap", "deadline", "retries", "retry_delay")  # never changes
_LONGEST = 366 * 86400  # s, of a deadline or a delay
_MOST_TRIES = 100
MOST = 500
"""Schedules of one user."""
_INSTANT = timedelta(microseconds=1)
_PART = "schedule"
"""All that a request asks for, for `Site.wish`."""


def add(site: Site, caller: Caller, wanted: api_schema.ScheduleRequest) -> api_schema.ScheduleStatus:
    """Makes a schedule; its job is checked as if it were submitted now.

    Raises:
        Rejection: a leaf of it; nothing is kept.
    """
    if not _came_before(site, caller):
        made = msgspec.to_builtins(_schedule(site, caller, wanted))
        _wish(site, caller, caller.user, wanted.name, "add", made)
    found = _find(site, caller.user, wanted.name)
    if found is None:
        if wanted.rule.startswith(_FOLLOWS):
            _parents(site, caller, wanted.rule)  # one may have been removed meanwhile
        raise InvalidValue(
            f"schedule {wanted.name}: no leader has taken it yet; look later: hpcmesos cron list"
        )
    if not _is_what(found, wanted):
        raise InvalidValue(
            f"schedule {wanted.name}: another of that name was quicker; hpcmesos cron list shows it"
        )
    return _status(found)


def _is_what(found: Schedule, wanted: api_schema.ScheduleRequest) -> bool:
    """Whether it is the one that was wanted, by this try of the request or its first one, and may have run since."""
    job, words = found.job, Words.read(wanted.job.argv)
    assert job is not None
    if wanted.rule.startswith(_FOLLOWS):
        same = found.parents == _names(wanted.rule)
    else:
        same = rules.is_of(found.rule, wanted.rule)
    script = wanted.job.script if words.program is None else None
    asked = (words.submit_args, wanted.cwd, script)
    kept = (job.submission.get("submit_args"), job.submission.get("submit_dir"), job.script)
    return same and asked == kept and all(getattr(found, name) == getattr(wanted, name) for name in _AS_GIVEN)


def _schedule(site: Site, caller: Caller, wanted: api_schema.ScheduleRequest) -> Schedule:
    """As it is kept. Raises Rejection."""
    _check(site, caller, wanted)
    site.rates.take(caller.user, 1)
    now = datetime.now(UTC)
    parents: tuple[str, ...] = ()
    rule, upcoming = "", None
    if wanted.rule.startswith(_FOLLOWS):
        parents = _parents(site, caller, wanted.rule)
    else:
        rule = rules.resolve(wanted.rule, now)
        upcoming = rules.parse(rule, wanted.timezone).after(now - _INSTANT)
        if upcoming is None:
            raise InvalidValue(f"schedule {wanted.name}: '{wanted.rule}' is never due again")
    job = submit.template(site, caller, _request(wanted))
    if job.dependencies or job.submission.get("before") or job.not_before:
        raise InvalidValue(
            "the job of a schedule can have neither depend= nor -a: its schedule says when it starts"
        )
    return Schedule(
        owner=caller.user,
        name=wanted.name,
        rule=rule,
        timezone=wanted.timezone,
        since=now - _INSTANT,
        next_due=None if wanted.paused else upcoming,
        paused=wanted.paused,
        missed=wanted.missed,
        overlap=wanted.overlap,
        deadline=wanted.deadline,
        retries=wanted.retries,
        retry_delay=wanted.retry_delay,
        parents=parents,
        job=job,
    )


def listing(site: Site, caller: Caller) -> list[api_schema.ScheduleStatus]:
    """One's own; operators see all."""
    return [_status(one) for one in site.store.schedules(None if caller.privileged else caller.user)]


def change(site: Site, caller: Caller, owner: str, name: str, action: str) -> list[api_schema.ScheduleStatus]:
    """Raises UnknownSchedule, Unauthorized, InvalidValue: nothing is changed."""
    if action not in ACTIONS:
        raise InvalidValue(f"'{action[:40]}' is nothing to do with a schedule; one of {', '.join(ACTIONS)}")
    if not _came_before(site, caller):
        _check_own(site, caller, owner, name)
        if action == "remove":
            _check_childless(site, owner, name)
        _wish(site, caller, owner, name, action, None)
    if action == "remove":
        _check_childless(site, owner, name)  # the leader has left it for one that came meanwhile
    return listing(site, caller)


def runs(site: Site, caller: Caller, owner: str, name: str, limit: int) -> list[api_schema.ScheduleRun]:
    """What its last due times became. Raises UnknownSchedule, Unauthorized."""
    _check_own(site, caller, owner, name)
    return [_run(one, site.settings.server) for one in site.store.schedule_runs(owner, name, limit)]


def _check_childless(site: Site, owner: str, name: str) -> None:
    if children := [one.name for one in site.store.schedules(owner) if name in one.parents]:
        raise InvalidValue(f"schedule {name}: {', '.join(children)} follows it; remove that first")


def _check(site: Site, caller: Caller, wanted: api_schema.ScheduleRequest) -> None:
    if not _NAME.fullmatch(wanted.name):
        raise InvalidValue("a schedule's name has letters, digits, '_', '.' and '-', at most 64")
    if _find(site, caller.user, wanted.name):
        raise InvalidValue(
            f"schedule {wanted.name} is there already; hpcmesos cron rm {wanted.name} takes it away"
        )
    if site.store.schedule_count(caller.user) >= MOST:
        raise InvalidValue(f"{caller.user} has {MOST} schedules, the most that one may have")
    if wanted.missed not in ("skip", "once", "all"):
        raise InvalidValue(f"missed={wanted.missed[:40]}: one of skip, once, all")
    if wanted.overlap not in ("allow", "skip", "replace"):
        raise InvalidValue(f"overlap={wanted.overlap[:40]}: one of allow, skip, replace")
    for what in ("deadline", "retry_delay"):
        if not 0 <= getattr(wanted, what) <= _LONGEST:
            raise InvalidValue(f"{what}={getattr(wanted, what)}: from 0 s to {_LONGEST} s")
    if not 0 <= wanted.retries <= _MOST_TRIES:
        raise InvalidValue(f"retries={wanted.retries}: from 0 to {_MOST_TRIES}")


def _parents(site: Site, caller: Caller, rule: str) -> tuple[str, ...]:
    names = _names(rule)
    known = {one.name for one in site.store.schedules(caller.user, names)}
    for name in names:
        if name not in known:
            raise UnknownSchedule(f"'{rule[:200]}': you have no schedule '{name[:64]}'")
    return names


def _names(rule: str) -> tuple[str, ...]:
    """Whom it follows."""
    return tuple(dict.fromkeys(rule.removeprefix(_FOLLOWS).split(",")))


def _request(wanted: api_schema.ScheduleRequest) -> api_schema.SubmitRequest:
    return api_schema.SubmitRequest(
        jobs=[wanted.job],
        cwd=wanted.cwd,
        umask=wanted.umask,
        host=wanted.host,
        environ=wanted.environ,
        personality=wanted.personality,
    )


def _find(site: Site, owner: str, name: str) -> Schedule | None:
    return next(iter(site.store.schedules(owner, [name])), None)


def _check_own(site: Site, caller: Caller, owner: str, name: str) -> None:
    if not caller.may_touch(owner):
        raise Unauthorized(f"schedule {name} is {owner}'s")
    if not owner or _find(site, owner, name) is None:
        raise UnknownSchedule(f"{owner or 'nobody'} has no schedule {name}; hpcmesos cron list shows all")


def _came_before(site: Site, caller: Caller) -> bool:
    """Whether this is the second try of a request, which then waits as the first did: what that one did is no reason
    to refuse this one.
    """
    sent = site.wished(caller, _PART)
    if sent is not None:
        wishes.await_taken(site.store, [sent])
    return sent is not None


def _wish(site: Site, caller: Caller, owner: str, name: str, action: str, schedule: object) -> None:
    payload = {"action": action, "owner": owner, "name": name, "schedule": schedule}
    sent = site.wish(caller, wishes.SCHEDULE, None, payload, _PART)
    site.notifier.poke()
    wishes.await_taken(site.store, [sent])


def _status(one: Schedule) -> api_schema.ScheduleStatus:
    assert one.job is not None
    return api_schema.ScheduleStatus(
        owner=one.owner,
        name=one.name,
        rule=one.rule or _FOLLOWS + ",".join(one.parents),
        timezone=one.timezone,
        paused=one.paused,
        missed=one.missed,
        overlap=one.overlap,
        deadline=one.deadline,
        retries=one.retries,
        retry_delay=one.retry_delay,
        job_name=one.job.name,
        queue=one.job.queue,
        next_due=None if one.next_due is None else one.next_due.timestamp(),
        parents=list(one.parents),
    )


def _run(one: Run, server: str) -> api_schema.ScheduleRun:
    return api_schema.ScheduleRun(
        due=one.due.timestamp(),
        fired_at=one.fired_at.timestamp(),
        number=one.number,
        job=None if one.seq is None else str(JobId(one.seq, server)),
        outcome=one.outcome,
        retry_at=None if one.retry_at is None else one.retry_at.timestamp(),
    )
