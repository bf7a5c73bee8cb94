"""What doctor says of the database's durability."""

from __future__ import annotations

from typing import Any

import pytest

from hpcmesos.api_schema import HealthReply
from hpcmesos.cli.checks import _database


@pytest.mark.parametrize(
    ("settings", "verdict", "word"),
    [
        ({"standbys": "FIRST 1 (s1)"}, "good", "FIRST 1 (s1)"),
        ({}, "note", "no synchronous standby"),
        ({"fsync": False}, "bad", "fsync"),
        ({"synchronous_commit": "off", "standbys": "s1"}, "bad", "synchronous_commit"),
        ({"synchronous_commit": "local", "standbys": "s1"}, "bad", "local"),
    ],
)
def test_what_a_crash_or_a_failover_may_cost(settings: dict[str, Any], verdict: str, word: str) -> None:
    health = HealthReply(status="ok", database=True, leader=True, timeline=3, **settings)
    (finding,) = _database(health)
    assert finding.verdict == verdict
    assert word in finding.text
