"""GPU-hours and groups as limits, and the figure of fragmentation."""

from __future__ import annotations

from dataclasses import replace

from hpcmesos.gang.policy import Policy
from hpcmesos.gang.schedule import schedule
from hpcmesos.gang.snapshot import GpuView, JobView, Limit, Member, NodeView, Plan, RunningView, Snapshot
from hpcmesos.gang.tables import NodeTable
from hpcmesos.master.limits import limits, why_never
from hpcmesos.master.reasons import fragmentation
from hpcmesos.model import Chunk, GpuUuid, JobId, NodeName, ReasonCode, Request

HOUR = 3600


def node(name: str, taken: int = 0) -> NodeView:
    gpus = tuple(GpuView(GpuUuid(f"{name}-{at}"), at, at >= taken) for at in range(4))
    return NodeView(NodeName(name), True, 8, 8 - taken, 0, 0, gpus)


def job(number: int, gpus: int, hours: int | None, user: str = "ann") -> JobView:
    request = Request((Chunk(1, 1, gpus),), walltime=None if hours is None else hours * HOUR)
    return JobView(JobId(number, "h"), request, 0, 0.0, "batch", user=user)


def plan(jobs: list[JobView], now: float, *found: Limit) -> Plan:
    member = Member(NodeName("a"), 1, 0, 1, (GpuUuid("a-0"),))
    runs = RunningView(JobId(9, "h"), (member,), 0.0, 10.0 * HOUR, "batch", "ann")
    return schedule(Snapshot([node("a", 1), node("b")], jobs, running=[runs], limits=found), Policy(), now)


def test_gpu_hours_are_what_is_left_until_the_walltimes_end() -> None:
    limit = Limit("user", gpu_hours=12)
    waits = plan([job(1, 2, 2)], 0.0, limit)
    reason = waits.reasons[JobId(1, "h")]
    assert (waits.starts, reason.code) == ((), ReasonCode.LIMIT)
    assert reason.text == "limit of user ann: 10 of 12 GPU-hours in use, this job needs 4 more"
    assert len(plan([job(1, 2, 2)], 2.0 * HOUR, limit).starts) == 1, "two hours later 8 are left"
    assert len(plan([job(1, 2, 2, user="bob")], 0.0, limit).starts) == 1
    assert len(plan([job(1, 1, 1), job(2, 1, 1), job(3, 1, 1)], 0.0, limit).starts) == 2
    assert not plan([job(1, 1, None)], 0.0, limit).starts, "without a walltime it counts as a day"


def test_gpu_hours_in_the_form_of_openpbs() -> None:
    (found,) = limits({}, {"max_run_res.gpuhours": "[p:chem=100]"})
    assert found == Limit("project", "chem", gpu_hours=100)
    never = why_never(job(1, 4, 5), {}, {"max_run_res.gpuhours": "[u:ann=16]"})
    assert never is not None
    assert never.text == "limit of user ann: 0 of 16 GPU-hours in use, this job needs 20 more"


def test_jobs_of_a_group_are_counted_together() -> None:
    (limit,) = limits({}, {"max_group_run": "1"})
    assert limit == Limit("group", jobs=1)
    assert limits({}, {"max_run": "[g:staff=2]"}) == (Limit("group", "staff", jobs=2),)
    staff = [replace(job(number, 1, 1, f"user{number}"), group="staff") for number in (1, 2)]
    unknown = [job(number, 1, 1, f"user{number}") for number in (3, 4)]
    decided = plan([*staff, *unknown], 0.0, limit)
    assert {start.job.seq for start in decided.starts} == {1, 3, 4}, (
        "who is of no known group is one by himself"
    )
    reason = decided.reasons[JobId(2, "h")]
    assert (reason.code, reason.facts["scope"], reason.facts["name"]) == (ReasonCode.LIMIT, "group", "staff")
    assert reason.text == "limit of group staff: 1 of 1 jobs in use, this job needs 1 more"


def test_fragmentation_is_the_part_of_free_gpus_on_begun_nodes() -> None:
    assert fragmentation(NodeTable([node("a", 1), node("b"), node("c", 4)])) == {
        "gpus_free": 7,
        "gpus_free_on_begun_nodes": 3,
        "gpu_fragmentation": 3 / 7,
    }
    assert fragmentation(NodeTable([node("a", 4)]))["gpu_fragmentation"] == 0.0
