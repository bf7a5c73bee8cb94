"""What plug-ins told, in the scheduler: keys before the built-in order, nodes by keys, limits by class."""

from __future__ import annotations

from collections.abc import Sequence

from hpcmesos.gang.classes import MOST, class_of, numbered, standing
from hpcmesos.gang.policy import SHIPPED
from hpcmesos.gang.schedule import schedule
from hpcmesos.gang.snapshot import GpuView, JobView, Member, NodeView, Plan, Plugged, RunningView, Snapshot
from hpcmesos.gang.tables import JobTable
from hpcmesos.model import Chunk, GpuUuid, JobId, NodeName, ReasonCode, Request
from hpcmesos.plugin import NodeClass

NOW = 1_000_000.0
DAY = 86400.0


def node(name: str, *features: str) -> NodeView:
    gpus = tuple(GpuView(GpuUuid(f"{name}-{at}"), at, True) for at in range(4))
    return NodeView(NodeName(name), True, 8, 8, 0, 0, gpus, frozenset(features))


def job(number: int, gpus: int, user: str = "ann", waited: float = 10.0, **more: int) -> JobView:
    request = Request((Chunk(1, 1, gpus),), walltime=600)
    return JobView(JobId(number, "h"), request, 0, NOW - waited, "batch", user=user, **more)


def plan(
    jobs: list[JobView], plugged: Plugged, nodes: list[NodeView], running: Sequence[RunningView] = ()
) -> Plan:
    return schedule(Snapshot(nodes, jobs, running=running, plugged=plugged), SHIPPED, NOW)


def started(found: Plan) -> list[int]:
    return [start.job.seq for start in found.starts]


def test_keys_come_before_the_built_in_order() -> None:
    small, big = job(1, 1), job(2, 4)
    nodes = [node("n1")]
    assert started(plan([small, big], Plugged(), nodes)) == [1]
    keys = {class_of(small): 5.0, class_of(big): 1.0}
    assert started(plan([small, big], Plugged(order=keys), nodes)) == [2]
    assert started(plan([small, big], Plugged(order={class_of(big): 9.0}), nodes)) == [2], (
        "unknown classes: last"
    )


def test_levels_and_the_starvation_bound_come_before_keys() -> None:
    urgent, favourite = job(1, 4, qos=4096), job(2, 4, user="bob")
    keys = {class_of(favourite): -1e9, class_of(urgent): 1e9}
    assert started(plan([urgent, favourite], Plugged(order=keys), [node("n1")])) == [1]
    old = job(3, 4, user="cid", waited=8 * DAY)
    keys = {class_of(favourite): -1e9, class_of(old): 1e9}
    assert started(plan([old, favourite], Plugged(order=keys), [node("n1")])) == [3]


def test_nodes_are_filled_by_their_keys() -> None:
    nodes = [node("a1"), node("b1", "old")]
    one = job(1, 1)
    new, old = (NodeClass(gpus=4, cpus=8, mem=0, features=words) for words in ((), ("old",)))
    for keys, where in (({new: 1.0, old: 0.0}, "b1"), ({new: 0.0, old: 1.0}, "a1"), ({old: 3.0}, "b1")):
        (start,) = plan([one], Plugged(rank={class_of(one): keys}), nodes).starts
        assert start.members[0].node == where
    both = JobView(JobId(2, "h"), Request((Chunk(2, 1, 4),)), 0, NOW, "batch")
    (start,) = plan([both], Plugged(rank={class_of(both): {new: 0.0, old: 1.0}}), nodes).starts
    assert len(start.members) == 2, "keys forbid nothing"


def test_limits_of_plugins_count_what_runs() -> None:
    jobs = [job(number, 1) for number in (1, 2, 3)]
    kind = class_of(jobs[0])
    members = (Member(NodeName("n2"), 1, 0, 1, (GpuUuid("n2-0"),)),)
    runs = RunningView(JobId(9, "h"), members, NOW, NOW + 600, "batch", "ann", request=jobs[0].request)
    found = plan(jobs, Plugged(limits={kind: 2}), [node("n1")], [runs])
    assert started(found) == [1]
    reason = found.reasons[jobs[2].id]
    assert (reason.code, reason.text) == (
        ReasonCode.LIMIT,
        "limit of the site's plug-in: 2 of 2 jobs like it run",
    )
    assert started(plan(jobs, Plugged(limits={kind: None}), [node("n1")], [runs])) == [1, 2, 3]
    untold = plan(jobs, Plugged(limits={}), [node("n1")])
    assert not untold.starts
    assert "was not asked" in untold.reasons[jobs[0].id].text


def test_classes_are_what_jobs_ask_for_and_for_whom() -> None:
    jobs = [job(1, 1), job(2, 1, waited=99.0), job(3, 1, user="bob"), job(4, 2)]
    table = JobTable(jobs)
    slots = table.all_slots()
    found, code = numbered(table, slots)
    assert len(found) == 3
    assert code[0] == code[1]
    waits = NOW - table.values[slots, 1]
    first, *_ = standing(found, code, waits, 0 * waits)
    assert (first.user, first.gpus, first.waiting, first.waited) == ("ann", 1, 2, 99.0)
    assert MOST > 1000
