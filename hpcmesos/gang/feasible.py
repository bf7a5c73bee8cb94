"""Does it fit? One piece on one node, and whole requests over a table of nodes.

Decides only *whether*; *where*, among several possible places, is the caller's ``prefer`` (see ``score``).
Exact for SCATTER and PACK and for FREE requests of one kind of pieces. FREE requests of several kinds are vector
bin packing: greedy first, then a search bounded by work, whose failure is uncertain when the bound ended it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpcmesos.gang import words
from hpcmesos.gang.room import Ints, Lot, Mask, Room
from hpcmesos.gang.snapshot import NodeView
from hpcmesos.model import Chunk, PendingReason, Placement, ReasonCode, Request

_SEARCH_STEPS = 20_000
_SEARCH_PIECES = 64


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Where a request's pieces go. ``lots`` None: nowhere, for sure if ``certain``, else none was found."""

    lots: tuple[Lot, ...] | None
    certain: bool = True


Prefer = Callable[[Room, Ints, Ints, int], Ints]
"""(room, rows, copies on each row, pieces to place) -> the rows, best first."""

_NOWHERE = Arrangement(None)


def by_name(room: Room, rows: Ints, copies: Ints, pieces: int) -> Ints:
    """The preference of one who only asks whether: biggest first, then names."""
    return rows[np.argsort(-copies, kind="stable")]


def kinds_of(request: Request) -> tuple[Chunk, ...]:
    """The kinds of pieces to place; PACK is one piece that is the sum of all."""
    if request.placement is not Placement.PACK:
        return tuple(chunk for chunk in request.chunks if chunk.count)
    hosts = sorted({chunk.host for chunk in request.chunks if chunk.host is not None})
    features = sorted({feature for chunk in request.chunks for feature in chunk.features})
    # Two different hosts can be no one node: their joined name fits none, and says why.
    host = " and ".join(hosts) or None
    return (Chunk(1, request.cpus, request.gpus, request.mem, request.slots, tuple(features), host),)


def possible(request: Request, kinds: Sequence[Chunk], room: Room, usable: Mask) -> bool:
    """Whether :func:`arrange` would find places; quicker than to look for them."""
    if len(kinds) > 1:
        return arrange(request, room, usable).lots is not None
    kind = kinds[0]
    if request.placement is Placement.FREE and kind.count > 1:
        return int(room.copies(kind, usable).sum()) >= kind.count
    return int(np.count_nonzero(room.fits(kind, usable))) >= kind.count


def arrange(
    request: Request, room: Room, usable: Mask, prefer: Prefer = by_name, kinds: Sequence[Chunk] = ()
) -> Arrangement:
    """Places all pieces of a request on the usable rows, or none. Leaves ``room`` as it was.

    ``kinds``: of the request, if the caller has them at hand.
    """
    kinds = kinds or kinds_of(request)
    if request.placement is not Placement.FREE:
        return (
            _scatter(kinds, room, usable, prefer)
            if len(kinds) > 1
            else _alike(kinds[0], room, usable, prefer)
        )
    if len(kinds) == 1:
        lots = _spread(kinds[0], 0, room, usable, prefer)
        return _NOWHERE if lots is None else Arrangement(tuple(lots))
    return _mix(kinds, room, usable, prefer)


def _alike(kind: Chunk, room: Room, usable: Mask, prefer: Prefer) -> Arrangement:
    """Equal pieces, each on a node of its own."""
    rows = np.flatnonzero(room.fits(kind, usable))
    if len(rows) < kind.count:
        return _NOWHERE
    chosen = prefer(room, rows, np.ones(len(rows), np.int64), kind.count)[: kind.count]
    return Arrangement(tuple(Lot(row, 0, 1) for row in np.sort(chosen).tolist()))


