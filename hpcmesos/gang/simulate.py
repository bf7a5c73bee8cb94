"""A cluster on a virtual clock: jobs of a trace through the same ``schedule()`` as the live leader calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from math import inf

from hpcmesos.gang import schedule as scheduler
from hpcmesos.gang.policy import Policy, Preempt
from hpcmesos.gang.predict import History
from hpcmesos.gang.snapshot import JobView, Member, NodeView, Plan, Promise, RunningView, Snapshot
from hpcmesos.gang.tables import JobTable, NodeTable, RunningTable
from hpcmesos.model import Chunk, JobId, NodeName, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceJob:
    """One job of a trace. Times in seconds; ``walltime``: what its user said that it needs, None: nothing."""

    id: JobId
    submitted_at: float
    runtime: float
    request: Request
    walltime: float | None = None
    user: str = ""
    project: str = ""
    group: str = ""
    queue: str = ""
    priority: int = 0
    qos: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """What became of a job; ``started_at`` is its first start, ``preempted`` how often it had to go."""

    job: TraceJob
    started_at: float
    ended_at: float
    nodes: tuple[NodeName, ...]
    preempted: int = 0

    @property
    def wait(self) -> float:
        """All seconds that it did not run."""
        return self.ended_at - self.job.submitted_at - self.job.runtime


@dataclass(slots=True)
class Replay:
    """A finished simulation. ``never``: jobs that this cluster could not start. ``calls``: of ``schedule()``.

    ``before``: what ran when it began; those have not waited here.
    """

    runs: list[Run] = field(default_factory=list)
    never: list[TraceJob] = field(default_factory=list)
    calls: int = 0
    before: list[Run] = field(default_factory=list)


@dataclass(slots=True)
class _Live:
    """A job under way."""

    job: TraceJob
    left: float  # seconds of work
    since: float  # of this attempt's start
    first: float
    members: tuple[Member, ...]
    attempt: int = 0


class Simulator:
    """``run()`` replays the whole trace.

    ``one_by_one``: each arrival and each end is an event of its own, arrivals first, as in RLScheduler; else all that
    happens at one time is decided on together.
    ``start``: when it begins; what was submitted before waits then. ``running``: what runs then, until its ``ends_at``;
    ``nodes`` show it as taken.
    ``known``: the scheduler knows true run times. ``saves``: a preempted job goes on where it was, else it begins anew.
    """

    def __init__(
        self,
        nodes: Iterable[NodeView],
        jobs: Iterable[TraceJob],
        policy: Policy,
        *,
        one_by_one: bool = False,
        known: bool = False,
        saves: bool = True,
        start: float = -inf,
        running: Iterable[RunningView] = (),
        facts: Mapping[str, object] | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        self._policy = policy
        self._one_by_one, self._known, self._saves, self._progress = one_by_one, known, saves, progress
        self._facts = dict(facts or {})
        self._nodes = NodeTable(nodes)
        self._pending, self._running = JobTable(), RunningTable(self._nodes)
        self._jobs = sorted(jobs, key=lambda job: (job.submitted_at, job.id))
        self._live: dict[JobId, _Live] = {}
        self._ends: list[tuple[float, int, JobId, int]] = []
        self._waiting: dict[JobId, _Live] = {}
        self._arrived = 0
        self._history = History()
        self._promises: tuple[Promise, ...] = ()
        self._before: set[JobId] = set()
        self.replay = Replay()
        self._start = start
        for view in running:
            self._goes_on(view)

    def run(self) -> Replay:
        """Until nothing runs and nothing that could run waits."""
        while self._arrived < len(self._jobs) or self._ends:
            now = self._advance()
            self._decide(now)
        self.replay.never = [waiting.job for waiting in self._waiting.values()]
        return self.replay

    # --- events

    def _advance(self) -> float:
        """Takes in the next event, or all of the next time; answers what time it is then."""
        arrival = self._jobs[self._arrived].submitted_at if self._arrived < len(self._jobs) else inf
        end = self._ends[0][0] if self._ends else inf
        now = max(self._start, min(arrival, end))
        if self._one_by_one:
            if arrival <= end:
                self._arrive()
            else:
                self._end(now)
            return now
        while self._ends and self._ends[0][0] <= now:
            self._end(now)
        while self._arrived < len(self._jobs) and self._jobs[self._arrived].submitted_at <= now:
            self._arrive()
        return now

    def _goes_on(self, view: RunningView) -> None:
        """Something ran before the beginning."""
        end = max(
            self._start, self._start + self._policy.assumed_walltime if view.ends_at is None else view.ends_at
        )
        pieces = tuple(Chunk(1, m.cpus, len(m.gpus), m.mem, m.slots) for m in view.members)
        job = TraceJob(
            id=view.id,
            submitted_at=self._start,
            runtime=end - self._start,
            request=view.request or Request(pieces),
            user=view.user,
            project=view.project,
            group=view.group,
            queue=view.queue,
            priority=view.priority,
        )
        self._live[job.id] = _Live(job, job.runtime, self._start, self._start, view.members)
        self._running.put(replace(view, ends_at=end))
        self._before.add(job.id)
        heappush(self._ends, (end, 0, job.id, 0))

    def _arrive(self) -> None:
        job = self._jobs[self._arrived]
        self._arrived += 1
        self._queue(_Live(job, job.runtime, inf, inf, ()))

    def _queue(self, live: _Live) -> None:
        job = live.job
        self._waiting[job.id] = live
        self._pending.put(
            JobView(
                job.id,
                job.request,
                job.priority,
                job.submitted_at,
                job.queue,
                user=job.user,
                project=job.project,
                group=job.group,
                walltime=live.left if self._known else job.walltime,
                remaining=live.left if self._known else None,
                predicted=self._history.predict(job.user, _size(job)) if self._policy.predict else None,
                qos=job.qos,
            )
        )

    def _end(self, now: float) -> None:
        _, _, key, attempt = heappop(self._ends)
        live = self._live.get(key)
        if live is None or live.attempt != attempt:
            return  # it was preempted meanwhile
        self._leave(key)
        self._learn(live.job)
        nodes = tuple(member.node for member in live.members)
        runs = self.replay.before if key in self._before else self.replay.runs
        runs.append(Run(live.job, live.first, now, nodes, attempt))
        self._progress(len(self.replay.runs))

    def _learn(self, job: TraceJob) -> None:
        """A job's run time is known: its user's waiting jobs are seen anew."""
        if not self._policy.predict or not job.user:
            return
        self._history.ended(job.user, _size(job), job.runtime)
        for waiting in self._waiting.values():
            if waiting.job.user == job.user:
                self._queue(waiting)

    def _leave(self, key: JobId) -> _Live:
        live = self._live.pop(key)
        self._running.remove(key)
        self._nodes.release(live.members)
        return live

    # --- decisions

    def _decide(self, now: float) -> None:
        """Calls the scheduler, and again as long as something had to make room."""
        policy = self._policy
        while self._waiting:
            plan = scheduler.schedule(self._snapshot(), policy, now)
            self.replay.calls += 1
            self._apply(plan, now)
            if not plan.preemptions:
                return
            policy = replace(policy, preempt=Preempt.NEVER)

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            self._nodes,
            self._pending,
            running=self._running,
            promises=self._promises,
            **self._facts,  # type: ignore[arg-type]  # facts are fields of Snapshot by name
        )

    def _apply(self, plan: Plan, now: float) -> None:
        for preemption in plan.preemptions:
            for victim in preemption.victims:
                live = self._leave(victim)
                if self._saves:
                    live.left -= now - live.since
                live.attempt += 1
                self._queue(live)
        for start in plan.starts:
            self._begin(self._waiting.pop(start.job), start.members, now)
        if self._policy.keeps_promises:
            self._promises = tuple(Promise(held.job, held.at, held.shares) for held in plan.reservations)

    def _begin(self, live: _Live, members: tuple[Member, ...], now: float) -> None:
        job = live.job
        self._pending.remove(job.id)
        live.members, live.since, live.first = members, now, min(live.first, now)
        self._live[job.id] = live
        self._nodes.allocate(members)
        walltime = live.left if self._known else job.walltime
        ends_at = now + (self._policy.assumed_walltime if walltime is None else walltime)
        view = RunningView(
            job.id,
            members,
            now,
            ends_at,
            job.queue,
            job.user,
            job.project,
            job.group,
            saved_at=now if self._saves else None,
            priority=job.priority,
            queued_at=job.submitted_at,
        )
        self._running.put(view)
        heappush(self._ends, (now + live.left, self.replay.calls, job.id, live.attempt))


def _size(job: TraceJob) -> tuple[int, int]:
    return job.request.gpus, job.request.cpus


def simulate(
    nodes: Iterable[NodeView], jobs: Iterable[TraceJob], policy: Policy, **options: object
) -> Replay:
    """Replays ``jobs`` on ``nodes`` under ``policy``; see :class:`Simulator` for the options."""
    return Simulator(nodes, jobs, policy, **options).run()  # type: ignore[arg-type]  # passed on as they are


def bounded_slowdown(runs: Sequence[Run], tau: float = 10.0) -> float:
    """The average of (wait + run time) / max(run time, tau), each at least 1."""
    total = sum(max(1.0, (run.ended_at - run.job.submitted_at) / max(run.job.runtime, tau)) for run in runs)
    return total / len(runs) if runs else 0.0
