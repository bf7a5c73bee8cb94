"""How fast users may submit."""

from __future__ import annotations

import pytest

from hpcmesos.errors import TooFast
from hpcmesos.master.rates import Rates


def test_each_user_has_a_burst_and_then_a_rate() -> None:
    now = [0.0]
    rates = Rates(2.0, 10.0, lambda: now[0])
    rates.take("ann", 10)
    with pytest.raises(TooFast, match="2 jobs a second from ann; try again in 1 s"):
        rates.take("ann", 1)
    rates.take("bob", 10)
    now[0] = 0.5
    rates.take("ann", 1)
    with pytest.raises(TooFast):
        rates.take("ann", 1)
    now[0] = 1000.0
    rates.take("ann", 10)
    with pytest.raises(TooFast):
        rates.take("ann", 1)


def test_a_refusal_costs_nothing() -> None:
    now = [0.0]
    rates = Rates(1.0, 10.0, lambda: now[0])
    rates.take("ann", 8)
    for _ in range(5):
        with pytest.raises(TooFast):
            rates.take("ann", 5)
    rates.take("ann", 2)


def test_a_call_above_the_burst_passes_and_is_paid_off() -> None:
    now = [0.0]
    rates = Rates(1.0, 10.0, lambda: now[0])
    rates.take("ann", 25)
    now[0] = 15.5
    with pytest.raises(TooFast):
        rates.take("ann", 1)
    now[0] = 16.0
    rates.take("ann", 1)


def test_no_rate_is_no_limit() -> None:
    rates = Rates(0.0, 0.0)
    for _ in range(1000):
        rates.take("ann", 1000)


def test_users_who_rest_are_forgotten() -> None:
    now = [0.0]
    rates = Rates(1.0, 5.0, lambda: now[0])
    for number in range(10_000):
        rates.take(f"user{number}", 1)
    now[0] = 100.0
    rates.take("ann", 5)
    assert len(rates._buckets) == 1
    with pytest.raises(TooFast):
        rates.take("ann", 1)
