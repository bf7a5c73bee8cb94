"""What a site's own policy is written against: three kinds of plug-ins, each a callable behind an entry point.

=================== ================ ==============================================================================
entry point group   type             answers
=================== ================ ==============================================================================
``hpcmesos.order``  :class:`Order`   a key for each class of waiting jobs: smaller keys go first
``hpcmesos.rank``   :class:`Rank`    for each class a key for each class of nodes: smaller keys are filled first
``hpcmesos.limits`` :class:`Limits`  how many jobs of each class may run at once; None: as many as fit
=================== ================ ==============================================================================

``qmgr -c "set server order_plugin = NAME"`` (``rank_plugin``, ``limits_plugin``) switches one on. It runs in a
process of its own (``docs/scheduling.md``). Keys are finite numbers. The same classes should get the same answer: it is
used until the next one comes. Standard library only, for sites import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

GROUPS = {"order": "hpcmesos.order", "rank": "hpcmesos.rank", "limits": "hpcmesos.limits"}
"""Entry point groups by kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobClass:
    """Jobs that are alike for the scheduler. Two are equal when what they ask for, and for whom, is.

    ``nodes``: pieces asked for, each on a node of its own unless placed freely; ``gpus``, ``cpus``, ``mem`` (bytes): in
    all. ``walltime``: seconds, None: none was named. The rest is how things stand now, and makes no other class.
    """

    queue: str
    project: str
    user: str
    priority: int  # qsub -p
    nodes: int
    gpus: int
    cpus: int
    mem: int
    walltime: float | None
    features: tuple[str, ...]
    waiting: int = field(default=0, compare=False)  # jobs
    waited: float = field(default=0.0, compare=False)  # seconds, of the one that has waited longest
    overuse: float = field(default=0.0, compare=False)  # how often the account has used what is due to it


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeClass:
    """Nodes of one make: ``gpus``, ``cpus``, ``mem`` (bytes) of each, ``features`` but for ``switch=``."""

    gpus: int
    cpus: int
    mem: int
    features: tuple[str, ...]
    nodes: int = field(default=0, compare=False)


class Order(Protocol):
    """Who goes first. Levels of queues and the starvation bound come before the keys, the built-in order after them."""

    def __call__(self, classes: Sequence[JobClass], now: float) -> Sequence[float]:
        """``now``: epoch seconds. One key for each class."""
        ...


class Rank(Protocol):
    """Which nodes are filled first. Where a gang fits at all is not the plug-in's to say."""

    def __call__(
        self, classes: Sequence[JobClass], nodes: Sequence[NodeClass], now: float
    ) -> Sequence[Sequence[float]]:
        """For each class of jobs one key for each class of nodes."""
        ...


class Limits(Protocol):
    """How much runs at once, beside the limits that qmgr sets."""

    def __call__(self, classes: Sequence[JobClass], now: float) -> Sequence[int | None]:
        """For each class the most jobs of it that run at once, from 0; None: no limit."""
        ...
