"""`hpcmesos run`: its command line and where it puts ranks."""

from __future__ import annotations

import pytest

from hpcmesos.launch import run

MEMBERS = [{"slots": 4, "gpus": 4}, {"slots": 2, "gpus": 8}, {"slots": 4, "gpus": 0}]


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ("a", [4, 2, 4]),
        ("-n 1 a", [1, 0, 0]),
        ("-n 5 a", [4, 1, 0]),
        ("-n 10 a", [4, 2, 4]),
        ("-np=3 --label a -n 5", [3, 0, 0]),
        ("-n 12 --oversubscribe a", [6, 2, 4]),
        ("-n 25 --oversubscribe a", [12, 5, 8]),
        ("--gpus-per-rank 2 a", [2, 2, 0]),
        ("--gpus-per-rank 4 -n 3 -- a", [1, 2, 0]),
    ],
)
def test_placement(line: str, counts: list[int]) -> None:
    assert run.place(MEMBERS, run.parse(line.split())) == counts


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("-n 11 a", "11 ranks, but the job has 10 slots; --oversubscribe allows that"),
        ("-n 5 --gpus-per-rank 2 a", "5 ranks of 2 GPUs do not fit: the job has room for 4"),
        ("--gpus-per-rank 9 a", "1 ranks of 9 GPUs do not fit: the job has room for 0"),
        ("-n 0 a", "-n takes a number above 0, not '0'"),
        ("-n", "-n takes a number above 0, not ''"),
        ("--why a", "no option --why"),
        ("-n 3", "a program is needed"),
    ],
)
def test_refusals(line: str, reason: str) -> None:
    with pytest.raises(run.Refused) as refused:
        run.place(MEMBERS, run.parse(line.split()))
    assert str(refused.value) == reason
