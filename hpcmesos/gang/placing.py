"""Does a shape fit, and where: ``feasible`` under the constraints of the job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from hpcmesos.gang import constrained, feasible, words
from hpcmesos.gang.feasible import Arrangement, Prefer, arrange, by_name, possible
from hpcmesos.gang.room import Mask, Room
from hpcmesos.gang.snapshot import NodeView
from hpcmesos.gang.tables import Shape
from hpcmesos.model import PendingReason, Placement, ReasonCode, Request


def find(shape: Shape, room: Room, usable: Mask, prefer: Prefer = by_name) -> Arrangement:
    """Where the shape's pieces go; see ``feasible.arrange``."""
    if not shape.request.constraints:
        return arrange(shape.request, room, usable, prefer, shape.kinds)
    found = Arrangement(None)
    for mask in _choices(shape, room, usable, prefer):
        found = arrange(shape.request, room, mask, prefer, shape.kinds)
        if found.lots is not None:
            return found
    return found


def fits(shape: Shape, room: Room, usable: Mask) -> bool:
    """Whether :func:`find` would find places."""
    if not shape.request.constraints:
        return possible(shape.request, shape.kinds, room, usable)
    return any(
        possible(shape.request, shape.kinds, room, mask) for mask in _choices(shape, room, usable, by_name)
    )


def can_ever_fit(request: Request, nodes: Iterable[NodeView]) -> PendingReason | None:
    """As ``feasible.can_ever_fit``, the constraints considered."""
    views = tuple(nodes)
    reason = feasible.can_ever_fit(request, views)
    if reason is not None or not views or not request.constraints:
        return reason
    room, shape = Room(views, installed=True), Shape.of_request(request)
    return None if fits(shape, room, room.site.everywhere) else cannot_keep(shape)


def cannot_keep(shape: Shape) -> PendingReason:
    """Even all up and empty, the nodes cannot keep the shape's constraints."""
    text = f"needs {words.needs(shape.request, shape.kinds)}; the nodes cannot keep to {rules(shape.request)}"
    return PendingReason(ReasonCode.NEVER_FITS, text)


def rules(request: Request) -> str:
    """The constraints, for people."""
    return ", ".join(str(rule) for rule in request.constraints)


def _choices(shape: Shape, room: Room, usable: Mask, prefer: Prefer) -> Iterator[Mask]:
    """Rows to try one after the other; those where pieces fit, best first, are offered to rules on the whole gang."""
    fitting = np.zeros_like(usable)
    for kind in shape.kinds:
        fitting |= room.fits(kind, usable)
    rows = np.flatnonzero(fitting)
    pieces = sum(kind.count for kind in shape.kinds)
    best = prefer(room, rows, np.ones(len(rows), np.int64), max(2, pieces)).tolist()
    alone = shape.request.placement is not Placement.FREE
    copies = [
        (kind.count, np.minimum(number, 1) if alone else number)
        for kind in shape.kinds
        for number in (room.copies(kind, usable),)
    ]

    def enough(chosen: Sequence[int]) -> bool:
        return all(int(number[list(chosen)].sum()) >= count for count, number in copies)

    return constrained.choices(room.site, fitting, shape.request.constraints, pieces, best, enough)
