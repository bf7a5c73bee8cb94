"""Constraints on the nodes of a gang."""

from __future__ import annotations

import pytest

from hpcmesos.errors import InvalidValue
from hpcmesos.gang.constraints import check
from hpcmesos.gang.policy import Policy
from hpcmesos.gang.schedule import schedule
from hpcmesos.gang.snapshot import Constraint, JobView, NodeView, Plan, Snapshot
from hpcmesos.model import Chunk, JobId, NodeName, ReasonCode, Request

RACKS = {"a1": "r1", "a2": "r1", "a3": "r1", "b1": "r2", "b2": "r2", "c1": "r3", "x1": None}
NODES = tuple(
    NodeView(NodeName(name), True, 4, 4, 0, 0, (), frozenset({f"rack={rack}"} if rack else ()))
    for name, rack in RACKS.items()
)


def plan(nodes: int, *rules: Constraint) -> Plan:
    job = JobView(JobId(1, "h"), Request((Chunk(nodes),)), 0, 0.0, "batch", constraints=rules)
    return schedule(Snapshot(NODES, (job,)), Policy(), 0.0)


def racks(nodes: int, *rules: Constraint) -> list[str | None]:
    return sorted(str(RACKS[member.node]) for start in plan(nodes, *rules).starts for member in start.members)


@pytest.mark.parametrize(
    ("nodes", "rule", "expected"),
    [
        (5, Constraint("rack", "LIKE", "r[12]"), ["r1", "r1", "r1", "r2", "r2"]),
        (6, Constraint("rack", "LIKE", "r[12]"), []),
        (2, Constraint("rack", "UNLIKE", "r[12]"), ["None", "r3"]),
        (1, Constraint("rack", "IS", "r3"), ["r3"]),
        (1, Constraint("hostname", "IS", "x1"), ["None"]),
        (3, Constraint("rack", "UNIQUE"), ["r1", "r2", "r3"]),
        (4, Constraint("rack", "UNIQUE"), []),
        (5, Constraint("rack", "MAX_PER", "2"), ["r1", "r1", "r2", "r2", "r3"]),
        (6, Constraint("rack", "MAX_PER", "2"), []),
        (3, Constraint("rack", "CLUSTER"), ["r1", "r1", "r1"]),
        (2, Constraint("rack", "CLUSTER", "r2"), ["r2", "r2"]),
        (4, Constraint("rack", "CLUSTER"), []),
        (3, Constraint("rack", "GROUP_BY"), ["r1", "r2", "r3"]),
        (4, Constraint("rack", "GROUP_BY"), ["r1", "r1", "r2", "r3"]),
        (2, Constraint("rack", "GROUP_BY", "4"), []),
    ],
)
def test_a_gang_keeps_to_its_rule(nodes: int, rule: Constraint, expected: list[str]) -> None:
    assert racks(nodes, rule) == expected


def test_rules_hold_together() -> None:
    assert racks(2, Constraint("rack", "UNIQUE"), Constraint("rack", "LIKE", "r[13]")) == ["r1", "r3"]


def test_what_no_node_can_keep_never_fits() -> None:
    reason = plan(4, Constraint("rack", "UNIQUE")).reasons[JobId(1, "h")]
    assert reason.code is ReasonCode.NEVER_FITS
    assert reason.text == "needs 4 nodes with 1 CPU each; the nodes cannot keep to rack UNIQUE"


@pytest.mark.parametrize(
    "rule",
    [Constraint("rack", "NEAR", "x"), Constraint("rack", "LIKE", "("), Constraint("rack", "MAX_PER", "0")],
)
def test_what_is_no_constraint_is_refused(rule: Constraint) -> None:
    with pytest.raises(InvalidValue):
        check(rule)
