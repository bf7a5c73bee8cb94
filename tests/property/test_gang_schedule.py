"""What the scheduler may never do, and that what it says is true; on small clusters, against brute force."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmesos.gang.feasible import can_ever_fit
from hpcmesos.gang.policy import Backfill, Policy
from hpcmesos.gang.schedule import schedule
from hpcmesos.gang.snapshot import GpuView, JobView, NodeView, Plan, Snapshot
from hpcmesos.model import Chunk, GpuUuid, JobId, NodeName, Placement, ReasonCode, Request

GB = 1 << 30


def first_to_start(job: JobView) -> tuple[int, float, int, str, int]:
    """The order of jobs alike in queue and user: high priority, then long waiting, then the lower id."""
    index = job.id.index
    return (-job.priority, job.queued_at, job.id.seq, job.id.server, -1 if index is None else index)


@st.composite
def nodes(draw: st.DrawFn) -> tuple[NodeView, ...]:
    views = []
    for number in range(draw(st.sampled_from((0, 1, 2, 2, 3, 3, 4)))):
        cpus, mem = draw(st.integers(2, 6)), draw(st.integers(1, 4)) * GB
        free = draw(st.lists(st.sampled_from((True, True, False)), max_size=4))
        size = len(free)
        links = draw(st.sampled_from(((), tuple((1,) * size for _ in range(size)))))
        views.append(
            NodeView(
                NodeName(f"node{number + 8}"),
                draw(st.sampled_from((True, True, True, False))),
                cpus,
                cpus - draw(st.sampled_from((0, 0, 1, 2))),
                mem,
                mem - draw(st.sampled_from((0, 0, GB))),
                tuple(
                    GpuView(GpuUuid(f"GPU-{number}-{i}"), i, is_free, draw(st.sampled_from((None, 0, 1))))
                    for i, is_free in enumerate(free)
                ),
                frozenset(draw(st.sampled_from(((), ("fast",), ("fast", "big"))))),
                links,
                draw(st.sampled_from(("", "s1"))),
            )
        )
    return tuple(views)


chunks = st.builds(
    Chunk,
    count=st.sampled_from((1, 1, 2, 3)),
    cpus=st.sampled_from((1, 1, 0, 2, 3)),
    gpus=st.sampled_from((1, 0, 0, 2, 3)),
    mem=st.sampled_from((0, 0, GB, 2 * GB)),
    features=st.sampled_from(((), (), (), (), ("fast",), ("fast", "big"))),
    host=st.sampled_from((*(None,) * 8, "node8", "node10")),
)
requests = st.builds(
    Request, st.lists(chunks, min_size=1, max_size=3).map(tuple), st.sampled_from(list(Placement))
)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    shapes = draw(st.lists(requests, min_size=1, max_size=4))
    jobs = [
        JobView(
            JobId(number, "hpcm"),
            draw(st.sampled_from(shapes)),
            draw(st.integers(0, 1)),
            float(draw(st.integers(0, 2))),
            draw(st.sampled_from(("batch", "batch", "batch", "batch", "stopped"))),
            frozenset(draw(st.sampled_from(((), (), (), (NodeName("node8"),))))),
            draw(st.sampled_from((1, 1, 1, 2, 5))),
        )
        for number in range(draw(st.integers(0, 6)))
    ]
    return Snapshot(draw(nodes()), tuple(jobs), frozenset({"stopped"}))


STRICT = Policy(order="priority", backfill=Backfill.NONE)
policies = st.sampled_from((STRICT, replace(STRICT, backfill=Backfill.FILL)))


def arrangements(request: Request, views: list[NodeView], installed: bool) -> Iterator[bool]:
    """Yields True for each way to place all pieces; the slow, obvious way."""
    free = {
        v.name: (
            [v.cpus, v.mem, len(v.gpus)]
            if installed
            else [v.cpus_free, v.mem_free, sum(g.free for g in v.gpus)]
        )
        for v in views
    }
    pieces = [chunk for chunk in request.chunks for _ in range(chunk.count)]
    used: list[NodeName] = []

    def place() -> Iterator[bool]:
        if len(used) == len(pieces):
            yield True
            return
        chunk = pieces[len(used)]
        for view in views:
            if request.placement is Placement.SCATTER and view.name in used:
                continue
            if request.placement is Placement.PACK and used and view.name != used[0]:
                continue
            if chunk.host not in (None, view.name) or not set(chunk.features) <= view.features:
                continue
            have, want = free[view.name], (chunk.cpus, chunk.mem, chunk.gpus)
            if any(h < w for h, w in zip(have, want, strict=True)):
                continue
            free[view.name] = [h - w for h, w in zip(have, want, strict=True)]
            used.append(view.name)
            yield from place()
            used.pop()
            free[view.name] = have

    return place()


def fits(request: Request, views: list[NodeView], installed: bool) -> bool:
    """PACK's features are the union of all pieces': one node must have them all, which placing checks as well."""
    return next(arrangements(request, views, installed), False)


def after(snapshot: Snapshot, plan: Plan) -> list[NodeView]:
    """The nodes once the plan's jobs hold their shares."""
    views = {node.name: node for node in snapshot.nodes}
    for start in plan.starts:
        for member in start.members:
            node = views[member.node]
            views[member.node] = replace(
                node,
                cpus_free=node.cpus_free - member.cpus,
                mem_free=node.mem_free - member.mem,
                gpus=tuple(replace(g, free=g.free and g.uuid not in member.gpus) for g in node.gpus),
            )
    return list(views.values())


