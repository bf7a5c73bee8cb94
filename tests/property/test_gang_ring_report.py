"""The order of a ring's measurements, and verdicts over any state of its ranks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hpcmesos.gang import ring_report
from hpcmesos.gang.ring_report import DONE, INIT, MEASURE, TOKEN, Rank

STAGES = st.sampled_from([None, INIT, TOKEN, MEASURE, DONE])


@given(st.integers(1, 200))
def test_every_link_is_measured_once_and_nobody_waits_for_ever(size: int) -> None:
    """Ranks that do their duties in order, two at a time, come to the end: a rendezvous never locks up."""
    left = {rank: ring_report.duties(rank, size) for rank in range(size)}
    measured = set()
    while any(left.values()):
        before = len(measured)
        for rank in range(size):
            if left[rank] and left[rank][0][1]:
                partner = left[rank][0][0]
                if left[partner] and left[partner][0] == (rank, False):
                    del left[rank][0], left[partner][0]
                    measured.add((rank, partner))
        assert len(measured) > before, "deadlock"
    assert measured == ({(rank, (rank + 1) % size) for rank in range(size)} if size > 1 else set())


@st.composite
def rings(draw: st.DrawFn) -> list[Rank]:
    size = draw(st.integers(1, 12))
    ranks = []
    for rank in range(size):
        stage = draw(STAGES)
        near = draw(st.sampled_from([(rank - 1) % size, (rank + 1) % size]))
        waits_for = (rank - 1) % size if stage == TOKEN else near if stage == MEASURE else None
        alive = stage is not None and draw(st.booleans())
        ranks.append(Rank(rank, f"node{draw(st.integers(1, 4))}", (), stage, waits_for, alive=alive))
    return ranks


@given(rings())
def test_a_verdict_names_neighbours_and_only_hosts_of_the_ring(ranks: list[Rank]) -> None:
    report = ring_report.late(ranks, 20)
    assert report.closed == all(rank.stage == DONE for rank in ranks)
    assert set(report.culprits) <= {rank.host for rank in ranks}
    if report.broken:
        first, second = report.broken
        assert second == (first + 1) % len(ranks)
        assert str(ranks[first]) in report.message and str(ranks[second]) in report.message
    assert ring_report.table(report).count("\n") >= len(ranks) + 2


@given(rings())
def test_who_is_done_or_has_spoken_is_not_blamed_while_another_is_silent(ranks: list[Rank]) -> None:
    silent = {rank.host for rank in ranks if rank.stage is None} or {
        rank.host for rank in ranks if rank.stage != DONE and not rank.alive
    }
    if silent:
        assert set(ring_report.late(ranks, 20).culprits) == silent
