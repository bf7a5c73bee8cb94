"""Where a ring broke, and how that is told."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hpcmesos.gang import ring_report
from hpcmesos.gang.ring_report import DONE, INIT, MEASURE, TOKEN, Rank


def ring(*stages: str | None, alive: bool = True) -> list[Rank]:
    """A rank a node, each waiting as its stage says."""
    size = len(stages)
    return [
        Rank(
            rank,
            f"node{rank + 1}",
            (f"GPU-{rank}",),
            stage,
            (rank - 1) % size if stage == TOKEN else None,
            alive=alive and stage is not None,
        )
        for rank, stage in enumerate(stages)
    ]


def test_one_rank_a_gpu_up_to_the_slots_else_one_a_node() -> None:
    assert [ring_report.ranks_of(slots, gpus) for slots, gpus in ((8, 4), (2, 4), (8, 0), (0, 0))] == [
        4,
        2,
        1,
        1,
    ]


def test_a_closed_ring_tells_its_slowest_link() -> None:
    ranks = [
        replace(rank, latency=1.0 + rank.rank, bandwidth=300.0 - 100 * rank.rank)
        for rank in ring(DONE, DONE, DONE)
    ]
    report = ring_report.closed(ranks)
    assert report.closed
    assert report.message == (
        "the ring closed: 3 ranks on 3 nodes, 1.0 to 3.0 us, 100 to 300 MB/s, "
        "slowest from rank 2 (node3, GPU-2) to rank 0 (node1, GPU-0)"
    )


def test_a_rank_that_never_reported_is_the_culprit() -> None:
    report = ring_report.late(ring(INIT, INIT, None, INIT), 21.2)
    assert not report.closed
    assert (report.broken, report.culprits) == ((1, 2), ("node3",))
    assert report.message == (
        "the ring did not close within 21.2 s: it broke between rank 1 (node2, GPU-1) and rank 2 (node3, GPU-2); "
        "rank 2 (node3, GPU-2) has not reported"
    )


def test_a_host_out_of_reach_is_known_before_mpi_begins() -> None:
    report = ring_report.cut(ring(INIT, INIT, INIT), 2, "timed out")
    assert (report.closed, report.broken, report.culprits) == (False, (2, 0), ("node1", "node3"))
    assert report.message == (
        "the ring broke between rank 2 (node3, GPU-2) and rank 0 (node1, GPU-0): "
        "rank 2 cannot reach node1: timed out"
    )


@pytest.mark.parametrize(
    ("stages", "silent"), [((INIT, INIT, INIT), 0), ((TOKEN, TOKEN, TOKEN), 1), ((DONE, MEASURE, MEASURE), 2)]
)
def test_a_rank_that_fell_silent_is_the_culprit(stages: tuple[str, ...], silent: int) -> None:
    ranks = ring(*stages)
    ranks[silent] = replace(ranks[silent], alive=False)
    report = ring_report.late(ranks, 20.9)
    assert report.culprits == (f"node{silent + 1}",)
    assert report.broken == ((silent - 1) % 3, silent)
    assert "fell silent" in report.message


def test_where_all_are_alive_both_ends_of_the_link_are_named() -> None:
    report = ring_report.late(ring(TOKEN, MEASURE, TOKEN, TOKEN), 21)
    assert (report.broken, report.culprits) == ((1, 2), ("node3", "node2"))
    assert report.message.endswith("rank 2 waits for rank 1")
    ranks = ring(DONE, MEASURE, MEASURE)
    ranks[1:] = [replace(ranks[1], waits_for=2), replace(ranks[2], waits_for=1)]
    assert ring_report.late(ranks, 21).broken == (1, 2)


def test_nobody_is_blamed_when_none_has_left_mpi_init() -> None:
    report = ring_report.late(ring(INIT, INIT), 20.6)
    assert (report.broken, report.culprits) == (None, ())


def test_the_table_says_who_waits_for_whom() -> None:
    ranks = ring(TOKEN, None, TOKEN)
    text = ring_report.table(ring_report.late(ranks, 20.9))
    assert text.splitlines()[:4] == [
        "rank  host   GPUs   to  latency us  MB/s",
        "0     node1  GPU-0  1   -           -     waiting for the token",
        "1     node2  GPU-1  2   -           -     not reported",
        "2     node3  GPU-2  0   -           -     waiting for the token",
    ]
    assert "rank 2 (node3, GPU-2) waits for rank 1 (node2, GPU-1)" in text


def test_a_report_survives_json() -> None:
    for report in (ring_report.late(ring(TOKEN, None), 1), ring_report.closed(ring(DONE, DONE))):
        assert ring_report.Report.from_json(json.loads(json.dumps(report.to_json()))) == report
