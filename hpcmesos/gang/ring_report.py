"""What is known of a ring: the order of its measurements, where it broke, and how it is told. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

INIT, TOKEN, MEASURE, DONE = "init", "token", "measure", "done"
"""Stages of a rank, in their order: it is in MPI_Init; waits for the token; has passed it on; has measured."""

_DOING = {INIT: "in MPI_Init", TOKEN: "waiting for the token", MEASURE: "measuring", DONE: "done"}


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank as the one who watches the ring knows it. ``latency`` in us, ``bandwidth`` in MB/s, to the right."""

    rank: int
    host: str
    gpus: tuple[str, ...] = ()
    stage: str | None = None  # None: it never reported
    waits_for: int | None = None
    latency: float | None = None
    bandwidth: float | None = None
    alive: bool = False  # it spoke after the time was over

    def __str__(self) -> str:
        gpus = f", {' '.join(self.gpus)}" if self.gpus else ""
        return f"rank {self.rank} ({self.host}{gpus})"


@dataclass(frozen=True, slots=True)
class Report:
    """``broken``: ranks at the break; ``culprits``: hosts that the job had better avoid, the likeliest first;
    ``waiting``: what each rank that was not done waited for when the time was over."""

    closed: bool
    message: str
    ranks: tuple[Rank, ...]
    broken: tuple[int, int] | None = None
    culprits: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Report:
        """Raises KeyError, TypeError or ValueError for what is no report."""
        ranks = tuple(Rank(**{**rank, "gpus": tuple(rank["gpus"])}) for rank in value["ranks"])
        broken = value["broken"] and (int(value["broken"][0]), int(value["broken"][1]))
        culprits, waiting = (tuple(map(str, value[key])) for key in ("culprits", "waiting"))
        return cls(bool(value["closed"]), str(value["message"]), ranks, broken, culprits, waiting)


def ranks_of(slots: int, gpus: int) -> int:
    """Ranks of a host: one for each GPU, for that is what has a path of its own to the network, but no more than slots;
    one on a host without GPUs, whose slots all share that path."""
    return max(1, min(slots, gpus))


def time_limit(ranks: int, patience: float) -> float:
    """Seconds within which a ring has to close; many ranks need longer to start."""
    return patience + 0.3 * ranks


def grace(ranks: int) -> float:
    """Seconds from the end of a rank's time to the end of the watcher's: it starts later, one of many much later."""
    return 2.0 + 0.1 * ranks


def phase(edge: int, size: int) -> int:
    """When rank ``edge`` and its right neighbour measure; in no phase does a rank have two partners."""
    return 2 if size % 2 and edge == size - 1 else edge % 2


def duties(rank: int, size: int) -> list[tuple[int, bool]]:
    """(partner, whether to begin) of the measurements of a rank, in their order; a rank alone has none."""
    if size < 2:
        return []
    left, right = (rank - 1) % size, (rank + 1) % size
    edges = [(phase(rank, size), right, True), (phase(left, size), left, False)]
    return [(partner, begins) for _, partner, begins in sorted(edges)]


def closed(ranks: Sequence[Rank]) -> Report:
    """The report of a ring whose ranks have all done their part; its text has microseconds and MB/s."""
    hosts = len({rank.host for rank in ranks})
    text = f"the ring closed: {_count(len(ranks), 'rank')} on {_count(hosts, 'node')}"
    timed = [rank for rank in ranks if rank.latency is not None and rank.bandwidth is not None]
    if timed:
        slowest = min(timed, key=lambda rank: rank.bandwidth or 0.0)
        latencies = sorted(rank.latency or 0.0 for rank in timed)
        bandwidths = sorted(rank.bandwidth or 0.0 for rank in timed)
        text += f", {_span(latencies, 1)} us, {_span(bandwidths, 0)} MB/s"
        text += f", slowest from {slowest} to {ranks[(slowest.rank + 1) % len(ranks)]}"
    return Report(True, text, tuple(ranks))


def failed(ranks: Sequence[Rank], rank: int, text: str) -> Report:
    """The report of a ring one of whose ranks ended by itself, as ``text`` says."""
    left = (rank - 1) % len(ranks)
    message = f"the ring broke between {ranks[left]} and {ranks[rank]}: {text}"
    return Report(False, message, tuple(ranks), (left, rank), (ranks[rank].host,))


