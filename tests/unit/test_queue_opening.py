"""Times at which jobs of a queue may start."""

from __future__ import annotations

from datetime import datetime

import pytest

from hpcmesos.errors import InvalidValue
from hpcmesos.queue.opening import is_open, next_opening

NIGHTS = "Mon-Fri 18:00-08:00, Sat-Sun 00:00-24:00"


def at(text: str) -> datetime:
    """In the week of Monday, 2 March 2026."""
    day, time = text.split()
    number = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"].index(day)
    return datetime.fromisoformat(f"2026-03-{2 + number:02}T{time}+01:00")


@pytest.mark.parametrize(
    ("when", "open_"),
    [
        ("mon 07:59", False),  # Sunday's span ended at midnight
        ("mon 17:59", False),
        ("mon 18:00", True),
        ("tue 03:00", True),
        ("tue 08:00", False),
        ("sat 07:00", True),
        ("sat 12:00", True),
        ("sun 23:59", True),
    ],
)
def test_nights_and_weekends(when: str, open_: bool) -> None:
    assert is_open(NIGHTS, at(when)) is open_


def test_every_day_and_days_past_the_end_of_the_week() -> None:
    assert is_open("12:00-13:00", at("wed 12:30"))
    assert not is_open("12:00-13:00", at("wed 13:00"))
    assert is_open("Sat-Mon 10:00-11:00", at("mon 10:00"))
    assert not is_open("Sat-Mon 10:00-11:00", at("tue 10:00"))


def test_the_next_opening() -> None:
    assert next_opening(NIGHTS, at("tue 09:30")) == at("tue 18:00")
    assert next_opening("Wed 10:00-11:00", at("wed 10:30")) == at("wed 10:31")
    assert next_opening("Tue 10:00-11:00", at("mon 10:30")) == at("tue 10:00")


@pytest.mark.parametrize(
    "text", ["", "always", "Mon", "Mon 8-9", "Foo 08:00-09:00", "08:00-08:00", "25:00-26:00", "08:61-09:00"]
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(InvalidValue):
        is_open(text, at("mon 10:00"))
