"""What becomes of due times that were missed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from hpcmesos.master.timetable import decide
from hpcmesos.queue.schedule_rows import Schedule

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def ago(*seconds: int) -> list[datetime]:
    return [NOW - timedelta(seconds=one) for one in seconds]


@pytest.mark.parametrize(
    ("missed", "due", "run", "skipped"),
    [
        ("skip", (300, 200, 100, 30, 0), (30, 0), (300, 200, 100)),
        ("once", (300, 200, 100, 30, 0), (100, 30, 0), (300, 200)),
        ("all", (300, 200, 100, 30, 0), (300, 200, 100, 30, 0), ()),
        ("skip", (60,), (60,), ()),
        ("skip", (61,), (), (61,)),
        ("once", (61,), (61,), ()),
        ("once", (), (), ()),
    ],
)
def test_missed_due_times(missed: str, due: tuple[int], run: tuple[int], skipped: tuple[int]) -> None:
    schedule = Schedule(owner="ann", name="x", rule="* * * * *", since=NOW, missed=missed, deadline=60)
    decision = decide(ago(*due), NOW, schedule)
    assert list(decision.run) == ago(*run)
    assert list(decision.missed) == ago(*skipped)


def test_a_long_absence_still_makes_one_run() -> None:
    schedule = Schedule(owner="ann", name="x", rule="* * * * *", since=NOW, missed="once")
    assert list(decide(ago(9000, 8000), NOW, schedule, more=True).run) == []
    assert list(decide(ago(7000, 10), NOW, schedule, more=True).run) == ago(7000, 10)
