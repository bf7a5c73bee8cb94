"""Limits, reservations, shares and use: from what is kept to what the scheduler gets."""

from __future__ import annotations

from typing import Any

import pytest

from hpcmesos.errors import InvalidValue
from hpcmesos.gang.snapshot import JobView, Limit
from hpcmesos.master import limits, reservations, shares
from hpcmesos.master.usage import Usage, accounts
from hpcmesos.model import HALF_LIFE, Chunk, JobId, Request
from hpcmesos.queue.records import QueueRecord

KNOWN: dict[str, Any] = {"nodes": ["node1", "node2"], "queues": ["batch"], "now": 1000.0}


def test_limits_as_both_families_write_them() -> None:
    server = {
        "max_user_run": "3",
        "max_run": "[o:PBS_ALL=20],[u:PBS_GENERIC=4],[u:ann=6],[p:chem=8]",
        "max_run_res.ngpus": "[u:PBS_GENERIC=16]",
    }
    queue = QueueRecord(name="gpu", attributes={"max_running": "5", "max_run_res.ncpus": "64"})
    assert limits.limits({"gpu": queue}, server) == (
        Limit("user", jobs=3),
        Limit("server", jobs=20),
        Limit("user", jobs=4, but=frozenset({"ann"})),
        Limit("user", "ann", jobs=6),
        Limit("project", "chem", jobs=8),
        Limit("user", gpus=16),
        Limit("queue", "gpu", jobs=5, queue="gpu"),
        Limit("queue", "gpu", cpus=64, queue="gpu"),
    )


def test_what_a_limit_never_lets_run() -> None:
    queues = {"gpu": QueueRecord(name="gpu", attributes={"max_run_res.ngpus": "[u:PBS_GENERIC=2]"})}

    def why(gpus: int, queue: str = "gpu") -> str:
        job = JobView(JobId(1, "hpcm"), Request((Chunk(gpus=gpus),)), 0, 0.0, queue, user="ann")
        reason = limits.why_never(job, queues, {})
        return reason.text if reason else ""

    assert why(2) == why(8, "other") == ""
    assert why(3) == "limit of user ann in queue gpu: 0 of 2 GPUs in use, this job needs 3 more"


def test_reservations_are_made_and_taken_away() -> None:
    first = reservations.changed(
        {}, "course", {"starts_at": 2000, "ends_at": 3000, "nodes": ["node1"], "users": ["ann"]}, **KNOWN
    )
    (window,) = reservations.windows(first, 1000.0)
    assert (window.name, window.starts_at, window.ends_at) == ("course", 2000.0, 3000.0)
    assert (window.nodes, window.users, window.queues) == ({"node1"}, {"ann"}, frozenset())
    assert reservations.next_change(first, 1000.0) == 2000.0
    assert reservations.next_change(first, 2000.0) == 3000.0
    assert reservations.windows(first, 3000.0) == ()
    second = reservations.changed(
        first, "later", {"starts_at": 3000, "ends_at": 4000, "nodes": ["node1"]}, **KNOWN
    )
    assert set(second) == {"course", "later"}
    assert set(reservations.changed(second, "course", None, **KNOWN)) == {"later"}


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("course", {"ends_at": 9000, "nodes": ["node2"]}, "already"),
        ("other", {"ends_at": 2500, "nodes": ["node1"]}, "course has node1"),
        ("other", {"ends_at": 9000, "nodes": ["node9"]}, "unknown node node9"),
        ("other", {"ends_at": 9000, "nodes": ["node2"], "queues": ["nosuch"]}, "unknown queue nosuch"),
        ("other", {"ends_at": 500, "nodes": ["node2"]}, "must end"),
        ("other", {"ends_at": 9000, "nodes": []}, "needs nodes"),
        ("a b", {"ends_at": 9000, "nodes": ["node2"]}, "no name"),
        ("other", None, "no reservation"),
    ],
)
def test_reservations_that_are_refused(name: str, value: dict[str, Any] | None, complaint: str) -> None:
    there = {"course": {"starts_at": 2000, "ends_at": 3000, "nodes": ["node1"], "users": [], "queues": []}}
    with pytest.raises(InvalidValue, match=complaint):
        reservations.changed(there, name, value, **KNOWN)


def test_shares_are_a_tree() -> None:
    tree = shares.changed({}, {"project": "chem", "shares": 3})
    tree = shares.changed(tree, {"project": "chem", "user": "ann", "shares": 2})
    assert tree == {"projects": {"chem": 3.0}, "users": {"chem/ann": 2.0}}
    (ann,) = accounts({("chem", "ann"): 5.0}, tree)
    assert (ann.shares, ann.usage) == (2.0, 5.0)
    assert shares.changed(tree, {"project": "chem"})["projects"] == {}
    for value in ({"shares": -1}, {"shares": True}, {"project": "a/b", "shares": 1}):
        with pytest.raises(InvalidValue):
            shares.changed({}, value)


def test_use_is_counted_once_and_decays() -> None:
    usage = Usage({"at": 1000.0, "accounts": [["", "ann", 100.0]]}, [("", "bob", 7.0)])
    usage.charge("", "ann", 2.0, 500.0, 1010.0)  # what ran before was counted when the document was written
    assert {account.user: account.usage for account in usage.accounts({}, [("", "eve")])} == {
        "ann": 120.0,
        "bob": 7.0,
        "eve": 0.0,
    }
    usage.accrue((), 1000.0 + HALF_LIFE)
    assert usage.document() == {"at": 1000.0 + HALF_LIFE, "accounts": [["", "ann", 60.0], ["", "bob", 3.5]]}
    fresh = Usage(None)
    fresh.charge("", "ann", 1.0, 100.0, 130.0)
    fresh.accrue((), 1000.0)
    assert fresh.document()["accounts"] == [["", "ann", 30.0]]
