"""Planning in time, case by case: backfill, windows, limits, preemption."""

from __future__ import annotations

from typing import Any

from hpcmesos.gang.policy import Backfill, Policy, Preempt
from hpcmesos.gang.schedule import schedule
from hpcmesos.gang.snapshot import (
    GpuView,
    JobView,
    Limit,
    Member,
    NodeView,
    Plan,
    Promise,
    QueueView,
    RunningView,
    Snapshot,
    Window,
)
from hpcmesos.model import Chunk, GpuUuid, JobId, NodeName, ReasonCode, Request

GPUS = 4
EASY = Policy(order="priority", backfill=Backfill.EASY)


class Site:
    """Nodes a, b, ... of 4 GPUs; ``runs`` puts a job on them."""

    def __init__(self, nodes: str = "ab") -> None:
        self.nodes = nodes
        self.running: list[RunningView] = []
        self.down = ""
        self.held: dict[str, int] = dict.fromkeys(nodes, 0)

    def runs(self, seq: int, shares: dict[str, int], ends_at: float, **facts: Any) -> Site:
        members = []
        for name, gpus in shares.items():
            first = self.held[name]
            self.held[name] += gpus
            uuids = tuple(GpuUuid(f"{name}{at}") for at in range(first, first + gpus))
            members.append(Member(NodeName(name), gpus, 0, gpus, uuids))
        facts = {"started_at": 0.0} | facts
        self.running.append(RunningView(JobId(seq, "h"), tuple(members), ends_at=ends_at, **facts))
        return self

    def plan(self, *jobs: JobView, policy: Policy = EASY, now: float = 0.0, **facts: Any) -> Plan:
        return schedule(Snapshot(self.views(), jobs, running=tuple(self.running), **facts), policy, now)

    def views(self) -> tuple[NodeView, ...]:
        return tuple(
            NodeView(
                NodeName(name),
                name not in self.down,
                16,
                16 - held,
                0,
                0,
                tuple(GpuView(GpuUuid(f"{name}{at}"), at, at >= held) for at in range(GPUS)),
            )
            for name, held in self.held.items()
        )


def job(seq: int, nodes: int, gpus: int, walltime: int | None = 100, **facts: Any) -> JobView:
    request = Request((Chunk(nodes, gpus=gpus),), walltime=walltime)
    facts = {"priority": 0, "queued_at": float(seq), "queue": "batch"} | facts
    return JobView(JobId(seq, "h"), request, **facts)


def started(plan: Plan) -> list[int]:
    return [start.job.seq for start in plan.starts]


def why(plan: Plan, seq: int) -> tuple[ReasonCode, str]:
    reason = plan.reasons[JobId(seq, "h")]
    return reason.code, reason.text


# --- backfill


def test_a_short_job_goes_before_a_big_one_that_waits_for_room() -> None:
    site = Site().runs(90, {"a": 3}, ends_at=100.0)
    plan = site.plan(job(1, 2, 4), job(2, 1, 1, walltime=100), job(3, 1, 1, walltime=101))
    assert started(plan) == [2]
    assert plan.reservations[0].job.seq == 1 and plan.reservations[0].at == 100.0
    code, text = why(plan, 3)
    assert code is ReasonCode.RESERVED
    assert text == (
        "needs 1 node with 1 free GPU; 4 GPUs free, 4 reserved for 1.h at 1970-01-01 00:01 UTC, "
        "and it would not end before"
    )


def test_a_long_job_takes_the_extra_gpus_of_the_nodes_that_the_first_leaves() -> None:
    site = Site().runs(90, {"a": 3}, ends_at=100.0)
    plan = site.plan(job(1, 2, 3), job(2, 1, 1, walltime=10_000), job(3, 1, 1, 10_000), job(4, 1, 1, 10_000))
    assert started(plan) == [2, 3]
    assert [member.node for start in plan.starts for member in start.members] == ["a", "b"]


