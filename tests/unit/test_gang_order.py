"""Who comes first: points and what they are made of, fair share, predictions; tables and estimates."""

from __future__ import annotations

from typing import Any

import pytest

from hpcmesos.gang import tables
from hpcmesos.gang.fair import decayed, standings
from hpcmesos.gang.limits import never
from hpcmesos.gang.order import points, ranked
from hpcmesos.gang.policy import SHIPPED, Policy
from hpcmesos.gang.predict import History
from hpcmesos.gang.schedule import schedule
from hpcmesos.gang.snapshot import Account, JobView, Limit, Member, NodeView, QueueView, RunningView, Snapshot
from hpcmesos.gang.tables import JobTable, NodeTable, RunningTable, Shape
from hpcmesos.model import Chunk, JobId, NodeName, Request

NOW = 1_000_000.0


def job(seq: int, cpus: int = 1, walltime: int = 64, **facts: Any) -> JobView:
    request = Request((Chunk(cpus=cpus),), walltime=walltime)
    return JobView(JobId(seq, "h"), request, **({"priority": 0, "queued_at": NOW, "queue": "q"} | facts))


def order(*jobs: JobView, policy: Policy = SHIPPED, **facts: Any) -> list[int]:
    table = JobTable(jobs)
    slots = ranked(Snapshot((), table, **facts), table, policy.order, policy, NOW).tolist()
    return [found.id.seq for slot in slots if (found := table.jobs[slot])]


def node(name: str, cpus: int = 4) -> NodeView:
    return NodeView(NodeName(name), True, cpus, cpus, 0, 0, ())


# --- order


def test_the_least_work_first_but_a_step_of_priority_outweighs_it() -> None:
    queues = {"fast": QueueView("fast", priority=1)}
    jobs = (
        job(1, 4),
        job(2, 2),
        job(3, 64, priority=1),
        job(4, 64, queue="fast", queued_at=NOW - 1),
        job(5, 8, qos=1),
    )
    assert order(*jobs, queues=queues) == [5, 4, 3, 2, 1]


def test_who_used_more_than_is_due_comes_later() -> None:
    accounts = (Account("", "ann", 900.0), Account("", "bob", 100.0))
    assert order(job(1, user="ann"), job(2, user="bob"), accounts=accounts) == [2, 1]
    assert order(job(1, user="ann"), job(2, 4, user="bob"), accounts=accounts) == [1, 2]


def test_every_factor_of_a_job_is_told() -> None:
    accounts = (Account("", "ann", 50.0), Account("", "bob", 50.0))
    told = points(Snapshot((), (), accounts=accounts), job(1, 2, user="ann", priority=3), SHIPPED, NOW)
    assert told["user priority"] == (3.0, 300.0)
    assert told["fair share"] == (-1.0, -1.0)
    assert told["work"] == (-7.0, -7.0)


def test_what_is_predicted_moves_a_job_but_never_beyond_its_walltime() -> None:
    assert order(job(1, predicted=32.0), job(2)) == [1, 2]
    assert order(job(1, predicted=900.0), job(2, queued_at=NOW - 1)) == [2, 1]


# --- fair share


def test_fair_share_is_a_tree() -> None:
    accounts = (Account("a", "x", 60.0), Account("a", "y", 0.0), Account("b", "z", 40.0, shares=2.0))
    found = standings(accounts, {"a": 1.0, "b": 1.0})
    assert found["b", "z"].share == 0.5 and found["a", "x"].share == 0.25
    assert found["b", "z"].factor == pytest.approx(2 ** -(0.4 / 0.5))
    assert found["a", "x"].factor == pytest.approx(2 ** -(0.6 / 0.25))
    assert found["a", "y"].factor == pytest.approx(2 ** -(0.3 / 0.25))  # half of what the project used
    assert decayed(8.0, 14 * 86400.0) == 2.0


# --- predictions


