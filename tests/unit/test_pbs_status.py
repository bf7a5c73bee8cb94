"""The words of qstat, pbsnodes, qdel, qhold and qrls."""

from __future__ import annotations

import pytest

from hpcmesos.errors import InvalidValue, UsageError
from hpcmesos.pbs.personalities import Personality
from hpcmesos.pbs.status import (
    NodesAction,
    NodesFormat,
    QstatFormat,
    parse_hold,
    parse_pbsnodes,
    parse_qdel,
    parse_qstat,
)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], QstatFormat.PLAIN),
        (["-a"], QstatFormat.ALT),
        (["-u", "ann"], QstatFormat.ALT),
        (["-f", "-1"], QstatFormat.FULL),
        (["-fx"], QstatFormat.XML),
        (["-x", "-f", "-F", "json"], QstatFormat.JSON),
        (["-Q", "-f"], QstatFormat.QUEUES),
        (["-q"], QstatFormat.LIMITS),
        (["-B"], QstatFormat.SERVER),
        (["--why", "1"], QstatFormat.WHY),
        (["-l", "5"], QstatFormat.PLAIN),
    ],
)
def test_formats(argv: list[str], expected: QstatFormat) -> None:
    assert parse_qstat(argv).format is expected


def test_x_means_history_in_openpbs() -> None:
    query = parse_qstat(["-xf", "12"], Personality.PBSPRO)
    assert (query.format, query.include_history) == (QstatFormat.FULL, True)


def test_operands_and_filters() -> None:
    query = parse_qstat(["12", "gpu@hpcm", "@hpcm", "13[].hpcm", "-u", "ann@h,bob", "-n1", "-r"])
    assert query.ids == ("12", "13[].hpcm")
    assert query.queues == ("gpu",)
    assert query.users == ("ann", "bob")
    assert (query.with_nodes, query.one_line) == (True, True)
    assert query.states == frozenset("RES")


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(UsageError, match="yaml"):
        parse_qstat(["-F", "yaml"])


def test_pbsnodes() -> None:
    query = parse_pbsnodes(["-l", "free", "n01"])
    assert (query.format, query.states, query.nodes) == (NodesFormat.LIST, {"free"}, ("n01",))
    assert parse_pbsnodes(["-aSj", "-F", "json"]).format is NodesFormat.JSON
    note = parse_pbsnodes(["-o", "-N", "disk", "n01"])
    assert (note.action, note.note) == (NodesAction.OFFLINE, "disk")
    assert parse_pbsnodes(["-N", "x", "n01"]).action is NodesAction.NOTE
    assert parse_pbsnodes(["--gone", "n01"]).action is NodesAction.GONE
    assert parse_pbsnodes(["-r", "n01"]).action is NodesAction.RESET
    assert parse_pbsnodes(["-r", "n01"], Personality.PBSPRO).action is NodesAction.CLEAR
    for wrong in (["-o"], ["-o", "-c", "n01"], ["-o", "--gone", "n01"]):
        with pytest.raises(UsageError):
            parse_pbsnodes(wrong)


def test_qdel() -> None:
    query = parse_qdel(["12", "-W", "30", "-m", "why", "13"])
    assert (query.ids, query.delay, query.message, query.force) == (("12", "13"), 30, "why", False)
    assert parse_qdel(["-Wforce,suppress_email=-1", "1"]).force
    assert parse_qdel(["all"]).all
    with pytest.raises(UsageError):
        parse_qdel([])
    with pytest.raises(InvalidValue):
        parse_qdel(["-W", "soon", "1"])


def test_holds() -> None:
    assert parse_hold("qhold", ["1"]).kinds == "u"
    assert parse_hold("qrls", ["-h", "us", "1", "2"]).kinds == "us"
    with pytest.raises(InvalidValue):
        parse_hold("qhold", ["-h", "x", "1"])
