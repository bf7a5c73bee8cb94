"""A small cluster through time, under any sequence of submissions and ends: what must hold at every moment."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hpcmesos.gang.policy import Backfill, Policy
from hpcmesos.gang.schedule import schedule
from hpcmesos.gang.snapshot import (
    GpuView,
    JobView,
    Limit,
    Member,
    NodeView,
    Plan,
    Promise,
    RunningView,
    Snapshot,
)
from hpcmesos.gang.tables import JobTable, NodeTable, RunningTable
from hpcmesos.model import Chunk, GpuUuid, JobId, NodeName, Placement, ReasonCode, Request

SIZES = (4, 4, 2)  # GPUs of the nodes
NODES = tuple(
    NodeView(
        NodeName(f"n{at}"),
        True,
        8,
        8,
        0,
        0,
        tuple(GpuView(GpuUuid(f"{at}-{gpu}"), gpu, True) for gpu in range(size)),
    )
    for at, size in enumerate(SIZES)
)
GPUS = {gpu.uuid for node in NODES for gpu in node.gpus}

requests = st.builds(
    lambda count, gpus, cpus, placement: Request((Chunk(count, cpus, gpus),), placement),
    st.integers(1, 3),
    st.integers(0, 4),
    st.integers(1, 4),
    st.sampled_from((Placement.SCATTER, Placement.FREE)),
)


class Time(RuleBasedStateMachine):
    """Walltimes are exact, so no promise that was made may be broken: no place in time may move back."""

    policy = Policy(order="fcfs")
    limits: tuple[Limit, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.now, self.seq = 0.0, 0
        self.nodes, self.pending = NodeTable(NODES), JobTable()
        self.running = RunningTable(self.nodes)
        self.jobs: dict[JobId, JobView] = {}
        self.promised: dict[JobId, float] = {}
        self.plan: Plan | None = None

    @rule(request=requests, walltime=st.sampled_from((1, 3, 10, 30)), user=st.sampled_from(("ann", "bob")))
    def submit(self, request: Request, walltime: int, user: str) -> None:
        self.seq += 1
        asked = replace(request, walltime=walltime)
        job = JobView(JobId(self.seq, "h"), asked, 0, self.now, "batch", user=user)
        self.jobs[job.id] = job
        self.pending.put(job)
        self.decide()

    @precondition(lambda self: len(self.running))
    @rule()
    def until_the_next_end(self) -> None:
        self.now = min(job.ends_at for job in self.running)
        for job in [job for job in self.running if job.ends_at == self.now]:
            self.running.remove(job.id)
            self.nodes.release(job.members)
        self.decide()

    def snapshot(self) -> Snapshot:
        return Snapshot(
            self.nodes,
            self.pending,
            running=self.running,
            limits=self.limits,
            promises=self.promises(),
        )

    def promises(self) -> tuple[Promise, ...]:
        held = self.plan.reservations if self.plan and self.policy.keeps_promises else ()
        return tuple(Promise(one.job, one.at, one.shares) for one in held)

    def decide(self) -> None:
        promises = self.promises()
        self.plan = schedule(self.snapshot(), self.policy, self.now)
        values = Snapshot(
            tuple(self.nodes),
            tuple(self.pending),
            running=tuple(self.running),
            limits=self.limits,
            promises=promises,
        )
        assert schedule(values, self.policy, self.now) == self.plan  # tables and values say the same
        reservations = self.plan.reservations
        for start in self.plan.starts:
            job = self.jobs[start.job]
            assert self.limits or self.now <= self.promised.get(job.id, self.now), "a promise was broken"
            self.pending.remove(job.id)
            self.nodes.allocate(start.members)
            assert job.request.walltime is not None
            ends = self.now + job.request.walltime
            self.running.put(RunningView(job.id, start.members, self.now, ends, job.queue, job.user))
        for held in reservations:
            # A job that a limit keeps waiting holds nobody back, until it may start: then it comes before the others.
            moved = not self.limits and held.at > self.promised.get(held.job, held.at)
            assert not moved, "a place in time has moved back"
            self.promised[held.job] = held.at

    def members(self) -> list[Member]:
        return [member for job in self.running for member in job.members]

    @invariant()
    def no_gpu_has_two_owners_and_all_come_back(self) -> None:
        held = [uuid for member in self.members() for uuid in member.gpus]
        assert len(held) == len(set(held))
        free = {gpu.uuid for node in self.nodes for gpu in node.gpus if gpu.free}
        assert free == GPUS - set(held)

    @invariant()
    def nothing_is_given_out_beyond_what_there_is(self) -> None:
        for node in self.nodes:
            used = sum(member.cpus for member in self.members() if member.node == node.name)
            assert node.cpus_free == 8 - used >= 0

    @invariant()
    def gangs_are_whole(self) -> None:
        for job in self.running:
            request = self.jobs[job.id].request
            assert sum(len(member.gpus) for member in job.members) == request.gpus
            assert sum(member.cpus for member in job.members) == request.cpus

    @invariant()
    def reasons_are_true(self) -> None:
        """A job starts when the obstacle that its reason names is taken away, and not before."""
        if self.plan is None:
            return
        for job in self.pending:
            reason = self.plan.reasons[job.id]
            now = Snapshot(self.nodes, (job,), running=self.running, limits=self.limits)
            match reason.code:
                case ReasonCode.RESERVED:
                    assert self.starts(now), "were nothing kept for others"
                case ReasonCode.INSUFFICIENT:
                    assert not self.starts(now)
                    assert self.starts(Snapshot(NODES, (job,))), "did nothing else run"
                case ReasonCode.LIMIT:
                    assert not self.starts(now)
                    whose = [one for one in self.running if one.user == reason.facts["name"]]
                    used = sum(len(member.gpus) for one in whose for member in one.members)
                    assert reason.facts["used"] <= used, "after its turn more may have started"
                    assert used + job.request.gpus > reason.facts["limit"]
                    others = Snapshot(NODES, (job,), limits=self.limits)
                    assert self.starts(others) == (job.request.gpus <= reason.facts["limit"]), (
                        "did nothing of the user's run"
                    )
                case ReasonCode.NEVER_FITS:
                    assert not self.starts(Snapshot(NODES, (job,)))
                case _:
                    # With several places, one that moves forward may make room for a job whose turn was before it.
                    assert self.policy.keeps_promises and reason.code is ReasonCode.BEHIND, reason

    def starts(self, snapshot: Snapshot) -> bool:
        """Whether the only job of the snapshot starts when nothing is kept for others."""
        return bool(schedule(snapshot, Policy(order="fcfs", backfill=Backfill.FILL), self.now).starts)

    @invariant()
    def an_estimate_is_no_earlier_than_now_and_heads_keep_theirs(self) -> None:
        if self.plan is None:
            return
        estimates = self.plan.estimates(len(self.jobs))
        assert all(at > self.now for at in estimates.values())
        assert all(estimates[held.job] == held.at for held in self.plan.reservations)


class Conservatively(Time):
    policy = Policy(order="fcfs", backfill=Backfill.CONSERVATIVE)


class ForTwoHeads(Time):
    policy = Policy(order="fcfs", reservations=2)


class ForFiveHeads(Time):
    policy = Policy(order="fcfs", reservations=5)


class WithLimits(Time):
    limits = (Limit("user", gpus=4),)


TestEasy = Time.TestCase
TestConservative = Conservatively.TestCase
TestTwoHeads = ForTwoHeads.TestCase
TestFiveHeads = ForFiveHeads.TestCase
TestLimits = WithLimits.TestCase
for case in (TestEasy, TestConservative, TestTwoHeads, TestFiveHeads, TestLimits):
    case.settings = settings(max_examples=8, stateful_step_count=12, deadline=None)
del case  # pytest would take it for one more class of tests