def test_a_place_in_time_is_on_nodes_not_on_a_sum_of_gpus() -> None:
    """Half of each node comes free at 50, but a whole node only at 100."""
    site = (
        Site()
        .runs(1, {"a": 2}, 50.0)
        .runs(2, {"b": 2}, 50.0)
        .runs(3, {"a": 2}, 100.0)
        .runs(4, {"b": 2}, 200.0)
    )
    plan = site.plan(job(9, 1, 4))
    assert [(held.at, dict(held.shares)) for held in plan.reservations] == [(100.0, {"a": (1, 0, 4)})]


def test_reservations_for_more_than_the_first() -> None:
    site = Site().runs(90, {"a": 4}, 100.0).runs(91, {"b": 2}, 300.0)
    jobs = job(1, 1, 4, 1000), job(2, 1, 3, 1000), job(3, 1, 2, 500)
    assert started(site.plan(*jobs)) == [3]
    policy = Policy(order="priority", reservations=2)
    plan = site.plan(*jobs, policy=policy)
    assert started(plan) == [] and [held.at for held in plan.reservations] == [100.0, 300.0]


def test_conservative_keeps_everybodys_place() -> None:
    site = Site("a").runs(90, {"a": 3}, 100.0)
    jobs = job(1, 1, 4, 50), job(2, 1, 2, 100), job(3, 1, 1, 100), job(4, 1, 1, 300)
    plan = site.plan(*jobs, policy=Policy(order="priority", backfill=Backfill.CONSERVATIVE))
    assert started(plan) == [3]
    assert [(held.job.seq, held.at) for held in plan.reservations] == [(1, 100.0), (2, 150.0), (4, 150.0)]


def test_jobs_without_walltime_get_their_queues_else_the_assumed_one() -> None:
    site = Site().runs(90, {"a": 3}, 100.0)
    queues = {"short": QueueView("short", walltime=60.0)}
    plan = site.plan(job(1, 2, 4), job(2, 1, 1, None, queue="short"), job(3, 1, 1, None), queues=queues)
    assert started(plan) == [2]


def test_what_should_have_ended_is_expected_at_any_moment() -> None:
    plan = Site("a").runs(90, {"a": 4}, ends_at=10.0).plan(job(1, 1, 4), now=500.0)
    assert 500.0 < plan.reservations[0].at < 501.0


def test_who_has_waited_beyond_the_bound_goes_first() -> None:
    policy = Policy(order="sjf", patience=1000.0)
    old, new = job(1, 1, 4, 5000, queued_at=0.0), job(2, 1, 4, 10, queued_at=900.0)
    assert started(Site("a").plan(old, new, policy=policy, now=1000.0)) == [2]
    assert started(Site("a").plan(old, new, policy=policy, now=1001.0)) == [1]


# --- windows


def test_no_job_runs_into_a_window_but_those_that_it_is_for() -> None:
    window = Window("demo", 50.0, 90.0, frozenset({NodeName("a")}), users=frozenset({"ann"}))
    plan = Site("a").plan(job(1, 1, 1, 51), job(2, 1, 1, 50), job(3, 1, 1, 60, user="ann"), windows=(window,))
    assert sorted(started(plan)) == [2, 3]
    code, text = why(plan, 1)
    assert code is ReasonCode.WINDOW and "reserved for demo at 1970-01-01 00:00 UTC" in text
    assert plan.reservations[0].at == 90.0


def test_in_a_window_only_those_start_that_it_is_for() -> None:
    window = Window("repair", 0.0, 90.0, frozenset({NodeName("a")}), queues=frozenset({"tests"}))
    plan = Site("ab").plan(
        job(1, 2, 1), job(2, 1, 4, 80), job(3, 1, 1, queue="tests"), windows=(window,), now=10.0
    )
    assert sorted(started(plan)) == [2, 3]
    assert plan.reservations[0].at == 90.0


def test_a_node_that_goes_away_takes_only_what_ends_before() -> None:
    views = [NodeView(NodeName("a"), True, 4, 4, 0, 0, (), ends_at=100.0)]
    jobs = (job(1, 1, 0, 101), job(2, 1, 0, 100))
    assert started(schedule(Snapshot(tuple(views), jobs), EASY, 0.0)) == [2]


# --- limits