@given(snapshots(), policies)
def test_every_pending_job_is_accounted_for_once(snapshot: Snapshot, policy: Policy) -> None:
    plan = schedule(snapshot, policy, 0.0)
    started = Counter(start.job for start in plan.starts)
    counts = {job.id: job.count for job in snapshot.pending}
    assert all(started[job] <= count for job, count in counts.items())
    assert set(started) <= set(counts)
    assert set(plan.reasons) == {job for job, count in counts.items() if started[job] < count}


@given(snapshots(), policies)
def test_no_gpu_twice_and_never_above_what_is_free(snapshot: Snapshot, policy: Policy) -> None:
    plan = schedule(snapshot, policy, 0.0)
    given_out = [uuid for start in plan.starts for member in start.members for uuid in member.gpus]
    assert len(given_out) == len(set(given_out))
    assert set(given_out) <= {gpu.uuid for node in snapshot.nodes if node.up for gpu in node.gpus if gpu.free}
    assert all(node.cpus_free >= 0 and node.mem_free >= 0 for node in after(snapshot, plan))


@given(snapshots(), policies)
def test_a_gang_gets_all_it_asked_for_where_it_may_run(snapshot: Snapshot, policy: Policy) -> None:
    plan = schedule(snapshot, policy, 0.0)
    jobs = {job.id: job for job in snapshot.pending}
    views = {node.name: node for node in snapshot.nodes}
    for start in plan.starts:
        job, members = jobs[start.job], start.members
        request = job.request
        names = [member.node for member in members]
        assert len(names) == len(set(names))
        assert all(views[name].up and name not in job.excluded for name in names)
        assert all({gpu.uuid for gpu in views[m.node].gpus} >= set(m.gpus) for m in members)
        totals = (sum(m.cpus for m in members), sum(m.mem for m in members), sum(m.slots for m in members))
        assert totals == (request.cpus, request.mem, request.slots)
        assert sum(len(m.gpus) for m in members) == request.gpus
        if request.placement is Placement.SCATTER:
            assert len(members) == request.pieces
        if request.placement is Placement.PACK:
            assert len(members) == 1
        # Exactly these shares, as if they were the whole cluster, must hold the pieces.
        shares = [
            replace(
                views[m.node],
                cpus=m.cpus,
                mem=m.mem,
                gpus=tuple(g for g in views[m.node].gpus if g.uuid in m.gpus),
            )
            for m in members
        ]
        assert fits(request, shares, installed=True)


