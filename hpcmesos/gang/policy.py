"""The site's rules for one scheduler, as values, and the named ones that ``hpcmesos simulate`` knows."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

DAY = 86400.0


class Backfill(StrEnum):
    """What may start before a job that waits for room."""

    NONE = "none"  # nothing
    EASY = "easy"  # what takes no room from the reservations of the first ``reservations`` that wait
    CONSERVATIVE = "conservative"  # what takes no room from the reservations of all that wait
    ENDS_BEFORE = "ends-before"  # what ends before the first one's reservation (RLScheduler, SC20)
    FILL = "fill"  # everything that fits; big jobs may starve


class Preempt(StrEnum):
    """Who may end running jobs to start."""

    NEVER = "never"
    LEVEL = "level"  # a job of a queue of a higher level
    ORDER = "order"  # a job that comes before it in the order: the running set is chosen anew (simulations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What the factors of the order ``multifactor`` count; each factor but age lies within 0..1."""

    user_priority: float = 1000.0  # per step of queue and user priority
    age: float = 1000.0  # per day of waiting
    fair_share: float = 2000.0
    size: float = 0.0  # GPUs asked for, as part of the cluster's
    short: float = 2000.0  # jobs of short walltime


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The rules.

    ``order``: who comes first, see ``order.ORDERS``; ``backfill_order``: of those that may go before ("": the same).
    ``reservations``: how many waiting jobs keep their place in time under EASY.
    ``hold_head``: a job that was promised a start stays first until it has it, and so does the time (SC20).
    ``all_that_end``: a job's place in time counts all that ends at its very moment; False, as in some published
    studies: the smaller first, and no more than it needs.
    ``patience``: seconds of waiting after which a job goes before all that have waited less, in order of waiting.
    ``assumed_walltime``: seconds that a job without walltime is taken to need.
    ``max_starts``: so many jobs at most in one cycle.
    """

    order: str = "fcfs"
    backfill: Backfill = Backfill.EASY
    backfill_order: str = ""
    reservations: int = 1
    hold_head: bool = False
    all_that_end: bool = True
    patience: float | None = None
    preempt: Preempt = Preempt.NEVER
    assumed_walltime: float = DAY
    max_starts: int = 1_000_000
    weights: Weights = field(default_factory=Weights)
