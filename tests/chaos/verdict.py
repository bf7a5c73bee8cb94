"""Whether a chaos run kept every promise: run logs, database and fault log side by side. Pure."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hpcmesos.model import Cause, JobState
from hpcmesos.queue.records import AttemptRecord, JobRecord, ShareRecord
from tests.chaos.plan import LINKS, PlannedJob
from tests.chaos.script import Line

NOTICED = 30.0
"""Seconds within which the loss of a node has ended what ran on it."""
_SLACK = 5.0
"""Seconds more for a machine that is busy with several tests."""
_OWN = frozenset({Cause.OK, Cause.APP})
RERUN_SHARE = 0.99
"""Of the rerunnable jobs, at least so many end with their own code."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What was done: ``nodes`` that it may cost (``began``, ``ended``: seconds since the epoch)."""

    kind: str
    began: float
    ended: float
    nodes: tuple[str, ...] = ()
    what: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One submitted job: what was planned, what it wrote, what the database has. ``job`` None: it knows none."""

    plan: PlannedJob
    id: str
    lines: Sequence[Line]
    job: JobRecord | None
    attempts: Sequence[AttemptRecord] = ()
    shares: Sequence[ShareRecord] = ()

    def members(self, attempt: AttemptRecord) -> set[str]:
        """The nodes of an attempt."""
        return {share.node for share in self.shares if share.attempt == attempt.key}


@dataclass(slots=True)
class Verdict:
    """``violations``: by promise, one line each; none: all were kept. ``slowest``: s from the end of a fault to the
    end that it explains with NODE_LOST, at most.
    """

    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    violations: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def kept(self) -> bool:
        return not any(self.violations.values())


def judge(outcomes: Sequence[Outcome], faults: Sequence[Fault]) -> Verdict:
    """Every job against every promise."""
    verdict = Verdict()
    for outcome in outcomes:
        for promise, text in _wrongs(outcome, faults):
            verdict.violations[promise].append(f"{outcome.id} ({outcome.plan.key}): {text}")
        _count(verdict.counts, outcome)
        late = [
            _lateness(a, outcome.members(a), faults) for a in outcome.attempts if a.cause is Cause.NODE_LOST
        ]
        verdict.slowest = max([verdict.slowest, *(seconds for seconds in late if seconds is not None)])
    for text in _shared_gpus(outcomes):
        verdict.violations["a GPU shared"].append(text)
    rerunnable = [outcome for outcome in outcomes if outcome.plan.rerunnable]
    own = sum(_ended_with_its_code(outcome) for outcome in rerunnable)
    verdict.counts["rerunnable"] = len(rerunnable)
    verdict.counts["rerunnable with their own code"] = own
    if own < RERUN_SHARE * len(rerunnable):
        verdict.violations["rerunnable jobs that did not end with their own code"] += [
            f"{outcome.id} ({outcome.plan.key}): {_end(outcome)}"
            for outcome in rerunnable
            if not _ended_with_its_code(outcome)
        ]
    return verdict


def _wrongs(outcome: Outcome, faults: Sequence[Fault]) -> Iterator[tuple[str, str]]:
    job = outcome.job
    if job is None or job.state is not JobState.COMPLETE:
        yield "a job lost", f"state {job.state if job else 'unknown'}"
        return
    for line in outcome.lines:
        if line.word == "overlap":
            yield "two runs of a job at once", f"attempt {line.attempt} on {line.node}: {line.value}"
    if text := _wrong_status(outcome, job):
        yield "a wrong exit status", text
    for attempt in outcome.attempts:
        late = _lateness(attempt, outcome.members(attempt), faults)
        if attempt.cause is Cause.NODE_LOST and (late is None or late > NOTICED + _SLACK):
            at = attempt.ended_at.timestamp() if attempt.ended_at else 0
            text = f"attempt {attempt.key.number}: {attempt.culprit}: {attempt.message} at {at:.1f}"
            yield "a NODE_LOST without a fault", text
    yield from (("two runs of a job at once", text) for text in _overlaps(outcome.lines))


def _wrong_status(outcome: Outcome, job: JobRecord) -> str:
    """Against the last line ``end`` of its last attempt; empty: right."""
    written = [line for line in outcome.lines if line.word == "end" and line.attempt == job.attempt]
    if job.cause in _OWN:
        if not written:
            return f"{job.exit_status} ({job.cause}), and attempt {job.attempt} wrote no end"
        if len(written) > 1:
            return f"attempt {job.attempt} wrote {len(written)} ends"
        if job.exit_status != int(written[0].value):
            return f"{job.exit_status}, and the script ended with {written[0].value}"
        if written[0].value not in (str(outcome.plan.code), str(99)):
            return f"the script ended with {written[0].value}, its plan was {outcome.plan.code}"
        return ""
    if job.cause is Cause.NODE_LOST and job.exit_status == -3:
        return ""
    return f"{job.exit_status} of cause {job.cause}: {job.comment}"


def _overlaps(lines: Sequence[Line]) -> Iterator[str]:
    """A run that began before the one before it had written its end, though it wrote it later."""
    ends = {line.attempt: line.time for line in lines if line.word == "end"}
    starts = Counter(line.attempt for line in lines if line.word == "start")
    yield from (f"attempt {attempt} began {count} times" for attempt, count in starts.items() if count > 1)
    for line in lines:
        if line.word in ("start", "part"):
            for attempt, ended in ends.items():
                if attempt < line.attempt and ended > line.time:
                    yield f"attempt {line.attempt} began before attempt {attempt} ended"


def _lateness(attempt: AttemptRecord, members: set[str], faults: Iterable[Fault]) -> float | None:
    """Seconds from the end of the fault that explains the attempt's end, 0 before it; None: no fault does.

    It hit the culprit's node, or was a cut one of its gang: of two nodes that no longer hear each other nobody can say
    which one is away.
    """
    if attempt.ended_at is None:
        return None
    at = attempt.ended_at.timestamp()
    culprits = set((attempt.culprit or "").split("+"))
    found = [
        max(0.0, at - fault.ended)
        for fault in faults
        if set(fault.nodes) & (culprits | (members if fault.kind in LINKS else set()))
        and fault.began - 1.0 <= at
    ]
    return min(found, default=None)


def _shared_gpus(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """GPUs that two attempts saw at the same time, by what they wrote themselves."""
    uses: defaultdict[str, list[tuple[float, float, str]]] = defaultdict(list)
    for outcome in outcomes:
        ends = {line.attempt: line.time for line in outcome.lines if line.word == "end"}
        seen: defaultdict[tuple[int, str], list[float]] = defaultdict(list)
        for line in outcome.lines:
            if line.word in ("start", "part"):
                for gpu in line.value.split(","):
                    if gpu not in ("", "-"):
                        seen[line.attempt, gpu].append(line.time)
        for (attempt, gpu), times in seen.items():
            # Without an end nobody knows how long it ran; it ran at least at those times.
            last = max(ends.get(attempt, 0.0), *times)
            uses[gpu].append((min(times), last, f"{outcome.id} attempt {attempt}"))
    for gpu, spans in uses.items():
        spans.sort()
        for (_, until, who), (since, _, other) in itertools.pairwise(spans):
            if since < until:
                yield f"{gpu}: {who} and {other}"


def _ended_with_its_code(outcome: Outcome) -> bool:
    job = outcome.job
    return job is not None and job.cause in _OWN and job.exit_status == outcome.plan.code


def _end(outcome: Outcome) -> str:
    job = outcome.job
    if job is None:
        return "unknown"
    causes = ", ".join(f"{a.cause} {a.culprit or ''} {a.message}".strip() for a in outcome.attempts)
    return f"{job.exit_status} {job.cause} after {job.attempt} attempts: {causes}"


def _count(counts: Counter[str], outcome: Outcome) -> None:
    counts["jobs"] += 1
    counts["gangs"] += outcome.plan.gang
    counts["longer than 60 s"] += outcome.plan.long
    counts["with a code other than 0"] += outcome.plan.code != 0
    for attempt in outcome.attempts:
        counts[f"attempts {attempt.cause}"] += 1
    if outcome.job is not None:
        counts[f"jobs {outcome.job.cause}"] += 1


def table(verdict: Verdict, faults: Sequence[Fault], seed: int, notes: Mapping[str, str]) -> str:
    """For people."""
    rows = [("seed", str(seed)), *notes.items()]
    rows += [(what, str(count)) for what, count in sorted(verdict.counts.items())]
    kinds = Counter(fault.kind for fault in faults)
    rows += [(f"fault {kind}", str(count)) for kind, count in sorted(kinds.items())]
    rows.append(("faults", str(len(faults))))
    rows.append(("slowest NODE_LOST after its fault, s", f"{verdict.slowest:.1f}"))
    lines = [f"{what:<44} {value}" for what, value in rows]
    for promise, found in ((promise, found) for promise, found in verdict.violations.items() if found):
        lines += [f"BROKEN: {promise}: {len(found)}", *(f"    {text}" for text in found[:20])]
    lines.append("every promise was kept" if verdict.kept else "PROMISES WERE BROKEN")
    return "\n".join(lines)