def _scatter(kinds: Sequence[Chunk], room: Room, usable: Mask, prefer: Prefer) -> Arrangement:
    """Every piece on a node of its own: a matching of nodes to kinds, the rarest kind first."""
    masks = [room.fits(kind, usable) for kind in kinds]
    numbers = [int(np.count_nonzero(mask)) for mask in masks]
    if any(number < kind.count for number, kind in zip(numbers, kinds, strict=True)):
        return _NOWHERE
    owner = np.full(len(room.nodes), -1, np.int64)
    for kind in sorted(range(len(kinds)), key=lambda k: (numbers[k], k)):
        rows = np.flatnonzero(masks[kind] & (owner < 0))
        chosen = prefer(room, rows, np.ones(len(rows), np.int64), kinds[kind].count)[: kinds[kind].count]
        owner[chosen] = kind
        for _ in range(kinds[kind].count - len(chosen)):
            if not _augment(kind, masks, owner):
                return _NOWHERE
    taken = np.flatnonzero(owner >= 0)
    return Arrangement(tuple(Lot(int(row), int(owner[row]), 1) for row in taken))


def _augment(kind: int, masks: Sequence[Mask], owner: Ints) -> bool:
    """One more node for ``kind``, passing nodes on between kinds (shortest augmenting path); False: impossible."""
    taken: dict[
        int, tuple[int, int]
    ] = {}  # kind that gives a node away -> (kind that takes it, the node's row)
    queue = [kind]
    for current in queue:
        idle = np.flatnonzero(masks[current] & (owner < 0))
        if len(idle):
            owner[idle[0]] = current
            while current != kind:
                taker, row = taken[current]
                owner[row] = current = taker
            return True
        for other in range(len(masks)):
            if other != kind and other not in taken:
                shared = np.flatnonzero(masks[current] & (owner == other))
                if len(shared):
                    taken[other] = (current, int(shared[0]))
                    queue.append(other)
    return False


def _spread(kind: Chunk, number: int, room: Room, usable: Mask, prefer: Prefer) -> list[Lot] | None:
    """One kind on the fewest nodes: the biggest first, the last one the tightest that holds the rest."""
    copies = room.copies(kind, usable)
    if int(copies.sum()) < kind.count:
        return None
    lots: list[Lot] = []
    left = kind.count
    biggest: Iterator[int] | None = None
    while not len(enough := np.flatnonzero(copies >= left)):
        if biggest is None:
            rows = np.flatnonzero(copies)
            biggest = iter(prefer(room, rows, copies[rows], left).tolist())
        row = next(biggest)
        lots.append(Lot(row, number, int(copies[row])))
        left -= int(copies[row])
        copies[row] = 0
    tightest = prefer(room, enough, np.ones(len(enough), np.int64), 1)[0]
    return [*lots, Lot(int(tightest), number, left)]


def _mix(kinds: Sequence[Chunk], room: Room, usable: Mask, prefer: Prefer) -> Arrangement:
    """Several kinds that may share nodes: the hardest kind first, on nodes already used if possible."""
    if any(int(room.copies(kind, usable).sum()) < kind.count for kind in kinds):
        return _NOWHERE
    hardness = [(-k.gpus, int(np.count_nonzero(room.fits(k, usable))), -k.cpus, -k.mem) for k in kinds]
    order = sorted(range(len(kinds)), key=lambda k: (hardness[k], k))
    rest, used, lots = room.copy(), np.zeros(len(room.nodes), np.bool_), list[Lot]()
    for number in order:
        kind = kinds[number]
        again = min(kind.count, int(rest.copies(kind, used).sum()))
        for part, where in ((again, used), (kind.count - again, usable & ~used)):
            placed = _spread(replace(kind, count=part), number, rest, where, prefer) if part else []
            if placed is None:
                return _search([(n, kinds[n]) for n in order], room, usable)
            for lot in placed:
                rest.take(lot.row, kind, lot.pieces)
                lots.append(lot)
        used[[lot.row for lot in lots]] = True
    return Arrangement(tuple(lots))


