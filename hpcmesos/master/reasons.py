"""Why jobs wait, kept from the last passes and told on demand; and the leader's figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from hpcmesos.gang import words
from hpcmesos.gang.snapshot import Plan
from hpcmesos.gang.tables import NodeTable
from hpcmesos.master import cycle
from hpcmesos.master.cluster import Node, may_start
from hpcmesos.master.effects import Desk
from hpcmesos.master.holds import DEPENDENCY_HOLD, held_text
from hpcmesos.master.links_client import Answer, Question
from hpcmesos.model import GpuState, JobId, JobState, PendingReason, ReasonCode
from hpcmesos.queue.dependencies import Verdict, judge
from hpcmesos.queue.records import JobKey, JobRecord

_OF_GPUS = frozenset(
    {ReasonCode.INSUFFICIENT, ReasonCode.NEVER_FITS}
)  # what GPUs that are out of use may cause
_UNSEEN = PendingReason(
    ReasonCode.BEHIND, "not looked at yet: the whole queue is gone through every few seconds"
)


_NOTE_EVERY = _MINUTE = 60.0
_NOTED = 50  # jobs from the front of the queue
_MOST_NOTED = 10_000
_FRESH = 1.0  # s that a look at all GPUs is used again


class Reasons:
    """Answers questions; belongs to the planner's thread."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._recent: Mapping[JobId, PendingReason] = {}  # of the last pass
        self._complete: Mapping[JobId, PendingReason] = {}  # of the last pass over the whole queue
        self.last_plan: Plan | None = None  # of the last pass over the whole queue
        self._estimated: dict[JobId, float] = {}  # when jobs were first said to start
        self._noted = float("-inf")
        self._figures: Counter[str] = Counter()
        self._broken: tuple[float, tuple[str, ...]] = (float("-inf"), ())

    def take(self, plan: Plan, complete: bool) -> None:
        """The reasons of a pass; ``complete``: it looked at the whole queue."""
        self._recent = plan.reasons
        if complete:
            self._complete = plan.reasons
            self.last_plan = plan
            self._note_estimates(plan)
        self._compare(plan)
        self._figures["passes_total"] += 1
        self._figures["starts_total"] += len(plan.starts)

    def _note_estimates(self, plan: Plan) -> None:
        """Once a minute: when the first jobs of the queue start, as users are told."""
        clock = self._desk.alarms.clock()
        if clock - self._noted < _NOTE_EVERY:
            return
        self._noted = clock
        if len(self._estimated) > _MOST_NOTED:
            self._estimated.clear()  # of jobs that were deleted, too
        for job, at in plan.estimates(_NOTED).items():
            if not job.array:
                self._estimated.setdefault(job, at)

    def _compare(self, plan: Plan) -> None:
        """How wrong the first estimate of each job that starts now was."""
        now = self._desk.now.timestamp()
        for start in plan.starts:
            if (at := self._estimated.pop(start.job, None)) is not None:
                self._figures["estimates_checked_total"] += 1
                self._figures["estimate_error_seconds_total"] += abs(now - at)  # type: ignore[assignment]  # a float
                self._figures["estimates_within_minute_total"] += abs(now - at) <= _MINUTE

    def turn(self, seconds: float, events: int) -> None:
        """One turn of the planner is over."""
        self._figures["turns_total"] += 1
        self._figures["turn_seconds_total"] += seconds  # type: ignore[assignment]  # a float
        self._figures["events_total"] += events

    def answer(self, question: Question) -> Answer:
        """What an API process asks, of the picture as it is now."""
        return Answer(
            why=dict(self._why(question.why)),
            metrics=self._metrics() if question.metrics else {},
            gpus=self._gpus() if question.gpus else {},
        )

    def _why(self, seqs: Iterable[int]) -> Iterable[tuple[int, tuple[str, str]]]:
        for seq in seqs:
            job = self._desk.cluster.jobs.get(JobKey(seq))
            if job is not None and (reason := self.why(job)) is not None:
                yield seq, (reason.code.value, reason.text)

    def why(self, job: JobRecord) -> PendingReason | None:
        """Why a job waits; None: it does not."""
        match job.state:
            case JobState.HELD:
                return self._held(job)
            case JobState.WAITING:
                return PendingReason(ReasonCode.WAITING, f"not before {job.not_before:%Y-%m-%d %H:%M:%S} UTC")
            case JobState.QUEUED if job.key in self._desk.cluster.blocked:
                text = "parts of its last attempt may still run; it starts again when they are gone, at most 30 s later"
                return PendingReason(ReasonCode.EXCLUDED, text)
            case JobState.QUEUED | JobState.RUNNING if may_start(job):
                if not cycle.Slots(self._desk.cluster).take(job.key) and (limit := self._limit(job)):
                    text = f"the array's own limit: {limit} of its elements at once"
                    return PendingReason(ReasonCode.ARRAY_LIMIT, text)
                found = self._recent.get(job.id) or self._complete.get(job.id, _UNSEEN)
                if job.request.gpus and found.code in _OF_GPUS:
                    found = self._with_broken(found)
                elif found.code is ReasonCode.NODES_DOWN:
                    found = self._with_causes(found)
                stopped = self._desk.cluster.why_stopped(job.queue, self._desk.now.timestamp())
                return PendingReason(ReasonCode.QUEUE_STOPPED, stopped) if stopped else found
        return None

    def _with_broken(self, reason: PendingReason) -> PendingReason:
        """Names GPUs that nobody gets for now: else a user counts them, and does not see why he waits."""
        clock = self._desk.alarms.clock()
        if clock - self._broken[0] > _FRESH:
            self._broken = clock, tuple(self._out_of_use())
        if not (broken := self._broken[1]):
            return reason
        text = f"{reason.text}; out of use: {words.listed(broken)}"
        return replace(reason, text=text, facts={**reason.facts, "gpus_out_of_use": len(broken)})

    def _with_causes(self, reason: PendingReason) -> PendingReason:
        """Says of each node that is out of service why: who waits for it asks somebody else for each."""
        nodes = self._desk.cluster.nodes
        out = {name: node for name in str(reason.facts["nodes_out"]).split(", ") if (node := nodes.get(name))}
        # The reason may be some seconds old: who is back in service is none.
        out = {name: node for name, node in out.items() if not node.usable}
        causes = "; ".join(f"{name} is {_absence(node)}" for name, node in out.items())
        return replace(reason, text=f"{reason.text} ({causes})") if causes else reason

    def _out_of_use(self) -> Iterable[str]:
        """``GPU 1 of node7 (fan is loud)`` of nodes that are up."""
        for name, node in self._desk.cluster.nodes.items():
            for gpu in node.gpus.values() if node.link is not None else ():
                if gpu.state in (GpuState.QUARANTINED, GpuState.LOST):
                    yield f"GPU {gpu.index} of {name} ({gpu.note or gpu.state.value})"

    def _held(self, job: JobRecord) -> PendingReason:
        if DEPENDENCY_HOLD not in job.holds:
            return PendingReason(ReasonCode.HELD, held_text(job))
        jobs = self._desk.cluster.jobs
        found = [(one, jobs.get(JobKey(*one.parent))) for one in job.dependencies]
        listed = ", ".join(
            one.short + (f" ({parent.state.name.lower()})" if parent else "")
            for one, parent in found
            if judge(one, parent.outcome if parent else None) is Verdict.WAITING
        )
        return PendingReason(ReasonCode.DEPENDENCY, f"waits for {listed or 'its dependencies'}")

    def _limit(self, job: JobRecord) -> int | None:
        parent = self._desk.cluster.jobs.get(JobKey(job.seq))
        return parent.array_spec.limit if parent and parent.array_spec else None

    def _metrics(self) -> dict[str, float]:
        cluster = self._desk.cluster
        figures: dict[str, float] = dict(self._figures)
        for state, number in Counter(job.state for job in cluster.jobs.values()).items():
            figures[f"jobs_{state.name.lower()}"] = number
        figures["links"] = sum(node.link is not None for node in cluster.nodes.values())
        figures["pending"] = len(cluster.pending)
        figures["attempts"] = len(cluster.attempts)
        figures |= fragmentation(cluster.holdings.nodes)
        for name, node in cluster.nodes.items():
            for uuid, of_gpu in node.figures.items() if node.link is not None else ():
                figures |= {f"gpu_{figure};{name};{uuid}": value for figure, value in of_gpu.items()}
        return figures

    def _gpus(self) -> dict[str, dict[str, float]]:
        linked = (node for node in self._desk.cluster.nodes.values() if node.link is not None)
        return {uuid: dict(of_gpu) for node in linked for uuid, of_gpu in node.figures.items()}


def fragmentation(nodes: NodeTable) -> dict[str, float]:
    """Free GPUs of nodes that are up, and which part of them no request for whole nodes can use."""
    free = nodes.room.gpus * nodes.up
    begun = free[nodes.room.gpus < nodes.installed.gpus]
    total = int(free.sum())
    return {
        "gpus_free": total,
        "gpus_free_on_begun_nodes": int(begun.sum()),
        "gpu_fragmentation": float(begun.sum() / total) if total else 0.0,
    }


def _absence(node: Node) -> str:
    """Why a node is out of service: ``offline (fan)``, ``down``."""
    if node.link is None:
        return "gone" if node.record.gone else "down"
    return f"offline ({node.record.note})" if node.record.note else "offline"
