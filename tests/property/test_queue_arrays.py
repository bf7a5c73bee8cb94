"""Ranges of array indexes against sets of numbers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hpcmesos.pbs.arrays import parse_array
from hpcmesos.queue import arrays
from hpcmesos.queue.arrays import ArraySpec, Ranges


def numbers(ranges: Ranges) -> set[int]:
    return {number for start, stop in ranges for number in range(start, stop)}


pieces = st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda pair: (pair[0], sum(pair)))
some = st.lists(pieces, max_size=6).map(arrays.normal)


@st.composite
def specs(draw: st.DrawFn) -> ArraySpec:
    ranges, at = [], draw(st.integers(0, 3))
    for length, step, gap in draw(
        st.lists(st.tuples(st.integers(0, 15), st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=4)
    ):
        last = at + length - length % step
        ranges.append((at, last, step if last > at else 1))
        at = last + gap
    return ArraySpec(tuple(ranges))


def indices(spec: ArraySpec) -> set[int]:
    return {index for first, last, step in spec.ranges for index in range(first, last + 1, step)}


@given(st.lists(pieces, max_size=8))
def test_normal_ranges_are_apart_and_ascending(given_: list[tuple[int, int]]) -> None:
    found = arrays.normal(given_)
    assert numbers(found) == numbers(tuple(given_))
    assert all(start < stop for start, stop in found)
    assert all(before[1] < after[0] for before, after in pairwise(found))


@given(some, some)
def test_ranges_are_sets(one: Ranges, other: Ranges) -> None:
    a, b = numbers(one), numbers(other)
    for found, wanted in (
        (arrays.union(one, other), a | b),
        (arrays.subtract(one, other), a - b),
        (arrays.intersect(one, other), a & b),
    ):
        assert numbers(found) == wanted
        assert arrays.normal(found) == found


@given(specs(), some)
def test_members_are_the_indices_that_lie_in_the_ranges(spec: ArraySpec, ranges: Ranges) -> None:
    wanted = sorted(indices(spec) & numbers(ranges))
    assert list(spec.members(ranges)) == wanted
    assert spec.count(ranges) == len(wanted)
    assert spec.size == spec.count(spec.hull) == len(indices(spec))
    assert all((index in spec) == (index in indices(spec)) for index in range(90))


@given(specs(), some, st.integers(0, 10))
def test_the_lowest_are_taken(spec: ArraySpec, ranges: Ranges, number: int) -> None:
    taken, left = spec.take(ranges, number)
    before = list(spec.members(ranges))
    assert taken == before[:number]
    assert list(spec.members(left)) == before[number:]


@given(specs(), some)
def test_what_is_written_names_the_same_members(spec: ArraySpec, ranges: Ranges) -> None:
    text = spec.text(ranges)
    members = set(spec.members(ranges))
    assert (indices(parse_array(text)) if text != "-" else set()) == members
