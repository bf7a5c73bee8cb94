"""Where, of all places that fit: the choice of nodes, and of the GPUs inside a node.

Best fit keeps big holes: fewest free GPUs first, then fewest free CPUs, then least free memory. So jobs without GPUs
stay off GPU nodes while they can, and small jobs fill nodes already begun. Several nodes come from as few switches
as possible. Ties go to the name that is first in natural order.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np

from hpcmesos.gang.room import Ints, Room
from hpcmesos.gang.snapshot import NodeView

_MEM_UNIT = 22  # bits: memory counts in steps of 4 MiB
_MEM_BITS, _CPU_BITS = 28, 16
_EXACT_SETS = 1_000

Links = tuple[tuple[int, ...], ...]


def prefer(room: Room, rows: Ints, copies: Ints, pieces: int) -> Ints:
    """The rows, best first (see ``feasible.Prefer``); with one piece to place only the best."""
    if len(rows) < 2:
        return rows
    fit = _fit(room, rows)
    if pieces == 1:
        return rows[[fit.argmin()]]
    switch = room.site.switch[rows]
    if int(switch.min()) == int(switch.max()):
        return rows[np.lexsort((fit, -copies))]
    return rows[np.lexsort((fit, _switch_rank(switch, copies, pieces), -copies))]


def _fit(room: Room, rows: Ints) -> Ints:
    """Lower is tighter; one number, for sorting by one key is several times faster than by three."""
    cpus = np.minimum(room.cpus[rows], (1 << _CPU_BITS) - 1)
    mem = np.minimum(room.mem[rows] >> _MEM_UNIT, (1 << _MEM_BITS) - 1)
    key: Ints = (((room.gpus[rows] << _CPU_BITS) | cpus) << _MEM_BITS) | mem
    return key


def _switch_rank(switch: Ints, copies: Ints, pieces: int) -> Ints:
    """Ranks rows by their switch: first the tightest switch that holds all pieces, then the others, biggest first."""
    holds = np.bincount(switch, weights=copies).astype(np.int64)
    order = np.lexsort((np.arange(len(holds)), np.where(holds >= pieces, holds, -holds), holds < pieces))
    rank = np.empty(len(holds), np.int64)
    rank[order] = np.arange(len(holds))
    ranks: Ints = rank[switch]
    return ranks


def choose_gpus(node: NodeView, free: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Which ``count`` of the free GPUs of a node to give, as positions in ``node.gpus``, ascending.

    The set with the best links between its members, where links are unknown the one on the fewest NUMA nodes; among
    equals the one that leaves the best set behind, then the lowest positions.
    """
    if count in (0, len(free)):
        return free[:count]
    numa = tuple(gpu.numa for gpu in node.gpus)
    if node.links:
        return _best_set(node.links, free, count)
    if len(set(numa)) > 1:
        return _best_set(_numa_links(numa), free, count)
    return free[:count]


@lru_cache(maxsize=256)
def _numa_links(numa: tuple[int | None, ...]) -> Links:
    return tuple(tuple(int(a == b and a is not None) for b in numa) for a in numa)


@lru_cache(maxsize=4096)
def _best_set(links: Links, free: tuple[int, ...], count: int) -> tuple[int, ...]:
    def worth(chosen: tuple[int, ...]) -> int:
        return sum(links[a][b] + links[b][a] for a, b in combinations(chosen, 2))

    def key(chosen: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        left = tuple(gpu for gpu in free if gpu not in chosen)
        return -worth(chosen), -worth(left), chosen

    if comb(len(free), count) <= _EXACT_SETS:
        return min(combinations(free, count), key=key)
    return min((_grown(links, free, count, seed) for seed in free), key=key)


def _grown(links: Links, free: tuple[int, ...], count: int, seed: int) -> tuple[int, ...]:
    """A good set of many GPUs: from ``seed``, always the one best linked to those in, then to those still out."""

    def linked(gpu: int, others: list[int]) -> int:
        return sum(links[gpu][other] + links[other][gpu] for other in others if other != gpu)

    chosen, rest = [seed], [gpu for gpu in free if gpu != seed]
    while len(chosen) < count:
        best = min(rest, key=lambda gpu: (-linked(gpu, chosen), -linked(gpu, rest), gpu))
        chosen.append(best)
        rest.remove(best)
    return tuple(sorted(chosen))
