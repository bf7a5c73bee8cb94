"""A site's own policy: jobs that ask for few GPUs first, old GPUs for small jobs, and at most two big jobs of a user.

Installed beside hpcmesos (``pip install ./examples/plugin``), and switched on with

    qmgr -c "set server order_plugin = fewest-gpus"
    qmgr -c "set server rank_plugin = old-gpus-first"
    qmgr -c "set server limits_plugin = two-big-jobs"
"""

from __future__ import annotations

from collections.abc import Sequence

from hpcmesos.plugin import JobClass, NodeClass

HOUR = 3600.0
BIG = 16  # GPUs


def order(classes: Sequence[JobClass], now: float) -> list[float]:
    """Fewest GPUs first; an hour of waiting counts like one GPU less, so that big jobs come to their turn."""
    return [one.gpus - one.waited / HOUR for one in classes]


def rank(classes: Sequence[JobClass], nodes: Sequence[NodeClass], now: float) -> list[list[float]]:
    """Jobs on one node go to nodes with the feature "old" first, gangs to the others."""
    return [[float(("old" in node.features) != (one.nodes == 1)) for node in nodes] for one in classes]


def limits(classes: Sequence[JobClass], now: float) -> list[int | None]:
    """Of jobs of one class with 16 GPUs or more, two run at once; others as they fit."""
    return [2 if one.gpus >= BIG else None for one in classes]
