from datetime import UTC, datetime, timedelta

import pytest

from hpcmesos.errors import InvalidValue
from hpcmesos.queue.schedules import due_times

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_due_times_lie_after_the_last_one_and_up_to_now() -> None:
    found = due_times("*/10 * * * *", NOON, NOON + timedelta(minutes=30))
    assert [at - NOON for at in found] == [timedelta(minutes=m) for m in (10, 20, 30)]


def test_nothing_is_due() -> None:
    assert due_times("0 3 * * *", NOON, NOON + timedelta(hours=2)) == []


def test_a_time_within_a_minute_counts_as_after() -> None:
    late = NOON + timedelta(seconds=0.5)
    assert due_times("* * * * *", late, NOON + timedelta(minutes=1)) == [NOON + timedelta(minutes=1)]


def test_the_rule_is_read_in_its_zone() -> None:
    found = due_times("0 3 * * *", NOON, NOON + timedelta(days=1), "America/New_York")
    assert [at.astimezone(UTC) for at in found] == [datetime(2026, 3, 2, 8, tzinfo=UTC)]


def test_a_local_time_that_comes_twice_is_due_twice() -> None:
    start = datetime(2026, 10, 24, tzinfo=UTC)
    found = due_times("30 2 * * *", start, start + timedelta(days=3), "Europe/Berlin")
    assert [at.day for at in found] == [24, 25, 25, 26]
    assert len({at.astimezone(UTC) for at in found}) == 4


@pytest.mark.parametrize(
    ("cron", "zone"), [("every day", "UTC"), ("* * * *", "UTC"), ("* * * * *", "Nowhere/X")]
)
def test_no_time_rule(cron: str, zone: str) -> None:
    with pytest.raises(InvalidValue, match="is no time rule"):
        due_times(cron, NOON, NOON, zone)