def test_the_last_two_jobs_of_the_same_size_predict_else_any() -> None:
    history = History()
    for size, runtime in (((1, 1), 10.0), ((1, 1), 20.0), ((1, 1), 40.0), ((8, 8), 100.0)):
        history.ended("ann", size, runtime)
    assert history.predict("ann", (1, 1)) == 30.0
    assert history.predict("ann", (8, 8)) == 100.0
    assert history.predict("ann", (2, 2)) == 70.0
    assert history.predict("bob", (1, 1)) is None
    history.ended("", (1, 1), 5.0)
    assert history.predict("", (1, 1)) is None


# --- limits


def test_a_job_that_is_over_a_limit_by_itself_can_be_refused() -> None:
    big = job(1, 8, user="ann")
    assert never(big, Shape.of(big), (Limit("user", "ann", cpus=8),)) is None
    reason = never(big, Shape.of(big), (Limit("user", "*", cpus=7),))
    assert (
        reason is not None and reason.text == "limit of user ann: 0 of 7 CPUs in use, this job needs 8 more"
    )


# --- estimates


def test_estimates_follow_the_order_and_the_ends() -> None:
    member = Member(NodeName("a"), 4, 0, 4, ())
    nodes = NodeTable([node("a")])
    nodes.allocate([member])
    running = (RunningView(JobId(9, "h"), (member,), NOW - 50, NOW + 100),)
    jobs = (job(1, 4, 10), job(2, 4, 20), job(3, 2, 30, queued_at=NOW + 1), job(4, 99))
    plan = schedule(Snapshot(nodes, jobs, running=running), Policy(), NOW)
    found = {key.seq: at - NOW for key, at in plan.estimates().items()}
    assert found == {1: 100.0, 2: 110.0, 3: 130.0}


# --- tables


def test_tables_answer_from_what_they_were_told_last() -> None:
    nodes = NodeTable([node("a"), node("b")])
    nodes.put([NodeView(NodeName("b"), False, 4, 1, 0, 0, ())])
    assert [(view.name, view.up, view.cpus_free) for view in nodes] == [("a", True, 4), ("b", False, 1)]
    running = RunningTable(nodes)
    for seq, end in ((1, 30.0), (2, 10.0), (3, 30.0)):
        running.put(RunningView(JobId(seq, "h"), (Member(NodeName("a"), seq, 0, 1, ()),), 0.0, end))
    assert running.ends.tolist() == [10.0, 30.0, 30.0]
    running.remove(JobId(1, "h"))
    assert running.shares[:, 1].tolist() == [2, 3]
    nodes.put([node("a"), node("aa")])  # another row comes in between
    assert nodes.site.nodes[1].name == "aa" and running.shares[:, 0].tolist() == [0, 0]


def test_gangs_that_end_together_do_not_lose_each_others_shares() -> None:
    """The end of one gang and the begin of the next one hold what a third gang holds."""
    nodes = NodeTable([node("a"), node("b"), node("c")])
    running = RunningTable(nodes)

    def put(seq: int, *names: str) -> None:
        members = tuple(Member(NodeName(name), 1, 0, 1, ()) for name in names)
        running.put(RunningView(JobId(seq, "h"), members, 0.0, 30.0))

    put(1, "a", "b")
    put(2, "a", "c")
    put(3, "b", "a")
    running.remove(JobId(3, "h"))
    assert running.shares[:, 0].tolist() == [0, 1, 0, 2]
    running.remove(JobId(1, "h"))
    assert running.shares[:, 0].tolist() == [0, 2]
    running.remove(JobId(2, "h"))
    assert running.shares.tolist() == running.ends.tolist() == []


def test_shapes_that_nobody_asks_for_any_more_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_MANY_SHAPES", 8)
    table = JobTable([job(0, 1)])
    for seq in range(1, 100):
        table.put(job(seq, seq + 1))
        table.remove(JobId(seq, "h"))
    assert len(table.shapes) <= 10
    assert [view.id.seq for view in table] == [0]
    assert table.shapes[int(table.values[table.slots[JobId(0, "h")], tables.SHAPE])].cpus == 1
