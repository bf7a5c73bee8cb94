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
    """What the factors of the order ``multifactor`` count, in points; a job with more points comes first.

    One point is worth half the work: a job that asks for twice the GPU-seconds of another has one point less. The
    defaults make a step of priority or QoS outweigh all the rest.
    """

    priority: float = 100.0  # for each step of the user's priority and of the queue's
    qos: float = 100.0  # for each step of the quality of service
    fair_share: float = 1.0  # off for each time that the account has used what is due to it
    age: float = 0.0  # for each day of waiting
    work: float = 1.0  # off for each doubling of GPUs x the seconds that it will likely run


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The rules.

    ``order``: who comes first, see ``order.ORDERS``; ``backfill_order``: of those that may go before ("": the same).
    ``reservations``: how many waiting jobs keep their place in time under EASY.
    ``hold_head``: a job that was promised a start stays first until it has it, and so does the time (SC20).
    ``all_that_end``: a job's place in time counts all that ends at its very moment; False, as in some published
    studies: the smaller first, and no more than it needs.
    ``patience``: seconds of waiting after which a job goes before all that have waited less, in order of waiting.
    ``predict``: orders that look at how long a job will run take the prediction from its user's history.
    ``assumed_walltime``: seconds that a job without walltime is taken to need.
    ``first_fit``: the first nodes by name, whatever switches they span; to compare with.
    ``max_starts``: so many jobs at most in one cycle.
    """

    order: str = "fcfs"
    backfill: Backfill = Backfill.EASY
    backfill_order: str = ""
    reservations: int = 1
    hold_head: bool = False
    all_that_end: bool = True
    patience: float | None = None
    predict: bool = False
    preempt: Preempt = Preempt.NEVER
    assumed_walltime: float = DAY
    first_fit: bool = False
    max_starts: int = 1_000_000
    weights: Weights = field(default_factory=Weights)

    @property
    def keeps_promises(self) -> bool:
        """Whether places in time have to be handed on from cycle to cycle (``Snapshot.promises``).

        The place of the first alone needs it not: what comes behind it respects it anyway.
        """
        more = self.backfill is Backfill.CONSERVATIVE or (
            self.backfill is Backfill.EASY and self.reservations > 1
        )
        return self.hold_head or more


NAMED: dict[str, Policy] = {
    "fcfs": Policy(backfill=Backfill.NONE),
    "easy": Policy(),
    "easy-sjf": Policy(backfill_order="sjf"),
    "conservative": Policy(backfill=Backfill.CONSERVATIVE),
    "fill": Policy(backfill=Backfill.FILL),
    "sjf": Policy(order="sjf"),
    "f1": Policy(order="f1", backfill_order="fcfs"),
    "wfp3": Policy(order="wfp3", backfill_order="fcfs"),
    "unicep": Policy(order="unicep"),
    "srsf": Policy(order="srsf"),
    "srsf-preempt": Policy(order="srsf", preempt=Preempt.ORDER),
}
"""Policies by name; all but fcfs and fill with EASY's reservation for the first job that waits, or more."""

SHIPPED = Policy(order="multifactor", predict=True, patience=7 * DAY)
"""What a cluster does unless its site says otherwise."""

NAMED["default"] = SHIPPED
