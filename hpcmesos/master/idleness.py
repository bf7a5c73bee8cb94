"""Whether a job leaves its GPUs idle: a decision over samples of their utilisation. Pure.

What counts is the mean over all GPUs of the job and over a sliding window, so that neither a busy hour at the beginning
nor a short pause hides or makes an idle job. What was not sampled is not known, and never idle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase

from hpcmesos.pbs.manager_attributes import members
from hpcmesos.units import parse_duration

GAP = 60.0
"""Seconds without a sample after which what came before no longer counts: nobody knows what went on meanwhile."""

_THRESHOLD, _WINDOW = "5", "01:00:00"  # of a policy that does not say
_PARTS = 60  # of a window: so many sums are kept, not every sample
NAMED = "name:"
INTERACTIVE, ASKED = "interactive", "asked"


class Verdict(StrEnum):
    WARN = "warn"
    WITHDRAW = "withdraw"  # of a job that was warned: its GPUs are used again, or nobody minds any more
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class Policy:
    """``threshold``: percent; a mean below it is idle. ``window``: s. ``exempt``: see `exempted`."""

    cancel: bool = False  # after a second window; else a job is warned only
    threshold: float = 5.0
    window: float = 3600.0
    exempt: tuple[str, ...] = ()

    @classmethod
    def of(cls, queue: Mapping[str, str], server: Mapping[str, str]) -> Policy | None:
        """What qmgr has set: each attribute is the queue's, else the server's. None: nobody minds."""
        action = queue.get("gpu_idle_action", server.get("gpu_idle_action", "none"))
        if action == "none":
            return None

        def given(name: str, default: str) -> str:
            return queue.get(name, server.get(name, default))

        return cls(
            cancel=action == "cancel",
            threshold=float(given("gpu_idle_threshold", _THRESHOLD)),
            window=parse_duration(given("gpu_idle_window", _WINDOW)),
            exempt=tuple(members(given("gpu_idle_exempt", ""))),
        )


@dataclass(slots=True)
class _Part:
    begin: float
    samples: int = 0
    total: float = 0.0  # percent


@dataclass(slots=True)
class Record:
    """Samples of one node's GPUs of an attempt, without a gap. Times: s, any clock, the same for all calls."""

    last: float = float("-inf")
    parts: deque[_Part] = field(default_factory=deque)

    def add(self, at: float, percents: Sequence[float], window: float) -> None:
        """``percents``: one of each GPU."""
        if at - self.last > GAP:
            self.parts.clear()
        self.last = at
        if not self.parts or at >= self.parts[-1].begin + window / _PARTS:
            self.parts.append(_Part(at))
        part = self.parts[-1]
        part.samples += len(percents)
        part.total += sum(percents)
        while len(self.parts) > 1 and self.parts[1].begin <= at - window:
            self.parts.popleft()

    def covers(self, now: float, window: float) -> bool:
        """Whether all of the window until ``now`` was sampled."""
        return bool(self.parts) and now - self.last <= GAP and self.parts[0].begin <= now - window


@dataclass(slots=True)
class Watch:
    """What is known of one attempt. ``warned_at``: s, as samples; None: not warned, or not any more."""

    records: dict[str, Record] = field(default_factory=dict)  # by node
    warned_at: float | None = None
    known: bool = False  # whether it was looked up what earlier leaders told
    traits: frozenset[str] | None = None  # of the submission, see `exempted`; None: not read yet


def utilization(records: Collection[Record], now: float, window: float) -> float | None:
    """Percent, the mean of all GPUs over the window; None: some of it is not known."""
    if not records or not all(record.covers(now, window) for record in records):
        return None
    parts = [part for record in records for part in record.parts]
    return sum(part.total for part in parts) / sum(part.samples for part in parts)


def decide(
    policy: Policy | None, records: Collection[Record], now: float, warned_at: float | None
) -> Verdict | None:
    """What follows from the samples; None: nothing. A job is cancelled a whole idle window after its warning at the
    earliest.
    """
    warned = warned_at is not None
    if policy is None:
        return Verdict.WITHDRAW if warned else None
    busy = utilization(records, now, policy.window)
    if busy is None:
        return None
    if busy >= policy.threshold:
        return Verdict.WITHDRAW if warned else None
    if warned_at is None:
        return Verdict.WARN
    return Verdict.CANCEL if policy.cancel and now >= warned_at + policy.window else None


def exempted(policy: Policy, names: Mapping[str, str], job_name: str, traits: Collection[str]) -> bool:
    """Whether the policy leaves a job alone. ``names``: its user (u), group (g) and project (p) by letter; ``traits``:
    "interactive", and "asked" if it was submitted with ``-W gpu_idle=allowed``.
    """
    known = {f"{letter}:{name}" for letter, name in names.items()} | set(traits)
    return any(
        word in known or (word.startswith(NAMED) and fnmatchcase(job_name, word.removeprefix(NAMED)))
        for word in policy.exempt
    )
