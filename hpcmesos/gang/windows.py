"""What is kept for advance reservations, for maintenance, and because nodes go away."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf

import numpy as np

from hpcmesos.gang.backfill import Block
from hpcmesos.gang.room import Ints, Mask
from hpcmesos.gang.snapshot import JobView, Window
from hpcmesos.gang.tables import NodeTable
from hpcmesos.model import NodeName


def closed_to(job: JobView, windows: Sequence[Window], now: float) -> tuple[Window, ...]:
    """The windows, not yet over, that the job has to keep out of."""
    return tuple(
        window
        for window in windows
        if window.ends_at > now and job.user not in window.users and job.queue not in window.queues
    )


def blocks(nodes: NodeTable, windows: Iterable[Window]) -> list[Block]:
    """Whole nodes, for as long as each window lasts."""
    return [
        Block(window.name, window.starts_at, window.ends_at, _all_of(nodes, window.nodes), window=True)
        for window in windows
    ]


def departures(nodes: NodeTable) -> list[Block]:
    """Nodes that go away for good."""
    return [
        Block(f"the end of {node.name}", node.ends_at, inf, _all_of(nodes, (node.name,)), window=True)
        for node in nodes.site.nodes
        if node.ends_at is not None
    ]


def closed_now(nodes: NodeTable, held: Iterable[Block], now: float) -> Mask:
    """The rows that are in such a block at this moment."""
    mask = np.zeros(len(nodes), np.bool_)
    for block in held:
        if block.starts <= now < block.ends:
            mask[block.amounts[:, 0]] = True
    return mask


def _all_of(nodes: NodeTable, names: Iterable[NodeName]) -> Ints:
    rows = np.array(sorted(nodes.site.rows[name] for name in names if name in nodes.site.rows), np.int64)
    whole = nodes.installed
    return np.stack([rows, whole.cpus[rows], whole.mem[rows], whole.gpus[rows]], axis=1)