@given(snapshots(), policies, st.randoms(use_true_random=False))
def test_the_order_of_the_input_means_nothing(snapshot: Snapshot, policy: Policy, rng: random.Random) -> None:
    shuffled = replace(
        snapshot,
        nodes=tuple(rng.sample(snapshot.nodes, len(snapshot.nodes))),
        pending=tuple(rng.sample(snapshot.pending, len(snapshot.pending))),
    )
    assert schedule(shuffled, policy, 0.0) == schedule(snapshot, policy, 0.0)
    assert schedule(snapshot, policy, 0.0) == schedule(snapshot, policy, 0.0)


@settings(max_examples=400)
@given(snapshots(), policies)
def test_reasons_are_true(snapshot: Snapshot, policy: Policy) -> None:
    plan = schedule(snapshot, policy, 0.0)
    left = after(snapshot, plan)
    order = sorted(snapshot.pending, key=first_to_start)
    jobs = {str(job.id): job for job in order}
    for job in order:
        if job.id not in plan.reasons:
            continue
        reason = plan.reasons[job.id]
        allowed = [node for node in left if node.name not in job.excluded]
        usable = [node for node in allowed if node.up]
        anywhere = fits(job.request, left, installed=True)
        match reason.code:
            case ReasonCode.QUEUE_STOPPED:
                assert job.queue == "stopped"
            case ReasonCode.NO_NODES:
                assert not snapshot.nodes
            case ReasonCode.NEVER_FITS:
                assert not anywhere and can_ever_fit(job.request, snapshot.nodes) == reason
            case ReasonCode.EXCLUDED:
                assert anywhere and not fits(job.request, allowed, installed=True)
            case ReasonCode.NODES_DOWN:
                assert fits(job.request, allowed, installed=True)
                assert not fits(job.request, usable, installed=True)
            case ReasonCode.INSUFFICIENT:
                assert fits(job.request, usable, installed=True)
                assert not fits(job.request, usable, installed=False)
            case ReasonCode.BEHIND:
                assert policy is STRICT and fits(job.request, usable, installed=False)
                blocker = jobs[reason.text.removeprefix("behind ").split(",")[0]]
                assert order.index(blocker) < order.index(job)
                assert plan.reasons[blocker.id].code is ReasonCode.INSUFFICIENT
            case _:
                raise AssertionError(f"the scheduler knows nothing of {reason.code}")


@given(snapshots())
def test_strict_lets_nobody_overtake_a_job_that_waits_for_room(snapshot: Snapshot) -> None:
    plan = schedule(snapshot, STRICT, 0.0)
    blocked = False
    for job in sorted(snapshot.pending, key=first_to_start):
        if job.id not in plan.reasons:
            assert not blocked
        else:
            blocked |= plan.reasons[job.id].code is ReasonCode.INSUFFICIENT


@given(requests, nodes())
def test_never_fits_is_said_exactly_when_it_is_so(request: Request, views: tuple[NodeView, ...]) -> None:
    reason = can_ever_fit(request, views)
    assert (reason is not None) == (bool(views) and not fits(request, list(views), installed=True))


@given(st.integers(2, 6), st.integers(1, 4), st.data(), st.sampled_from((Placement.SCATTER, Placement.FREE)))
def test_two_gangs_of_more_than_half_never_hold_parts_of_both(
    size: int, each: int, data: st.DataObject, placement: Placement
) -> None:
    count = data.draw(st.integers(size // 2 + 1, size))
    cluster = tuple(
        NodeView(
            NodeName(f"n{i}"),
            True,
            64,
            64,
            GB,
            GB,
            tuple(GpuView(GpuUuid(f"{i}-{g}"), g, True) for g in range(each)),
        )
        for i in range(size)
    )
    gang = Request((Chunk(count=count, gpus=each),), placement)
    pending = tuple(JobView(JobId(n, "hpcm"), gang, 0, 0.0, "batch") for n in (1, 2))
    plan = schedule(Snapshot(cluster, pending), STRICT, 0.0)
    assert [start.job.seq for start in plan.starts] == [1]
    assert plan.reasons[JobId(2, "hpcm")].code is ReasonCode.INSUFFICIENT
