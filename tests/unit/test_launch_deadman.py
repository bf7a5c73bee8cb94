"""The dead-man timer: it ends what it must and when it must, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from hpcmesos.launch.attempt import Attempt
from hpcmesos.launch.deadman import DeadMan
from hpcmesos.launch.order import Order


@dataclass
class Held:
    """An attempt as far as the timer looks at it."""

    silence: float | None
    phase: str = "running"
    orders: list[Order] = field(default_factory=list)

    @property
    def spec(self) -> dict[str, Any]:
        return {"silence": self.silence, "kill_delay": 30.0}

    def end(self, order: Order) -> None:
        self.orders.append(order)
        self.phase = "ending"


class Bench:
    def __init__(self, *held: Held) -> None:
        self.now = 100.0
        self.deadman = DeadMan("node1", lambda: cast("list[Attempt]", held), lambda: self.now)

    def at(self, now: float) -> None:
        self.now = now
        self.deadman.look()


def test_only_attempts_with_a_limit_end_and_each_at_its_own() -> None:
    short, longer, patient = Held(10), Held(60), Held(None)
    bench = Bench(short, longer, patient)
    bench.at(109.9)
    assert not short.orders
    bench.at(110.1)
    assert [(o.cause, o.culprit, o.message) for o in short.orders] == [
        ("NODE_LOST", "node1", "no leader was heard for 10 s")
    ]
    assert short.orders[0].kill_delay <= 5.0  # it has to be gone before the leader gives the node up
    assert not longer.orders
    bench.at(100000.0)
    assert len(longer.orders) == 1
    assert len(short.orders) == 1
    assert not patient.orders


def test_a_word_counts_from_when_we_sent_what_it_answers() -> None:
    held = Held(10)
    bench = Bench(held)
    bench.now = 130.0
    bench.deadman.contact(115.0)  # the answer lay in a buffer for 15 s
    bench.deadman.look()
    assert held.orders


def test_contact_winds_it_and_an_older_one_does_not_unwind_it() -> None:
    held = Held(10)
    bench = Bench(held)
    bench.now = 109.0
    bench.deadman.contact(108.0)
    bench.deadman.contact(101.0)
    bench.deadman.contact(10**9)  # nobody has heard us in the future
    bench.at(117.0)
    assert not held.orders
    bench.at(120.0)
    assert held.orders
