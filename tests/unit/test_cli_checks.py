"""What doctor says of nodes, and of the database's durability."""

from __future__ import annotations

from typing import Any

import pytest

from hpcmesos.api_schema import HealthReply, NodeStatus
from hpcmesos.cli.checks import _database, _nodes

HINT = "; pbsnodes -l -n says why"


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


@pytest.mark.parametrize(
    ("states", "verdict", "text"),
    [
        ("", "note", "no node has joined yet: hpcmesos token create --join, then hpcmesos agent"),
        ("free busy", "good", "2 up"),
        ("free down", "note", f"1 in service; not up: node2{HINT}"),
        (
            "offline gone draining",
            "note",
            f"0 in service; not up: node2; offline: node1, node3{HINT}",
        ),
    ],
)
def test_nodes_that_take_no_jobs_are_named(states: str, verdict: str, text: str) -> None:
    nodes = [
        NodeStatus(name=f"node{number}", state=state, cpus=4, memory=0, address="", gpus=[])
        for number, state in enumerate(states.split(), 1)
    ]
    finding = _nodes(nodes)
    assert (finding.verdict, finding.text) == (verdict, text)
