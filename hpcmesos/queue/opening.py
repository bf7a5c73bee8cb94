"""Times at which jobs of a queue may start: ``Mon-Fri 18:00-08:00,Sat-Sun 00:00-24:00``. Pure.

A span that ends before it begins goes past midnight; it belongs to the day on which it begins. Without days: every day.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from hpcmesos.errors import InvalidValue

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = 24 * 60
_SPAN = re.compile(r"(?:([a-z]{3})(?:-([a-z]{3}))?\s+)?(\d\d?):(\d\d)-(\d\d?):(\d\d)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Span:
    """Minutes of the day from ``begin`` to ``end`` (may lie on the next day), on these weekdays (0: Monday)."""

    days: frozenset[int]
    begin: int
    end: int

    def holds(self, day: int, minute: int) -> bool:
        before = (day - 1) % 7 in self.days and minute + _DAY < self.end
        return before or (day in self.days and self.begin <= minute < self.end)


def parse_opening(text: str) -> tuple[Span, ...]:
    """The spans of a text as above. Raises InvalidValue for one that is none."""
    return tuple(_span(part.strip()) for part in text.split(","))


def is_open(text: str, when: datetime) -> bool:
    """Whether jobs may start at ``when``, in its own zone."""
    day, minute = when.weekday(), when.hour * 60 + when.minute
    return any(span.holds(day, minute) for span in parse_opening(text))


def next_opening(text: str, when: datetime) -> datetime | None:
    """The next full minute at which jobs may start; None: not within eight days."""
    start = when.replace(second=0, microsecond=0)
    spans = parse_opening(text)
    for ahead in range(1, 8 * _DAY):
        at = start + timedelta(minutes=ahead)
        if any(span.holds(at.weekday(), at.hour * 60 + at.minute) for span in spans):
            return at
    return None


def _span(text: str) -> Span:
    match = _SPAN.fullmatch(text.lower())
    if not match:
        raise InvalidValue(
            f"'{text}' is no time of a queue; write e.g. Mon-Fri 18:00-08:00,Sat-Sun 00:00-24:00"
        )
    first, last, *numbers = match.groups()
    if first is not None and not {first, last or first} <= set(_DAYS):
        raise InvalidValue(f"'{text}': days are {', '.join(_DAYS)}")
    begin_hour, begin_minute, end_hour, end_minute = map(int, numbers)
    begin, end = begin_hour * 60 + begin_minute, end_hour * 60 + end_minute
    if begin >= _DAY or end > _DAY or begin_minute > 59 or end_minute > 59 or begin == end:
        raise InvalidValue(f"'{text}': times lie between 00:00 and 24:00, and differ")
    return Span(_weekdays(first, last), begin, end if end > begin else end + _DAY)


def _weekdays(first: str | None, last: str | None) -> frozenset[int]:
    if first is None:
        return frozenset(range(7))
    begin, end = _DAYS.index(first), _DAYS.index(last or first)
    return frozenset(day % 7 for day in range(begin, (end if end >= begin else end + 7) + 1))
