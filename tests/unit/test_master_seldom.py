"""Outages fill no log."""

from __future__ import annotations

import logging
import threading

import pytest

from hpcmesos.errors import DatabaseUnavailable
from hpcmesos.master import leader
from hpcmesos.master.seldom import Seldom


def test_the_same_is_said_once_a_minute_with_its_number(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    outages = Seldom(logging.getLogger("test"), lambda: now[0])
    for second in range(61):
        now[0] = float(second)
        outages.warn("the database is gone", f"GET /{second}")
    outages.warn("no leader")
    assert caplog.messages == [
        "GET /0: the database is gone",
        "GET /60: the database is gone (59 times more in the last 60 s)",
        "no leader",
    ]


@pytest.mark.parametrize(
    ("error", "traceback"), [(DatabaseUnavailable("gone"), False), (KeyError("x"), True)]
)
def test_a_leader_without_database_ends_in_one_line(
    error: Exception, traceback: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ends: list[str] = []
    monkeypatch.setattr(leader, "die", ends.append)

    def fail() -> None:
        raise error

    leader.guarded(fail, threading.Event())()
    assert ends == [f"{type(error).__name__} in thread MainThread: {error}"]
    assert any(record.exc_info for record in caplog.records) is traceback
