from datetime import UTC, datetime, timedelta

import pytest

from hpcmesos.errors import InvalidValue
from hpcmesos.queue import rules

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def after(text: str, start: str, count: int, zone: str = "UTC") -> list[str]:
    """The next due times, in the zone of ``start``'s rule but written in UTC."""
    rule, moment, found = rules.parse(text, zone), datetime.fromisoformat(start).replace(tzinfo=UTC), []
    for _ in range(count):
        due = rule.after(moment)
        if due is None:
            found.append("never")
            break
        assert due > moment
        moment = due
        found.append(f"{due:%m-%dT%H:%M:%S}")
    return found


def test_due_times_lie_after_the_last_one_and_up_to_now() -> None:
    rule = rules.parse("*/10 * * * *")
    found = rules.due_times(rule, NOON, NOON + timedelta(minutes=30), 100)
    assert [at - NOON for at in found] == [timedelta(minutes=m) for m in (10, 20, 30)]
    assert rules.due_times(rule, NOON, NOON + timedelta(minutes=30), 2) == found[:2]
    assert rules.due_times(rules.parse("0 3 * * *"), NOON, NOON + timedelta(hours=2), 100) == []
    late = NOON + timedelta(seconds=0.5)
    every = rules.parse("* * * * *")
    assert rules.due_times(every, late, NOON + timedelta(minutes=1), 9) == [NOON + timedelta(minutes=1)]


@pytest.mark.parametrize(
    ("rule", "zone", "start", "expected"),
    [
        # 27 November 2026 is a Friday
        ("0 12 * * 1", "UTC", "2026-11-27", ["11-30T12:00:00", "12-07T12:00:00"]),
        ("0 12 * * 0", "UTC", "2026-11-27", ["11-29T12:00:00", "12-06T12:00:00"]),
        ("0 12 * * 7", "UTC", "2026-11-27", ["11-29T12:00:00", "12-06T12:00:00"]),
        ("0 12 * * 5-7/2", "UTC", "2026-11-27", ["11-27T12:00:00", "11-29T12:00:00", "12-04T12:00:00"]),
        ("0 12 * * mon,Fri", "UTC", "2026-11-28", ["11-30T12:00:00", "12-04T12:00:00"]),
        ("0 12 1 * *", "UTC", "2026-11-27", ["12-01T12:00:00", "01-01T12:00:00"]),
        # Both days restricted: either will do.
        ("0 12 1 * 5", "UTC", "2026-11-27", ["11-27T12:00:00", "12-01T12:00:00", "12-04T12:00:00"]),
        ("@daily", "America/New_York", "2026-11-27", ["11-27T05:00:00", "11-28T05:00:00"]),
        ("*/20 * * * * *", "UTC", "2026-11-27", ["11-27T00:00:20", "11-27T00:00:40", "11-27T00:01:00"]),
        ("0 0 29 2 *", "UTC", "2026-11-27", ["02-29T00:00:00"]),
        ("0 0 31 2 *", "UTC", "2026-11-27", ["never"]),
    ],
)
def test_crontab(rule: str, zone: str, start: str, expected: list[str]) -> None:
    assert after(rule, start, len(expected), zone) == expected


@pytest.mark.parametrize(
    ("rule", "start", "expected"),
    [
        # 02:30 is left out on 29 March: an hour later by the clock, and once.
        ("30 2 * * *", "2026-03-28T12:00", ["03-29T01:30:00", "03-30T00:30:00"]),
        # 02:30 comes twice on 25 October: once.
        ("30 2 * * *", "2026-10-24T12:00", ["10-25T00:30:00", "10-26T01:30:00"]),
        ("30 2,3 * * *", "2026-10-24T12:00", ["10-25T00:30:00", "10-25T02:30:00", "10-26T01:30:00"]),
        # Every hour is every hour that passes.
        (
            "30 * * * *",
            "2026-10-24T23:00",
            ["10-24T23:30:00", "10-25T00:30:00", "10-25T01:30:00", "10-25T02:30:00"],
        ),
        ("0 */1 * * *", "2026-03-29T00:30", ["03-29T01:00:00", "03-29T02:00:00"]),
        # By the calendar, and by elapsed time.
        (
            "R/2026-10-24T08:00/P1D",
            "2026-10-24T00:00",
            ["10-24T06:00:00", "10-25T07:00:00", "10-26T07:00:00"],
        ),
        ("R/2026-10-24T08:00/PT24H", "2026-10-24T00:00", ["10-24T06:00:00", "10-25T06:00:00"]),
        (
            "R3/2026-01-31T03:00/P1M",
            "2026-01-01",
            ["01-31T02:00:00", "02-28T02:00:00", "03-31T01:00:00", "never"],
        ),
    ],
)
def test_summer_time_in_berlin(rule: str, start: str, expected: list[str]) -> None:
    assert after(rule, start, len(expected), "Europe/Berlin") == expected


@pytest.mark.parametrize(
    ("rule", "start", "expected"),
    [
        ("R2/2026-11-27T03:00+01:00/PT90S", "2026-11-27", ["11-27T02:00:00", "11-27T02:01:30", "never"]),
        ("R/2000-01-01T00:00Z/PT7M", "2026-11-27", ["11-27T00:05:00", "11-27T00:12:00"]),
        ("R/2027-01-01/P1Y", "2026-11-27", ["01-01T00:00:00", "01-01T00:00:00"]),
        ("R/2026-01-01/P2W", "2026-11-27", ["12-03T00:00:00", "12-17T00:00:00"]),
    ],
)
def test_repeating_intervals(rule: str, start: str, expected: list[str]) -> None:
    assert after(rule, start, len(expected)) == expected


def test_an_interval_without_a_start_begins_now() -> None:
    assert rules.resolve("R5//PT10M", NOON) == "R5/2026-03-01T12:00:00.000000+00:00/PT10M"
    assert rules.resolve("R5/2027-01-01/PT10M", NOON) == "R5/2027-01-01/PT10M"
    assert rules.resolve("@daily", NOON) == "@daily"


@pytest.mark.parametrize("text", ["R5//PT10M", "R//P1D", "R5/2027-01-01/PT10M", "@daily", "*/5 * * * *"])
def test_whose_rule_it_is_whenever_it_was_made(text: str) -> None:
    made = rules.resolve(text, NOON)
    assert rules.is_of(made, text)
    for other in ("R6//PT10M", "R5//PT11M", "R5/2027-01-02/PT10M", "@hourly", ""):
        assert not rules.is_of(made, other)


@pytest.mark.parametrize(
    ("rule", "zone"),
    [
        *(
            (text, "UTC")
            for text in ("", "every day", "* * * *", "60 * * * *", "* * * * 9", "* * * * 1/0", "@never")
        ),
        *(
            (text, "UTC")
            for text in (
                "R",
                "R/x/P1D",
                "R//P1D",
                "R/2026-01-01/P",
                "R/2026-01-01/PT0S",
                "R-1/2026-01-01/P1D",
            )
        ),
        ("* * * * *", "Nowhere/X"),
        ("* * * * *", "../etc/passwd"),
        ("* * * * *", ""),
    ],
)
def test_no_time_rule(rule: str, zone: str) -> None:
    with pytest.raises(InvalidValue, match="is no time rule"):
        rules.parse(rule, zone)
