"""Why and when, for one job, with all that a user may want to know of it; worked out when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import msgspec

from hpcmesos import api_schema
from hpcmesos.gang import order
from hpcmesos.gang.policy import Policy
from hpcmesos.gang.schedule import schedule
from hpcmesos.gang.snapshot import JobView, Plan, RunningView
from hpcmesos.master import cycle
from hpcmesos.master.effects import Desk
from hpcmesos.master.links_client import Trial
from hpcmesos.master.plugins import Plugins
from hpcmesos.master.reasons import Reasons
from hpcmesos.model import JobId, PendingReason, Request
from hpcmesos.queue.records import JobKey

ESTIMATED = 1000
"""Jobs from the front of the queue whose start is estimated."""

_HOLDERS = 10
_FRESH = 5.0  # seconds that an order of the whole queue is used again


class Why:
    """Belongs to the planner's thread."""

    def __init__(self, desk: Desk, reasons: Reasons, policy: Policy, plugins: Plugins) -> None:
        self._desk = desk
        self._reasons = reasons
        self._policy = policy
        self._plugins = plugins
        self._places: tuple[float, dict[JobId, int]] = (float("-inf"), {})
        self._estimates: tuple[Plan | None, Mapping[JobId, float]] = (None, {})

    def explain(self, keys: Iterable[tuple[int, int | None]]) -> list[api_schema.Why | None]:
        """For each key (number, element or None) what is known; None: there is no such job, or it is over."""
        return [self._one(JobKey(seq, index)) for seq, index in keys]

    def try_out(self, trial: Trial) -> api_schema.Why:
        """What would become of a job if it were submitted now."""
        cluster, now = self._desk.cluster, self._desk.now.timestamp()
        job = JobId(0, cluster.server)
        view = JobView(
            job,
            msgspec.convert(trial.request, Request),
            trial.priority,
            now,
            trial.queue,
            count=trial.count,
            user=trial.user,
            project=trial.project,
            group=trial.group,
            qos=cluster.level(trial.queue) * cycle.LEVEL,
        )
        snapshot, _ = cycle.snapshot(cluster, self._policy, now, self._plugins.told, whole=True)
        table = cluster.pending.table
        table.put(view)
        try:
            plan = schedule(snapshot, self._policy, now)
        finally:
            table.remove(job)
        started = [start for start in plan.starts if start.job == job]
        if started:
            nodes = sorted({member.node for start in started for member in start.members})
            text = f"would start now on {', '.join(nodes)}"
            return api_schema.Why(
                id="", state="Q", code="starts", text=text, starts_at=now, nodes=list(nodes)
            )
        reason = plan.reasons[job]
        starts_at = plan.estimates(ESTIMATED).get(job)
        return self._told(str(job), "Q", reason, view, None, starts_at)

    def _one(self, key: JobKey) -> api_schema.Why | None:
        cluster = self._desk.cluster
        job = cluster.jobs.get(key) or cluster.jobs.get(JobKey(key.seq))
        reason = self._reasons.why(job) if job else None
        if job is None or reason is None:
            return None
        view = cluster.pending.view(job.key) if job.key in cluster.pending.keys() else None  # noqa: SIM118 - no mapping
        if view is None:
            return self._told(str(job.id), job.state.value, reason, None, None, None)
        place = self._place(job.id)
        return self._told(str(job.id), job.state.value, reason, view, place, self._estimate(job.id))

    def _told(
        self,
        job: str,
        state: str,
        reason: PendingReason,
        view: JobView | None,
        place: int | None,
        starts_at: float | None,
    ) -> api_schema.Why:
        return api_schema.Why(
            id=job,
            state=state,
            code=reason.code.value,
            text=reason.text,
            facts=dict(reason.facts),
            place=place,
            waiting=len(self._desk.cluster.pending),
            starts_at=starts_at,
            factors=self._factors(view) if view else {},
            holders=self._holders(view) if view else [],
        )

    def _place(self, job: JobId) -> int | None:
        """1: the first of all that wait; None: it was not there when the queue was last put in order."""
        cluster, clock = self._desk.cluster, self._desk.alarms.clock()
        if clock - self._places[0] > _FRESH or job not in self._places[1]:
            now = self._desk.now.timestamp()
            ranked = cycle.ranked_jobs(cluster, self._policy, now, self._plugins.told)
            self._places = clock, {other: place for place, other in enumerate(ranked, 1)}
        return self._places[1].get(job)

    def _estimate(self, job: JobId) -> float | None:
        """When it starts, as the last pass over the whole queue saw it."""
        plan = self._reasons.last_plan
        if plan is None:
            return None
        if self._estimates[0] is not plan:
            self._estimates = plan, plan.estimates(ESTIMATED)
        return self._estimates[1].get(job)

    def _factors(self, view: JobView) -> dict[str, api_schema.Factor]:
        now = self._desk.now.timestamp()
        snapshot, _ = cycle.snapshot(self._desk.cluster, self._policy, now, self._plugins.told, whole=False)
        found = order.points(snapshot, replace(view, count=1), self._policy, now)
        return {
            name: api_schema.Factor(value=value, points=points) for name, (value, points) in found.items()
        }

    def _holders(self, view: JobView) -> list[api_schema.Holder]:
        """Who holds what the job needs, the first to end first."""
        gpus = view.request.gpus > 0
        running = [job for job in self._desk.cluster.holdings.running if not gpus or _gpus(job)]
        running.sort(key=lambda job: (float("inf") if job.ends_at is None else job.ends_at, job.id.seq))
        return [
            api_schema.Holder(
                job=str(job.id),
                user=job.user,
                gpus=_gpus(job),
                cpus=sum(member.cpus for member in job.members),
                nodes=[member.node for member in job.members],
                until=job.ends_at,
            )
            for job in running[:_HOLDERS]
        ]


def _gpus(job: RunningView) -> int:
    return sum(len(member.gpus) for member in job.members)