def _search(kinds: Sequence[tuple[int, Chunk]], room: Room, usable: Mask) -> Arrangement:
    """Tries all ways, but for symmetric ones, to place several kinds together, within a bound of work."""
    pieces = [item for item in kinds for _ in range(item[1].count)][: _SEARCH_PIECES + 1]
    if len(pieces) > _SEARCH_PIECES:
        return Arrangement(None, certain=False)
    rest = room.copy()
    named = {number: usable & room.site.named(kind) for number, kind in kinds}
    rows = [row for row in range(len(room.nodes)) if any(mask[row] for mask in named.values())]
    same = {row: tuple(bool(mask[row]) for mask in named.values()) for row in rows}
    chosen: list[int] = []
    steps = 0

    def descend() -> bool:
        nonlocal steps
        if len(chosen) == len(pieces):
            return True
        number, kind = pieces[len(chosen)]
        follows = bool(chosen) and pieces[len(chosen) - 1][0] == number
        tried = set()
        for row in rows:
            # Equal pieces go in the order of rows, of rows that are alike one is tried: the rest is symmetry.
            if follows and row < chosen[-1]:
                continue
            steps += 1
            state = (int(rest.cpus[row]), int(rest.mem[row]), int(rest.gpus[row]), same[row])
            if steps > _SEARCH_STEPS or state in tried or not named[number][row] or rest.refusal(kind, row):
                continue
            tried.add(state)
            rest.take(row, kind, 1)
            chosen.append(row)
            if descend():
                return True
            chosen.pop()
            rest.take(row, kind, -1)
        return False

    if not descend():
        return Arrangement(None, certain=steps <= _SEARCH_STEPS)
    return Arrangement(tuple(Lot(row, piece[0], 1) for row, piece in zip(chosen, pieces, strict=True)))


def can_ever_fit(request: Request, nodes: Iterable[NodeView]) -> PendingReason | None:
    """Why the nodes could never hold the request, even all up and empty; None: they could.

    Used at submit, so it errs on the side of None: when no node is known, or only an exhaustive search could tell.
    """
    room = Room(nodes, installed=True)
    if not room.nodes:
        return None
    everywhere = np.ones(len(room.nodes), np.bool_)
    found = arrange(request, room, everywhere)
    if found.lots is not None or not found.certain:
        return None
    return PendingReason(ReasonCode.NEVER_FITS, _never(request, room, everywhere))


def short_kind(request: Request, room: Room, usable: Mask) -> tuple[Chunk, int] | None:
    """The first kind that does not fit even alone, and how many of it do; None: each does, but not together."""
    for kind in kinds_of(request):
        copies = room.copies(kind, usable)
        number = int(copies.sum() if request.placement is Placement.FREE else np.count_nonzero(copies))
        if number < kind.count:
            return kind, number
    return None


def _never(request: Request, room: Room, everywhere: Mask) -> str:
    short = short_kind(request, room, everywhere)
    if short is None:
        return (
            f"needs {words.needs(request, kinds_of(request))} at once; the cluster cannot hold them together"
        )
    kind, number = short
    text = f"needs {words.need(kind, request.placement)}, "
    if number:
        return f"{text}the cluster has {'room for ' if request.placement is Placement.FREE else ''}{number}"
    named = room.site.named(kind)
    if not named.any():
        what = "has that name" if kind.host is not None else "has these features"
        return f"{text}no node {'has whole GPUs' if not (kind.host or kind.features) else what}"
    want = np.array([kind.gpus, kind.cpus, kind.mem])
    have = np.minimum(np.stack([room.gpus, room.cpus, room.mem], axis=1), want)
    most = max(np.flatnonzero(named).tolist(), key=lambda row: have[row].tolist())
    whole = replace(
        kind, gpus=int(room.gpus[most]), cpus=int(room.cpus[most]), mem=int(room.mem[most]), features=()
    )
    return f"{text}the nearest to it, {room.nodes[most].name}, has {words.amounts(whole)}"
