"""Time rules. APScheduler's triggers say when they are due; the database says once per due time.

A rule fires inside a leader's transaction, together with its action: a crash before the commit fires it again, one
after it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from apscheduler.triggers.cron import CronTrigger

from hpcmesos.errors import InvalidValue

if TYPE_CHECKING:
    from hpcmesos.queue.leader_store import LeaderTransaction

_MOST_MISSED = 10_000  # due times looked through after a long absence


@dataclass(frozen=True, slots=True)
class Fired:
    """A rule and the latest of its due times; earlier ones that were missed are skipped."""

    name: str
    due: datetime


def due_times(cron: str, last: datetime, now: datetime, timezone: str = "UTC") -> list[datetime]:
    """Due times after ``last`` up to ``now``, both aware; ``cron``: five fields, read in ``timezone``. A local time
    that the clock passes twice is due twice; housekeeping runs in UTC.

    Raises:
        InvalidValue: not a crontab line, or an unknown time zone.
    """
    return list(islice(_due(cron, last, now, timezone), _MOST_MISSED))


def fire_due(transaction: LeaderTransaction) -> list[Fired]:
    """Marks as fired what is due at ``transaction.now``; the caller acts in the same transaction."""
    fired = []
    for name, cron, timezone, last in transaction.schedules():
        due = due_times(cron, last, transaction.now, timezone)
        if due and transaction.fire_schedule(name, due[-1]):
            fired.append(Fired(name, due[-1]))
    return fired


def _due(cron: str, last: datetime, now: datetime, timezone: str) -> Iterator[datetime]:
    try:
        zone = ZoneInfo(timezone)
        trigger = CronTrigger.from_crontab(cron, timezone=zone)
    except (ValueError, KeyError) as error:
        raise InvalidValue(f"'{cron}' ({timezone}) is no time rule: {error}") from error
    previous = last.astimezone(zone)
    while True:
        # The trigger's next time is strictly after ``previous`` when that was itself a due time.
        due = trigger.get_next_fire_time(previous, previous)
        if due is None or due > now:
            return
        if due > last:
            yield due
        previous = due
