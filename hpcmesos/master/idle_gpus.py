"""Jobs that leave their GPUs idle are warned, and ended where the queue wants it (`master.idleness` decides).

Samples are this leader's own: under a new one a window begins anew, which can only be to a job's favour. That a job was
warned is an event, so no leader warns of the same idle spell again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from hpcmesos.gang.words import counted
from hpcmesos.master import idleness
from hpcmesos.master.cluster import Attempt, Cluster, Phase
from hpcmesos.master.effects import Desk
from hpcmesos.master.gangs import Gangs
from hpcmesos.master.idleness import ASKED, INTERACTIVE, Policy, Record, Verdict, Watch
from hpcmesos.model import Cause
from hpcmesos.queue.records import IDLE, USED_AGAIN, JobRecord
from hpcmesos.units import format_duration

log = logging.getLogger(__name__)

LOOK = 30.0
"""Seconds between two looks at what runs; a job is warned so much later at most."""


class IdleGpus:
    """Belongs to the planner; ``begin`` after each load of its picture."""

    def __init__(self, desk: Desk, gangs: Gangs) -> None:
        self._desk = desk
        self._gangs = gangs

    def begin(self) -> None:
        """An earlier leader may have warned of what no queue minds any more."""
        for attempt in self._desk.cluster.attempts.values():
            if attempt.watch is None and any(share.gpus for share in attempt.shares.values()):
                attempt.watch = Watch()
        self._desk.alarms.set(LOOK, self._look)

    def _look(self) -> None:
        self._desk.alarms.set(LOOK, self._look)
        watched = [
            (attempt, attempt.watch)
            for attempt in self._desk.cluster.attempts.values()
            if attempt.watch is not None and _goes_on(attempt)
        ]
        self._look_up([pair for pair in watched if not pair[1].known])
        for attempt, watch in watched:
            self._judge(attempt, watch)

    def _look_up(self, unknown: Sequence[tuple[Attempt, Watch]]) -> None:
        """What earlier leaders have told of these attempts."""
        if not unknown:
            return
        since = datetime.fromtimestamp(min(attempt.begun for attempt, _ in unknown), UTC)
        keys = [attempt.key.job for attempt, _ in unknown]
        told = self._desk.reader.last_events(keys, (IDLE, USED_AGAIN), since)
        for attempt, watch in unknown:
            event = told.get(attempt.key.job)
            watch.known = True
            if event is not None and event.kind == IDLE and event.payload["attempt"] == attempt.key.number:
                ago = self._desk.now - event.at
                watch.warned_at = self._desk.alarms.clock() - ago.total_seconds()

    def _judge(self, attempt: Attempt, watch: Watch) -> None:
        job, now = self._desk.cluster.jobs[attempt.key.job], self._desk.alarms.clock()
        if job.suspended:
            watch.records.clear()
        policy = policy_of(self._desk.cluster, job)
        records = [watch.records.get(node, Record()) for node in attempt.shares if attempt.shares[node].gpus]
        verdict = idleness.decide(policy, records, now, watch.warned_at)
        if verdict is None:
            return
        if policy is None or verdict is Verdict.WITHDRAW or self._exempt(policy, job, watch):
            self._withdraw(job, watch)
            return
        gpus = sum(len(share.gpus) for share in attempt.shares.values())
        busy = idleness.utilization(records, now, policy.window)
        text = (
            f"{counted(gpus, 'GPU')} busy for {busy:.1f} % of the last {format_duration(policy.window)},"
            f" less than the {policy.threshold:g} % of queue {job.queue}"
        )
        if verdict is Verdict.WARN:
            self._warn(job, watch, text, policy.window if policy.cancel else None)
        else:
            log.info("idle GPUs attempt=%s %s", attempt.name, text)
            self._gangs.end(attempt, Cause.GPU_IDLE, None, text)

    def _exempt(self, policy: Policy, job: JobRecord, watch: Watch) -> bool:
        if watch.traits is None:
            submission = self._gangs.submissions.current(job.seq)
            traits = {
                INTERACTIVE: bool(submission.get("interactive")),
                ASKED: submission.get("gpu_idle") == "allowed",
            }
            watch.traits = frozenset(name for name, holds in traits.items() if holds)
        names = {"u": job.owner, "g": job.egroup, "p": job.project}
        return idleness.exempted(policy, names, job.name, watch.traits)

    def _warn(self, job: JobRecord, watch: Watch, text: str, left: float | None) -> None:
        if left is not None:
            ends_at = self._desk.now + timedelta(seconds=left)
            text += f"; it ends at {ends_at:%Y-%m-%d %H:%M} UTC unless they are used"
        watch.warned_at = self._desk.alarms.clock()
        payload = {"attempt": job.attempt, "text": text}
        self._desk.move(job, job.state, IDLE, payload, comment=f"idle GPUs: {text}"[:1000])

    def _withdraw(self, job: JobRecord, watch: Watch) -> None:
        if watch.warned_at is not None:
            watch.warned_at = None
            self._desk.move(job, job.state, USED_AGAIN, {"attempt": job.attempt}, comment="")


def policy_of(cluster: Cluster, job: JobRecord) -> Policy | None:
    """That of the job's queue, or of the server."""
    queue = cluster.queues.get(job.queue)
    return Policy.of(queue.attributes if queue else {}, cluster.attributes)


def take_samples(desk: Desk, node: str, attempts: Iterable[Attempt]) -> None:
    """A node has told figures: samples of those attempts on it whose queue minds, if it told of all their GPUs."""
    cluster, now = desk.cluster, desk.alarms.clock()
    figures = cluster.nodes[node].figures
    for attempt in attempts:
        job, share = cluster.jobs.get(attempt.key.job), attempt.shares.get(node)
        if job is None or share is None or not share.gpus or not _goes_on(attempt):
            continue
        if (policy := policy_of(cluster, job)) is None:
            continue
        attempt.watch = attempt.watch or Watch()
        told = [figures.get(uuid, {}).get("utilization") for uuid in share.gpus]
        percents = [percent for percent in told if percent is not None]
        if len(percents) == len(told):
            attempt.watch.records.setdefault(node, Record()).add(now, percents, policy.window)


def _goes_on(attempt: Attempt) -> bool:
    return attempt.phase is Phase.RUNNING and attempt.ending is None