def cut(ranks: Sequence[Rank], rank: int, text: str) -> Report:
    """The report of a ring one of whose ranks cannot reach the host of its right neighbour."""
    before, after = ranks[rank], ranks[(rank + 1) % len(ranks)]
    message = f"the ring broke between {before} and {after}: rank {rank} cannot reach {after.host}: {text}"
    return Report(False, message, tuple(ranks), (rank, after.rank), (after.host, before.host))


def lost(ranks: Sequence[Rank], culprits: Iterable[str], text: str) -> Report:
    """The report of a ring that could not go on, not for what a rank did."""
    return Report(False, f"the ring broke: {text}", tuple(ranks), None, tuple(culprits))


def late(ranks: Sequence[Rank], seconds: float) -> Report:
    """The report of a ring that did not close in time.

    A rank that is silent is at fault. If none is, the link is between the rank that waits and the one it waits for, and
    neither end can be told from the other.
    """
    if all(rank.stage == DONE for rank in ranks):
        return closed(ranks)
    start = f"the ring did not close within {seconds:g} s"
    waits = tuple(_waiting(ranks))
    absent = [rank for rank in ranks if rank.stage is None]
    silent = [rank for rank in ranks if rank.stage not in (None, DONE) and not rank.alive]
    if suspects := absent or silent:
        first = suspects[0]
        left = (first.rank - 1) % len(ranks)
        told = [f"{rank} {_silence(rank)}" for rank in suspects]
        message = f"{start}: it broke between {ranks[left]} and {first}; {_few(told)}"
        culprits = tuple(dict.fromkeys(rank.host for rank in suspects))
        return Report(False, message, tuple(ranks), (left, first.rank), culprits, waits)
    edge = _waiting_edge(ranks)
    if edge is None:
        message = f"{start}: every rank is alive, and none has left MPI_Init"
        return Report(False, message, tuple(ranks), waiting=waits)
    before, after = ranks[edge[0]], ranks[edge[1]]
    waiter = after if after.waits_for == before.rank else before
    message = f"{start}: it broke between {before} and {after}; rank {waiter.rank} waits for rank {waiter.waits_for}"
    culprits = tuple(dict.fromkeys((after.host, before.host)))
    return Report(False, message, tuple(ranks), edge, culprits, waits)


def _waiting_edge(ranks: Sequence[Rank]) -> tuple[int, int] | None:
    """The left and the right end of the link at which the ring stands still."""
    size = len(ranks)
    for rank in [*ranks[1:], ranks[0]]:  # the way of the token
        if rank.stage == TOKEN:
            return (rank.rank - 1) % size, rank.rank
    for rank in ranks:
        other = rank.waits_for
        if rank.stage == MEASURE and other is not None and ranks[other].waits_for in (rank.rank, None):
            return (rank.rank, other) if other == (rank.rank + 1) % size else (other, rank.rank)
    return None


def _silence(rank: Rank) -> str:
    return "has not reported" if rank.stage is None else f"fell silent {_DOING[rank.stage]}"


def _waiting(ranks: Sequence[Rank]) -> Iterator[str]:
    for rank in ranks:
        if rank.stage != DONE and not rank.alive:
            yield f"{rank} {_silence(rank)}"
        elif rank.stage == INIT:
            yield f"{rank} waits for the others in MPI_Init"
        elif rank.waits_for is not None:
            yield f"{rank} waits for {ranks[rank.waits_for]}"


def table(report: Report) -> str:
    """For people: a line a rank, and the outcome."""
    rows = [("rank", "host", "GPUs", "to", "latency us", "MB/s", "")]
    size = len(report.ranks)
    for rank in report.ranks:
        state = "" if rank.stage == DONE else "not reported" if rank.stage is None else _DOING[rank.stage]
        figures = (_figure(rank.latency, 1), _figure(rank.bandwidth, 0))
        gpus = " ".join(rank.gpus) or "-"
        rows.append((str(rank.rank), rank.host, gpus, str((rank.rank + 1) % size), *figures, state))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "".join(f"{line}\n" for line in [*lines, *report.waiting, report.message])


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _span(values: Sequence[float], digits: int) -> str:
    low, high = (f"{value:.{digits}f}" for value in (values[0], values[-1]))
    return low if low == high else f"{low} to {high}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _few(texts: Sequence[str]) -> str:
    more = f", and {len(texts) - 3} more" if len(texts) > 3 else ""
    return ", ".join(texts[:3]) + more
