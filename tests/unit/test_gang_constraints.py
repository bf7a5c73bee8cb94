"""Constraints on the nodes of a gang."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest

from hpcmesos.errors import InvalidValue
from hpcmesos.gang.constraints import check, parse
from hpcmesos.gang.placing import can_ever_fit
from hpcmesos.gang.policy import Policy
from hpcmesos.gang.schedule import schedule
from hpcmesos.gang.snapshot import JobView, NodeView, Plan, Snapshot
from hpcmesos.model import Chunk, Constraint, JobId, NodeName, Placement, ReasonCode, Request

RACKS = {"a1": "r1", "a2": "r1", "a3": "r1", "b1": "r2", "b2": "r2", "c1": "r3", "x1": None}
NODES = tuple(
    NodeView(NodeName(name), True, 4, 4, 0, 0, (), frozenset({f"rack={rack}"} if rack else ()))
    for name, rack in RACKS.items()
)


def plan(nodes: int, *rules: Constraint, placement: Placement = Placement.SCATTER) -> Plan:
    request = Request((Chunk(nodes),), placement, constraints=rules)
    job = JobView(JobId(1, "h"), request, 0, 0.0, "batch")
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
    assert reason.text == "needs 4 nodes with 1 CPU each; the nodes cannot keep to rack:UNIQUE"


def test_what_can_never_be_is_told_at_submit() -> None:
    rules = (Constraint("rack", "GROUP_BY", "4"),)
    reason = can_ever_fit(Request((Chunk(4),), constraints=rules), NODES)
    assert reason is not None
    assert reason.code is ReasonCode.NEVER_FITS
    assert reason.text.endswith("the nodes cannot keep to rack:GROUP_BY:4")
    assert can_ever_fit(Request((Chunk(4),), constraints=(Constraint("rack", "GROUP_BY"),)), NODES) is None
    assert can_ever_fit(Request((Chunk(4),), constraints=rules), ()) is None, "no node is known yet"


def test_all_on_one_value_also_where_pieces_share_nodes() -> None:
    (start,) = plan(8, Constraint("rack", "CLUSTER"), placement=Placement.FREE).starts
    assert len({RACKS[member.node] for member in start.members}) == 1
    (start,) = plan(4, Constraint("hostname", "CLUSTER"), placement=Placement.FREE).starts
    assert len(start.members) == 1
    assert not plan(5, Constraint("hostname", "CLUSTER"), placement=Placement.FREE).starts


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("rack:UNIQUE", [Constraint("rack", "UNIQUE")]),
        ("@hostname:unlike:node[12]", [Constraint("hostname", "UNLIKE", "node[12]")]),
        ("rack:LIKE:r{1,2}", [Constraint("rack", "LIKE", "r{1,2}")]),
        ("rack:IS:a:b, gpu:LIKE:a,b", [Constraint("rack", "IS", "a:b"), Constraint("gpu", "LIKE", "a,b")]),
        (
            "rack:GROUP_BY:3,zone:MAX_PER:2",
            [Constraint("rack", "GROUP_BY", "3"), Constraint("zone", "MAX_PER", "2")],
        ),
    ],
)
def test_rules_as_users_write_them(text: str, rules: list[Constraint]) -> None:
    assert list(parse(text)) == rules
    assert list(parse(",".join(map(str, rules)))) == rules


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "write FIELD:OPERATOR"),
        ("rack", "write FIELD:OPERATOR"),
        (":UNIQUE", "write FIELD:OPERATOR"),
        ("rack:NEAR:x", "no 'NEAR'"),
        ("rack:LIKE", "wants a value"),
        ("rack:LIKE:[a", "no regular expression"),
        ("rack:LIKE:(a+)+b", "groups are not served"),
        ("rack:LIKE:.*.*.*b", "at most 2"),
        ("rack:LIKE:a{1,99}a{1,99}a{1,99}b", "at most 2"),
        ("rack:LIKE:" + "a" * 129, "more than 128"),
        ("rack:UNIQUE:3", "takes no value"),
        ("rack:MAX_PER:0", "number from 1"),
        ("rack:MAX_PER", "number from 1"),
        ("rack:GROUP_BY:two", "number from 1"),
        (",".join(["rack:UNIQUE"] * 9), "at most 8"),
    ],
)
def test_what_is_no_rule_is_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidValue, match=re.escape(why)) as refused:
        parse(text)
    assert "\n" not in str(refused.value)


def test_the_longest_match_of_a_pattern_that_is_let_through_is_short() -> None:
    rule = Constraint("rack", "LIKE", ".*.*b")
    check(rule)
    value = "a" * 2000
    nodes = tuple(replace(node, features=frozenset({f"rack={value}{at}"})) for at, node in enumerate(NODES))
    request = Request((Chunk(1),), constraints=(rule,))
    began = time.process_time()
    assert can_ever_fit(request, nodes) is not None
    assert (
        time.process_time() - began < 5
    )  # a pattern that is not bounded would take longer than the world stands
