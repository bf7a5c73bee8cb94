"""Which GPUs of a node NVLink joins."""

from __future__ import annotations

from collections.abc import Sequence

from hpcmesos.model import NVLINK_QUALITY


def nvlink_islands(links: Sequence[Sequence[int]]) -> tuple[int | None, ...]:
    """For each GPU the number of its island, from 0 in the order of their first GPUs; None: it has no NVLink.

    ``links``: quality to each GPU of the node; rows that do not fit together say nothing. GPUs are in one island if
    NVLinks lead from one to the other, over others if need be.
    """
    count = len(links)
    found: list[int | None] = [None] * count
    if any(len(row) != count for row in links):
        return tuple(found)

    def joined(a: int) -> list[int]:
        return [b for b in range(count) if max(links[a][b], links[b][a]) > NVLINK_QUALITY]

    number = 0
    for first in range(count):
        if found[first] is not None or not joined(first):
            continue
        reached = [first]
        while reached:
            gpu = reached.pop()
            if found[gpu] is None:
                found[gpu] = number
                reached += joined(gpu)
        number += 1
    return tuple(found)
