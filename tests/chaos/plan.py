"""What a chaos run does: its jobs and its faults, all from one seed. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LONG = 60.0
"""Seconds that a long job takes at least."""
_GANGS, _LONG_ONES, _FAILING, _RERUNNABLE, _WITH_GPUS = 0.34, 0.21, 0.2, 0.9, 0.2
_LAUNCHERS = ("pbsdsh", "hpcmesos run", "pbsdsh", "mpiexec")
_CODES = (1, 2, 3, 7, 42, 100, 126, 255)
_SETTLE = 5.0  # s until the first fault, and before the end for the last

CONTROL = ("leader-kill", "leader-stop", "standby-kill", "master-kill", "postgres-restart")
"""Faults of the control plane; one at a time."""
NODES = ("agent-kill", "agent-stop", "shepherd-kill")
LINKS = ("link-cut", "host-cut")

_SECONDS = {  # how long a fault lasts; agents and masters that were killed are started again then
    "leader-kill": (0.0, 0.0),
    "leader-stop": (6.0, 20.0),
    "master-kill": (0.0, 6.0),
    "standby-kill": (0.0, 0.0),
    "postgres-restart": (0.0, 8.0),
    "agent-kill": (0.0, 20.0),
    "agent-stop": (16.0, 30.0),
    "shepherd-kill": (0.0, 0.0),
    "link-cut": (5.0, 45.0),
    "host-cut": (5.0, 45.0),
}


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """``at``: seconds after the begin; ``slots`` and ``gpus``: on each of its ``nodes``; ``code``: its exit code."""

    key: str
    at: float
    nodes: int
    slots: int
    gpus: int
    seconds: float
    code: int
    rerunnable: bool
    launcher: str  # empty: no parallel program

    @property
    def gang(self) -> bool:
        return self.nodes > 1

    @property
    def long(self) -> bool:
        return self.seconds > LONG


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """``seconds``: from the fault to its repair; ``choice``: in [0, 1), chooses among what there is then."""

    kind: str
    at: float
    seconds: float
    choice: float


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    seconds: float
    jobs: tuple[PlannedJob, ...]
    faults: tuple[PlannedFault, ...]


def make(
    seed: int, seconds: float, jobs: int, faults: int, kinds: Sequence[str], largest_gang: int = 3
) -> Plan:
    """Jobs come evenly over ``seconds``, the faults of each kind equally often."""
    chance = random.Random(seed)
    return Plan(
        seed,
        seconds,
        tuple(_jobs(chance, seconds, jobs, largest_gang)),
        tuple(sorted(_faults(chance, seconds, faults, kinds), key=lambda fault: fault.at)),
    )


def _deck(chance: random.Random, size: int, share: float) -> list[bool]:
    """``share`` of them True, in a random order: exact, where dice would only come near."""
    deck = [index < round(size * share + 0.49) for index in range(size)]
    chance.shuffle(deck)
    return deck


def _jobs(chance: random.Random, seconds: float, count: int, largest: int) -> Iterator[PlannedJob]:
    decks = (_GANGS, _LONG_ONES, _FAILING, _RERUNNABLE, _WITH_GPUS)
    traits = zip(*(_deck(chance, count, share) for share in decks), strict=True)
    times = sorted(chance.uniform(0, seconds) for _ in range(count))
    for index, (at, (gang, long, failing, rerunnable, gpus)) in enumerate(zip(times, traits, strict=True)):
        yield PlannedJob(
            key=f"j{index}",
            at=at,
            nodes=chance.randint(2, largest) if gang else 1,
            slots=1,
            gpus=int(gpus),
            seconds=chance.uniform(LONG + 1, LONG + 15) if long else chance.choice((0.0, 0.0, 1.0, 3.0, 8.0)),
            code=chance.choice(_CODES) if failing else 0,
            rerunnable=rerunnable,
            launcher=chance.choice(_LAUNCHERS) if gang else "",
        )


def _faults(
    chance: random.Random, seconds: float, count: int, kinds: Sequence[str]
) -> Iterator[PlannedFault]:
    each = -(-count // len(kinds))
    deck = [kind for kind in kinds for _ in range(each)]
    chance.shuffle(deck)
    step = (seconds - 2 * _SETTLE) / len(deck)
    for index, kind in enumerate(deck):
        low, high = _SECONDS[kind]
        at = _SETTLE + step * (index + chance.random())
        yield PlannedFault(kind, at, chance.uniform(low, high), chance.random())
