"""Placement and reasons, case by case."""

from __future__ import annotations

from dataclasses import replace

from hpcmesos.gang.feasible import can_ever_fit
from hpcmesos.gang.ledger import Ledger, LedgerBroken
from hpcmesos.gang.policy import Backfill, Policy
from hpcmesos.gang.schedule import schedule
from hpcmesos.gang.score import choose_gpus
from hpcmesos.gang.snapshot import GpuView, JobView, Member, NodeView, Plan, Snapshot
from hpcmesos.model import Chunk, GpuUuid, JobId, NodeName, Placement, ReasonCode, Request

GB = 1 << 30


def node(
    name: str,
    *,
    gpus: int = 8,
    busy: int = 0,
    cpus: int = 16,
    up: bool = True,
    numa: bool = False,
    switch: str = "",
) -> NodeView:
    views = tuple(
        GpuView(GpuUuid(f"{name}-{i}"), i, i >= busy, i // 4 if numa else None) for i in range(gpus)
    )
    return NodeView(NodeName(name), up, cpus, cpus, 64 * GB, 64 * GB, views, switch=switch)


def scatter(count: int, **each: int) -> Request:
    return Request((Chunk(count=count, **each),))  # type: ignore[arg-type]  # each as its field


def job(seq: int, request: Request, *, excluded: tuple[str, ...] = (), queue: str = "batch") -> JobView:
    return JobView(JobId(seq, "hpcm"), request, 0, float(seq), queue, frozenset(map(NodeName, excluded)))


def plan(nodes: list[NodeView], *jobs: JobView, strict: bool = True) -> Plan:
    return schedule(
        Snapshot(tuple(nodes), jobs, frozenset({"stopped"})),
        Policy(order="priority", backfill=Backfill.NONE if strict else Backfill.FILL),
        0.0,
    )


def hosts(answer: Plan) -> dict[int, list[str]]:
    return {start.job.seq: [member.node for member in start.members] for start in answer.starts}


def why(answer: Plan, seq: int) -> tuple[ReasonCode, str]:
    reason = answer.reasons[JobId(seq, "hpcm")]
    return reason.code, reason.text


FOUR = [node(f"node{i}") for i in (1, 2, 3, 10)]


# --- could it ever fit


def test_more_nodes_than_there_are_never_fit() -> None:
    reason = can_ever_fit(scatter(99), FOUR)
    assert reason is not None and reason.code is ReasonCode.NEVER_FITS
    assert reason.text == "needs 99 nodes with 1 CPU each, the cluster has 4"


def test_more_gpus_than_a_node_has_never_fit_and_the_nearest_node_is_named() -> None:
    reason = can_ever_fit(scatter(1, gpus=9), FOUR)
    assert reason is not None
    assert (
        reason.text
        == "needs 1 node with 9 GPUs, the nearest to it, node1, has 8 GPUs, 16 CPUs and 64gb memory"
    )


def test_down_and_busy_nodes_count_as_able() -> None:
    assert can_ever_fit(scatter(2, gpus=8), [node("a", up=False), node("b", busy=8)]) is None


def test_an_unknown_host_never_fits() -> None:
    reason = can_ever_fit(Request((Chunk(host="node7"),)), FOUR)
    assert reason is not None and reason.text == "needs node node7 with 1 CPU, no node has that name"


def test_with_no_node_known_everything_may_fit() -> None:
    assert can_ever_fit(scatter(99), []) is None


def test_packing_on_one_node_never_fits_where_spreading_does() -> None:
    chunks = (Chunk(count=3, cpus=4, gpus=4),)
    assert can_ever_fit(Request(chunks, Placement.FREE), FOUR) is None
    assert can_ever_fit(Request(chunks, Placement.PACK), FOUR) is not None


def test_kinds_that_fit_alone_but_not_together() -> None:
    request = Request((Chunk(count=3), Chunk(count=2)))
    reason = can_ever_fit(request, FOUR)
    assert reason is not None
    assert reason.text == (
        "needs 3 nodes with 1 CPU each + 2 nodes with 1 CPU each at once; the cluster cannot hold them together"
    )


# --- where


def test_ties_go_to_the_first_name_in_natural_order() -> None:
    assert hosts(plan(list(reversed(FOUR)), job(1, scatter(4)))) == {1: ["node1", "node2", "node3", "node10"]}


def test_a_small_job_fills_a_node_already_begun() -> None:
    assert hosts(plan([node("a"), node("b", busy=6), node("c", busy=5)], job(1, scatter(1, gpus=2)))) == {
        1: ["b"]
    }


def test_a_job_without_gpus_stays_off_gpu_nodes() -> None:
    assert hosts(plan([node("a"), node("b", gpus=0)], job(1, scatter(1)))) == {1: ["b"]}


def test_free_placement_takes_the_fewest_nodes_and_merges_pieces() -> None:
    request = Request((Chunk(count=12, gpus=1),), Placement.FREE)
    answer = plan([node("a", busy=5), node("b"), node("c", busy=4), node("d", busy=2)], job(1, request))
    (start,) = answer.starts
    assert [(m.node, m.cpus, m.slots, len(m.gpus)) for m in start.members] == [("b", 8, 8, 8), ("c", 4, 4, 4)]


def test_a_gang_stays_under_one_switch_if_it_can() -> None:
    nodes = [node(f"n{i}", gpus=0, switch="east" if i % 2 else "west") for i in range(6)]
    assert hosts(plan(nodes, job(1, scatter(3)))) == {1: ["n1", "n3", "n5"]}


def test_a_node_passes_to_the_kind_that_has_no_other() -> None:
    nodes = [node("a", gpus=4, cpus=4), node("b", gpus=0, cpus=8)]
    request = Request((Chunk(cpus=4), Chunk(cpus=2), Chunk(gpus=4)))
    assert hosts(plan([*nodes, node("c", gpus=0, cpus=2)], job(1, request))) == {1: ["b", "c", "a"]}


def test_the_head_is_the_first_node_of_the_first_kind() -> None:
    request = Request((Chunk(host="node3"), Chunk(count=2)))
    assert hosts(plan(FOUR, job(1, request)))[1][0] == "node3"


def test_gpus_of_one_numa_node_are_kept_together_and_small_jobs_keep_islands_whole() -> None:
    view = node("a", numa=True)
    assert choose_gpus(view, (2, 3, 4, 5, 6, 7), 4) == (4, 5, 6, 7)
    assert choose_gpus(view, (1, 2, 3, 4, 5, 6, 7), 1) == (1,)
    assert choose_gpus(view, (0, 1, 2, 3, 5, 6, 7), 1) == (5,)


def test_links_decide_where_they_are_known() -> None:
    pairs = {(0, 3), (1, 2)}
    links = tuple(tuple(int((min(i, j), max(i, j)) in pairs) for j in range(4)) for i in range(4))
    base = node("a", gpus=4)
    view = NodeView(base.name, True, 1, 1, 0, 0, base.gpus, links=links)
    assert choose_gpus(view, (0, 1, 2, 3), 2) == (0, 3)
    assert choose_gpus(view, (0, 1, 2), 2) == (1, 2)


def test_many_gpus_are_chosen_without_trying_all_sets() -> None:
    assert choose_gpus(node("a", gpus=32, numa=True), tuple(range(2, 32)), 8) == tuple(range(4, 12))


# --- why not


def test_insufficient_names_the_need_and_what_is_free() -> None:
    nodes = [node("node2", busy=6), node("node3", busy=4)]
    answer = plan(nodes, job(1, scatter(2, gpus=4)))
    assert why(answer, 1) == (
        ReasonCode.INSUFFICIENT,
        "needs 2 nodes with 4 free GPUs each; 1 such node is free now (node3: 4 of 8 GPUs free)",
    )


def test_insufficient_names_the_nearest_node_when_none_is_free() -> None:
    answer = plan([node("a", busy=6), node("b", busy=7)], job(1, scatter(1, gpus=4)))
    assert why(answer, 1)[1] == (
        "needs 1 node with 4 free GPUs; no such node is free now (nearest is a: 2 of 8 GPUs free)"
    )


def test_what_this_cycle_started_is_no_longer_free() -> None:
    answer = plan([node("a")], job(1, scatter(1, gpus=6)), job(2, scatter(1, gpus=4)))
    assert why(answer, 2)[1].endswith("(nearest is a: 2 of 8 GPUs free)")


def test_a_job_that_fits_waits_behind_the_first_that_does_not() -> None:
    small, big = scatter(1, gpus=2), scatter(1, gpus=8)
    nodes = [node("a", busy=4)]
    answer = plan(nodes, job(1, big), job(2, small), job(3, big))
    assert why(answer, 2) == (ReasonCode.BEHIND, "behind 1.hpcm, which needs 1 node with 8 GPUs")
    assert why(answer, 3)[0] is ReasonCode.INSUFFICIENT
    assert hosts(plan(nodes, job(1, big), job(2, small), strict=False)) == {2: ["a"]}


def test_a_job_that_no_end_can_help_holds_nobody_back() -> None:
    nodes = [node("a"), node("b", up=False)]
    waiting = [job(1, scatter(2)), job(2, scatter(99)), job(3, scatter(1), queue="stopped")]
    answer = plan(nodes, *waiting, job(4, scatter(1), excluded=("a", "b")), job(5, scatter(1)))
    assert hosts(answer) == {5: ["a"]}
    assert why(answer, 1) == (
        ReasonCode.NODES_DOWN,
        "needs 2 nodes with 1 CPU each; too few such nodes are in service, out of it: b",
    )
    assert why(answer, 2)[0] is ReasonCode.NEVER_FITS
    assert why(answer, 3) == (ReasonCode.QUEUE_STOPPED, "queue stopped is stopped")
    assert why(answer, 4) == (
        ReasonCode.EXCLUDED,
        "needs 1 node with 1 CPU; excluded for this job after failures: a, b; the others do not suffice",
    )


def test_an_empty_cluster_is_a_reason() -> None:
    assert why(plan([], job(1, scatter(1))), 1) == (
        ReasonCode.NO_NODES,
        "needs 1 node with 1 CPU; no node is known yet",
    )


def test_elements_of_an_array_are_ordered_beside_its_parent() -> None:
    ids = [JobId(1, "hpcm"), JobId(1, "hpcm", 0), JobId(1, "hpcm", 1)]
    jobs = tuple(JobView(i, scatter(1, gpus=8), 0, 0.0, "batch") for i in reversed(ids))
    assert [s.job for s in schedule(Snapshot((FOUR[0],), jobs), Policy(), 0.0).starts] == [ids[0]]


# --- the ledger


def test_a_double_use_names_both_owners() -> None:
    ledger = Ledger([node("a")])
    member = Member(NodeName("a"), 1, 0, 1, (GpuUuid("a-0"),))
    ledger.reserve(JobId(1, "hpcm"), member)
    ledger.commit()
    try:
        ledger.reserve(JobId(2, "hpcm"), member)
    except LedgerBroken as error:
        assert str(error) == "2.hpcm was given GPU a-0 on a, which is held by 1.hpcm"
    ledger.committed.append((JobId(2, "hpcm"), member))
    try:
        ledger.check()
    except LedgerBroken as error:
        assert str(error) == "GPU a-0 on a is given to 1.hpcm and to 2.hpcm"
    else:
        raise AssertionError("check() did not see the double use")


# --- arrays


def test_as_many_elements_of_an_array_start_as_fit_and_the_rest_says_why() -> None:
    array = replace(job(1, scatter(1, cpus=4)), count=100)
    answer = plan([node("a"), node("b", cpus=8)], array, job(2, scatter(1)))
    assert [start.job.seq for start in answer.starts] == [1] * 6
    assert why(answer, 1)[0] is ReasonCode.INSUFFICIENT
    assert why(answer, 2)[0] is ReasonCode.INSUFFICIENT


def test_no_more_elements_start_than_the_count() -> None:
    array = replace(job(1, scatter(1, cpus=4)), count=3)
    answer = plan(FOUR, array, job(2, scatter(1)))
    assert [start.job.seq for start in answer.starts] == [1, 1, 1, 2]
    assert not answer.reasons


# --- MIG instances


def cut(name: str, profile: str, gpus: int = 2) -> NodeView:
    return replace(node(name, gpus=gpus), features=frozenset({f"mig-{profile}"}))


def part(profile: str, gpus: int = 1) -> Request:
    return Request((Chunk(gpus=gpus, features=(f"mig-{profile}",)),))


def test_instances_are_for_who_names_their_profile() -> None:
    nodes = [cut("node1", "1g.10gb"), cut("node2", "3g.40gb"), node("node3", gpus=2)]
    jobs = [job(1, scatter(1, gpus=1)), job(2, part("3g.40gb")), job(3, part("1g.10gb", 2))]
    assert hosts(plan(nodes, *jobs)) == {1: ["node3"], 2: ["node2"], 3: ["node1"]}


def test_a_job_without_gpus_may_use_the_cpus_beside_instances() -> None:
    assert hosts(plan([cut("node1", "1g.10gb")], job(1, scatter(1)))) == {1: ["node1"]}


def test_whole_gpus_are_waited_for_beside_free_instances() -> None:
    nodes = [cut("node1", "1g.10gb", 7), node("node2", gpus=2, busy=2)]
    answer = plan(nodes, job(1, scatter(1, gpus=1)))
    assert answer.starts == ()
    assert why(answer, 1)[0] is ReasonCode.INSUFFICIENT


def test_what_no_node_has_whole_never_fits() -> None:
    only = [cut("node1", "1g.10gb")]
    reason = can_ever_fit(scatter(1, gpus=1), only)
    assert reason is not None and reason.text.endswith("no node has whole GPUs")
    assert can_ever_fit(part("1g.10gb"), only) is None
    assert can_ever_fit(part("7g.80gb"), only) is not None
