"""PMI-1 for the ranks of one node: who has left MPI open."""

from __future__ import annotations

from hpcmesos.launch.pmi import Local


def begun() -> Local:
    ranks = Local(range(2), 2, "space", "(vector,(0,1,2))")
    for rank in range(2):
        ranks.hear(rank, b"cmd=init pmi_version=1 pmi_subversion=1\n")
        ranks.hear(rank, f"cmd=put kvsname=space key=k{rank} value=v{rank}\ncmd=barrier_in\n".encode())
    puts = ranks.complete()
    assert puts == {"k0": "v0", "k1": "v1"}
    ranks.release(puts)
    for rank in range(2):
        assert b"value=v1" in ranks.hear(rank, b"cmd=get kvsname=space key=k1\n")
    return ranks


def test_a_rank_that_leaves_in_the_middle_leaves_it_open() -> None:
    ranks = begun()
    assert ranks.left_open(0)


def test_mpich_4_says_that_it_finalizes() -> None:
    ranks = begun()
    ranks.hear(0, b"cmd=finalize\n")
    assert [ranks.left_open(rank) for rank in range(2)] == [False, True]


def test_mpich_5_ends_mpi_with_a_barrier_and_says_more_only_at_exit() -> None:
    ranks = begun()
    for rank in range(2):
        ranks.hear(rank, b"cmd=barrier_in\n")
    ranks.release(ranks.complete() or {})
    assert [ranks.left_open(rank) for rank in range(2)] == [False, False]


def test_a_program_without_mpi_leaves_nothing_open() -> None:
    assert not Local([0], 1, "space", "").left_open(0)
