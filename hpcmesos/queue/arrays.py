"""The indexes of arrays: what was asked for, and ranges of it that wait, or were deleted. Pure.

A range is half-open. The members of ranges are those of their numbers that the array's request names: with steps of 2,
``((1, 8),)`` has the members 1, 3, 5, 7, so that an array of a million elements is one range whatever its step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

Ranges: TypeAlias = tuple[tuple[int, int], ...]
"""Half-open, ascending, apart from each other: ((0, 10), (20, 21))."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """The indices of an array: inclusive ``(first, last, step)`` ranges, sorted, without overlap."""

    ranges: tuple[tuple[int, int, int], ...]
    limit: int | None = None  # elements that may run at once; None: no limit

    @property
    def size(self) -> int:
        return sum((last - first) // step + 1 for first, last, step in self.ranges)

    @property
    def hull(self) -> Ranges:
        """Ranges that have exactly these indices as their members."""
        return normal((first, last + 1) for first, last, _ in self.ranges)

    def __contains__(self, index: int) -> bool:
        return any(
            first <= index <= last and (index - first) % step == 0 for first, last, step in self.ranges
        )

    def __str__(self) -> str:
        ranges = ",".join(_range_text(*piece) for piece in self.ranges)
        return ranges if self.limit is None else f"{ranges}%{self.limit}"

    def members(self, ranges: Ranges) -> Iterator[int]:
        """The indices in ``ranges``, ascending."""
        for progression in self._progressions(ranges):
            yield from progression

    def count(self, ranges: Ranges) -> int:
        return sum(len(progression) for progression in self._progressions(ranges))

    def take(self, ranges: Ranges, number: int) -> tuple[list[int], Ranges]:
        """The lowest members, at most ``number``, and the ranges without them."""
        taken = list(islice(self.members(ranges), number))
        return taken, (subtract(ranges, ((0, taken[-1] + 1),)) if taken else ranges)

    def text(self, ranges: Ranges) -> str:
        """The members as users write them; ``-`` for none."""
        return ",".join(_range_text(p[0], p[-1], p.step) for p in self._progressions(ranges)) or "-"

    def _progressions(self, ranges: Ranges) -> Iterator[range]:
        at = 0
        for first, last, step in self.ranges:
            while at and ranges[at - 1][1] > first:
                at -= 1  # one range may span several pieces
            while at < len(ranges) and ranges[at][0] <= last:
                start, stop = ranges[at]
                low = first + max(0, -(-(start - first) // step)) * step
                if found := range(low, min(last + 1, stop), step):
                    yield found
                at += 1


def normal(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Sorted, without empty ones, those that touch joined: as PostgreSQL writes a multirange."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if start >= stop:
            continue
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)


def union(one: Ranges, other: Ranges) -> Ranges:
    return normal((*one, *other))


def subtract(ranges: Ranges, gone: Ranges) -> Ranges:
    """Those numbers of ``ranges`` that are not in ``gone``."""
    left: list[tuple[int, int]] = []
    at = 0
    for start, stop in ranges:
        while at < len(gone) and gone[at][1] <= start:
            at += 1
        low, here = start, at
        while here < len(gone) and gone[here][0] < stop:
            if low < gone[here][0]:
                left.append((low, gone[here][0]))
            low = max(low, gone[here][1])
            here += 1
        if low < stop:
            left.append((low, stop))
    return tuple(left)


def intersect(one: Ranges, other: Ranges) -> Ranges:
    return subtract(one, subtract(one, other))


def contains(ranges: Ranges, index: int) -> bool:
    return any(start <= index < stop for start, stop in ranges)


def of(indexes: Iterable[int]) -> Ranges:
    """The ranges with exactly these numbers."""
    return normal((index, index + 1) for index in indexes)


def _range_text(first: int, last: int, step: int) -> str:
    if first == last:
        return str(first)
    return f"{first}-{last}" if step == 1 else f"{first}-{last}:{step}"
