"""When a schedule is due: crontab lines by APScheduler's triggers, and ISO 8601 repeating intervals. Pure.

Crontab (Vixie): ``MINUTE HOUR DAY MONTH WEEKDAY``, or six fields with seconds first, or ``@hourly`` and its kin.
Weekdays count from Sunday (0 or 7); where both days are restricted, either of them will do. A local time that the clock
leaves out is due an hour later; one that comes twice is due once, unless the hour is ``*`` or ``*/n``.

ISO 8601: ``R[N]/[START]/PERIOD`` (Chronos): N times or for ever, from START on, ``P1M`` and ``P1D`` by the calendar of
the time zone, ``PT1H`` by elapsed time.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from hpcmesos.errors import InvalidValue

_NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_FIELDS = ("second", "minute", "hour", "day", "month", "day_of_week")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_TERM = re.compile(r"(\*|(?P<first>\w+)(-(?P<last>\w+))?)(/(?P<step>[1-9]\d?))?", re.ASCII)
_REPEAT = re.compile(r"R(?P<count>\d{1,9})?/(?P<start>[^/]*)/(?P<period>P[^/]+)", re.ASCII)
_PERIOD = re.compile(
    r"P(?:(?P<years>\d+)Y)?(?:(?P<months>\d+)M)?(?:(?P<weeks>\d+)W)?(?:(?P<days>\d+)D)?"
    r"(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+)S)?)?",
    re.ASCII,
)
_MEAN_MONTH = 30.436875 * 86400
_LONGEST = 100 * 365 * 86400  # seconds between two due times
_LATEST = datetime(9000, 1, 1, tzinfo=UTC)


class Rule(Protocol):
    """When something is due."""

    def after(self, moment: datetime) -> datetime | None:
        """The first due time behind ``moment`` (aware), in UTC; None: it is never due again."""


@lru_cache(maxsize=4096)
def parse(text: str, timezone: str = "UTC") -> Rule:
    """Raises InvalidValue: neither a crontab line nor a repeating interval, or an unknown time zone."""
    try:
        zone = ZoneInfo(timezone)
    except (ValueError, KeyError, OSError) as error:
        raise InvalidValue(f"'{text}' ({timezone}) is no time rule: no such time zone") from error
    try:
        if text.startswith("R"):
            return _interval(text, zone)
        return _crontab(_NICKNAMES.get(text, text), zone)
    except (ValueError, KeyError, OverflowError) as error:
        raise InvalidValue(f"'{text}' ({timezone}) is no time rule: {error}") from error


def resolve(text: str, now: datetime) -> str:
    """The rule with its start written out where an interval has none: it begins ``now``."""
    found = _REPEAT.fullmatch(text)
    if found is None or found["start"]:
        return text
    return (
        f"R{found['count'] or ''}/{now.astimezone(UTC).isoformat(timespec='microseconds')}/{found['period']}"
    )


def is_of(rule: str, text: str) -> bool:
    """Whether resolve() makes this rule of the text, at some time or other."""
    found = _REPEAT.fullmatch(rule)
    return rule == text or (found is not None and text == f"R{found['count'] or ''}//{found['period']}")


def due_times(rule: Rule, last: datetime, now: datetime, most: int) -> list[datetime]:
    """The first ``most`` due times after ``last`` up to ``now``."""
    return list(islice(_due(rule, last, now), most))


def _due(rule: Rule, last: datetime, now: datetime) -> Iterator[datetime]:
    due = rule.after(last)
    while due is not None and due <= now:
        yield due
        due = rule.after(due)


@dataclass(frozen=True)
class Crontab:
    """``triggers``: due is whatever one of them says."""

    triggers: tuple[Any, ...]
    zone: ZoneInfo
    every_hour: bool

    def after(self, moment: datetime) -> datetime | None:
        found = (self._next(trigger, moment) for trigger in self.triggers)
        return min((due for due in found if due is not None), default=None)

    def _next(self, trigger: Any, moment: datetime) -> datetime | None:
        previous = moment.astimezone(self.zone)
        while True:
            # Strictly after ``previous`` when that was itself a due time.
            due = trigger.get_next_fire_time(previous, previous)
            if due is None:
                return None
            if due.astimezone(UTC) > moment and (self.every_hour or not _comes_again(due)):
                found: datetime = due.astimezone(UTC)
                return found
            previous = due


@dataclass(frozen=True)
class Interval:
    """``count``: how many times; None: for ever. ``seconds``: of elapsed time, on top of months and days."""

    start: datetime  # in the schedule's zone
    months: int
    days: int
    seconds: int
    count: int | None

    def after(self, moment: datetime) -> datetime | None:
        """The first due time after ``moment``; None: there is none any more."""
        mean = self.months * _MEAN_MONTH + self.days * 86400 + self.seconds
        number = max(0, int((moment - self.start).total_seconds() / mean) - 2)
        while self.count is None or number < self.count:
            due = self._at(number)
            if due > moment:
                return due
            if due > _LATEST:
                return None
            number += 1
        return None

    def _at(self, number: int) -> datetime:
        """The due time with this number, from 0."""
        month = self.start.month - 1 + number * self.months
        year, month = self.start.year + month // 12, month % 12 + 1
        day = min(self.start.day, calendar.monthrange(year, month)[1])
        local = self.start.replace(year=year, month=month, day=day) + timedelta(days=number * self.days)
        return local.astimezone(UTC) + timedelta(seconds=number * self.seconds)


def _comes_again(due: datetime) -> bool:
    """Whether this is the second passing of a local time that comes twice."""
    return due.fold == 1 and due.utcoffset() != due.replace(fold=0).utcoffset()


def _crontab(text: str, zone: ZoneInfo) -> Crontab:
    from apscheduler.triggers.cron import CronTrigger  # a leader that takes over need not wait for it

    words = text.split()
    if len(words) == 5:
        words = ["0", *words]
    if len(words) != 6:
        raise ValueError("write MINUTE HOUR DAY MONTH WEEKDAY, or R/START/PERIOD")
    fields = dict(zip(_FIELDS, words, strict=True))
    fields["day_of_week"] = _weekdays(fields["day_of_week"])
    either = not fields["day"].startswith("*") and not words[5].startswith("*")
    chosen = [{**fields, "day_of_week": "*"}, {**fields, "day": "*"}] if either else [fields]
    triggers = tuple(CronTrigger(**one, timezone=zone) for one in chosen)
    return Crontab(triggers, zone, fields["hour"].startswith("*"))


def _weekdays(text: str) -> str:
    """The field as APScheduler reads it: names, for its numbers begin on Monday."""
    if text == "*":
        return text
    found: set[int] = set()
    for term in text.lower().split(","):
        match = _TERM.fullmatch(term)
        if match is None:
            raise ValueError(f"'{term}' is no weekday")
        if match["first"] is None:
            first, last = 0, 6
        else:
            first = _weekday(match["first"])
            last = _weekday(match["last"]) if match["last"] else (6 if match["step"] else first)
        if last < first:
            last += 7
        found.update(number % 7 for number in range(first, last + 1, int(match["step"] or 1)))
    return ",".join(_WEEKDAYS[number] for number in sorted(found))


def _weekday(text: str) -> int:
    if text.isdigit():
        number = int(text)
        if number > 7:
            raise ValueError(f"{number} is no weekday: 0 (Sunday) to 7 (Sunday)")
        return number
    return _WEEKDAYS.index(text)


def _interval(text: str, zone: ZoneInfo) -> Interval:
    found = _REPEAT.fullmatch(text)
    period = _PERIOD.fullmatch(found["period"]) if found else None
    if found is None or period is None:
        raise ValueError("write R[N]/START/PERIOD, such as R/2026-12-01T03:00/P1D or R10//PT1H")
    given = {name: int(value) for name, value in period.groupdict(default="0").items()}
    months = 12 * given["years"] + given["months"]
    days = 7 * given["weeks"] + given["days"]
    seconds = 3600 * given["hours"] + 60 * given["minutes"] + given["seconds"]
    if not 0 < months * _MEAN_MONTH + days * 86400 + seconds < _LONGEST:
        raise ValueError("its period is nothing, or longer than a hundred years")
    start = datetime.fromisoformat(found["start"])
    start = start.astimezone(zone) if start.tzinfo else start.replace(tzinfo=zone)
    return Interval(start, months, days, seconds, int(found["count"]) if found["count"] else None)
