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

from hpcmesos.gang.feasible import Prefer
from hpcmesos.gang.room import Floats, Ints, Room, Site
from hpcmesos.gang.snapshot import NodeView

_MEM_UNIT = 22  # bits: memory counts in steps of 4 MiB
_MEM_BITS, _CPU_BITS = 28, 16
_EXACT_SETS = 1_000

Links = tuple[tuple[int, ...], ...]


def prefer(room: Room, rows: Ints, copies: Ints, pieces: int) -> Ints:
    """The rows, best first (see ``feasible.Prefer``); with one piece to place only the best."""
    if len(rows) < 2:
        return rows
    tight = fit(room, rows)
    if pieces == 1:
        return rows[[tight.argmin()]]
    if int(room.site.switch[rows].min()) == int(room.site.switch[rows].max()):
        return rows[np.lexsort((tight, -copies))]
    return rows[np.lexsort((tight, _switch_rank(room.site, rows, copies, pieces), -copies))]


def first_fit(room: Room, rows: Ints, copies: Ints, pieces: int) -> Ints:
    """The first rows that do, by name: what the others are measured by."""
    return rows


def keyed(keys: Floats, prefer: Prefer) -> Prefer:
    """As ``prefer``, on the rows of the lowest keys that hold all pieces; the others come after them.

    ``keys``: one for each row of the site.
    """

    def preferred(room: Room, rows: Ints, copies: Ints, pieces: int) -> Ints:
        if len(rows) < 2:
            return rows
        of = keys[rows]
        by_key = np.argsort(of, kind="stable")
        held = np.cumsum(copies[by_key])
        enough = min(int(np.searchsorted(held, pieces)), len(rows) - 1)
        inside = of <= of[by_key[enough]]
        first = prefer(room, rows[inside], copies[inside], pieces)
        if pieces == 1 or inside.all():
            return first
        rest: Ints = rows[~inside][np.argsort(of[~inside], kind="stable")]
        return np.concatenate([first, rest])

    return preferred


def fit(room: Room, rows: Ints) -> Ints:
    """Lower is tighter; one number, for sorting by one key is several times faster than by three."""
    cpus = np.minimum(room.cpus[rows], (1 << _CPU_BITS) - 1)
    mem = np.minimum(room.mem[rows] >> _MEM_UNIT, (1 << _MEM_BITS) - 1)
    key: Ints = (((room.gpus[rows] << _CPU_BITS) | cpus) << _MEM_BITS) | mem
    return key


def _switch_rank(site: Site, rows: Ints, copies: Ints, pieces: int) -> Ints:
    """Ranks rows by their leaf switch: inside the lowest switch that holds all pieces, as few leaves as possible.

    Of the leaves the biggest come first, and last the tightest that holds the rest. What is not needed comes after.
    """
    outside = np.zeros(len(rows), np.int64)
    for level in reversed(site.levels):
        holds = np.bincount(level[rows], copies)
        enough = np.flatnonzero(holds >= pieces)
        if len(enough):
            outside = (level[rows] != enough[holds[enough].argmin()]).astype(np.int64)
            break
    leaves = site.switch[rows]
    holds = np.bincount(leaves, copies * (1 - outside))
    rank = np.full(len(holds), len(holds), np.int64)
    left, place = pieces, 0
    while left > 0 and holds.any():
        enough = np.flatnonzero(holds >= left)
        leaf = int(enough[holds[enough].argmin()]) if len(enough) else int(holds.argmax())
        rank[leaf], place = place, place + 1
        left -= int(holds[leaf])
        holds[leaf] = 0
    ranks: Ints = rank[leaves] + outside * (len(rank) + 1)
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