def test_a_limit_is_the_reason_and_holds_nobody_back() -> None:
    site = Site("a").runs(90, {"a": 1}, 100.0, user="ann")
    limits = (Limit("user", gpus=2), Limit("project", "p", jobs=1))
    jobs = (
        job(1, 1, 2, user="ann"),
        job(2, 1, 1, user="bob", project="p"),
        job(3, 1, 1, user="cid", project="p"),
        job(4, 1, 1, user="cid"),
    )
    plan = site.plan(*jobs, limits=limits)
    assert started(plan) == [2, 4]
    assert why(plan, 1) == (
        ReasonCode.LIMIT,
        "limit of user ann: 1 of 2 GPUs in use, this job needs 2 more",
    )
    assert why(plan, 3)[1] == "limit of project p: 1 of 1 jobs in use, this job needs 1 more"
    assert plan.reasons[JobId(1, "h")].facts["used"] == 1


# --- preemption

LEVELS = {"low": QueueView("low"), "high": QueueView("high", level=1)}
PREEMPT = Policy(order="priority", preempt=Preempt.LEVEL)


def test_the_least_work_goes_and_whole_gangs_go() -> None:
    site = Site("abc").runs(1, {"a": 2, "b": 2}, 900.0, queue="low", started_at=90.0)
    site.runs(2, {"a": 2}, 900.0, queue="low", started_at=50.0)
    site.runs(3, {"b": 2}, 900.0, queue="low", started_at=0.0).runs(4, {"c": 4}, 900.0, queue="low")
    plan = site.plan(job(9, 1, 4, queue="high"), policy=PREEMPT, queues=LEVELS, now=100.0)
    assert [[victim.seq for victim in chosen.victims] for chosen in plan.preemptions] == [[1, 2]]
    assert plan.preemptions[0].lost == 4 * 10.0 + 2 * 50.0
    assert not plan.starts


def test_nobody_goes_in_vain_or_for_an_equal_or_for_one_that_was_preempted() -> None:
    site = Site("ab").runs(1, {"a": 4}, 900.0, queue="low").runs(2, {"b": 1}, 900.0, queue="high")
    for waiting in (
        job(9, 2, 4, queue="high"),
        job(9, 1, 4, queue="low"),
        job(9, 1, 4, queue="high", may_preempt=False),
    ):
        assert not site.plan(waiting, policy=PREEMPT, queues=LEVELS).preemptions
    assert site.plan(job(9, 1, 4, queue="high"), policy=PREEMPT, queues=LEVELS).preemptions


def test_while_some_leave_no_others_are_told_to() -> None:
    site = (
        Site("ab").runs(1, {"a": 4}, 900.0, queue="low", leaving=True).runs(2, {"b": 4}, 900.0, queue="low")
    )
    assert not site.plan(job(9, 1, 4, queue="high"), policy=PREEMPT, queues=LEVELS).preemptions


def test_what_a_checkpoint_has_saved_is_not_lost() -> None:
    site = Site("ab").runs(1, {"a": 4}, 900.0, queue="low", started_at=0.0, saved_at=95.0)
    site.runs(2, {"b": 4}, 900.0, queue="low", started_at=90.0)
    plan = site.plan(job(9, 1, 4, queue="high"), policy=PREEMPT, queues=LEVELS, now=100.0)
    assert [victim.seq for victim in plan.preemptions[0].victims] == [1]


def test_a_promised_place_is_given_up_when_its_node_goes_down() -> None:
    """Else others take the room where the job could really start, and it starts much later."""
    policy = Policy(reservations=2)
    site = Site().runs(1, {"a": 4}, 10.0).runs(2, {"b": 2}, 20.0)
    waits = job(3, 1, 4)
    (place,) = site.plan(waits, policy=policy).reservations
    assert (place.at, set(place.shares)) == (10.0, {NodeName("a")})
    promises = (Promise(place.job, place.at, place.shares),)
    site.down = "a"
    plan = site.plan(waits, job(4, 1, 2, 1000), policy=policy, now=1.0, promises=promises)
    place = plan.reservations[0]
    assert (place.at, set(place.shares)) == (20.0, {NodeName("b")})
    assert started(plan) == [], "what would be in its way there waits"
    site.down = ""
    (kept,) = site.plan(waits, policy=policy, now=1.0, promises=promises).reservations
    assert (kept.at, set(kept.shares)) == (10.0, {NodeName("a")})
