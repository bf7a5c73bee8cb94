"""Which GPUs NVLink joins."""

from __future__ import annotations

import pytest

from hpcmesos.gang.islands import nvlink_islands

FAR, NEAR, LINK = 1, 6, 12


@pytest.mark.parametrize(
    ("links", "islands"),
    [
        ((), ()),
        (((0,),), (None,)),
        (((0, NEAR), (NEAR, 0)), (None, None)),
        (((0, LINK), (LINK, 0)), (0, 0)),
        (((0, LINK), (0, 0)), (0, 0)),
        (((0, LINK, 0), (LINK, 0, LINK), (0, LINK, 0)), (0, 0, 0)),
        (
            ((0, FAR, LINK, FAR), (FAR, 0, FAR, LINK), (LINK, FAR, 0, FAR), (FAR, LINK, FAR, 0)),
            (0, 1, 0, 1),
        ),
        (((0, FAR, FAR), (FAR, 0, LINK), (FAR, LINK, 0)), (None, 0, 0)),
        (((0, LINK), (LINK, 0, 0)), (None, None)),
        (((), ()), (None, None)),
    ],
)
def test_islands(links: tuple[tuple[int, ...], ...], islands: tuple[int | None, ...]) -> None:
    assert nvlink_islands(links) == islands
