"""Time rules of the cluster's own housekeeping. rules.py says when they are due; the database says once per due time.

A rule fires inside a leader's transaction, together with its action: a crash before the commit fires it again, one
after it does not. Users' schedules are fired in the same way; see timetable.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from hpcmesos.queue import rules

if TYPE_CHECKING:
    from hpcmesos.queue.leader_store import LeaderTransaction

_MOST_MISSED = 10_000  # due times looked through after a long absence


@dataclass(frozen=True, slots=True)
class Fired:
    """A rule and the latest of its due times; earlier ones that were missed are skipped."""

    name: str
    due: datetime


def fire_due(transaction: LeaderTransaction) -> list[Fired]:
    """Marks as fired what is due at ``transaction.now``; the caller acts in the same transaction."""
    fired = []
    for name, text, timezone, last in transaction.schedules():
        due = rules.due_times(rules.parse(text, timezone), last, transaction.now, _MOST_MISSED)
        if due and transaction.fire_schedule(name, due[-1]):
            fired.append(Fired(name, due[-1]))
    return fired
