"""Does a shape fit, and where: ``feasible`` under the constraints of the job."""

from __future__ import annotations

import numpy as np

from hpcmesos.gang import constraints
from hpcmesos.gang.feasible import Arrangement, Prefer, arrange, by_name, possible
from hpcmesos.gang.room import Mask, Room
from hpcmesos.gang.tables import Shape


def find(shape: Shape, room: Room, usable: Mask, prefer: Prefer = by_name) -> Arrangement:
    """Where the shape's pieces go; see ``feasible.arrange``."""
    if not shape.constraints:
        return arrange(shape.request, room, usable, prefer, shape.kinds)
    found = Arrangement(None)
    for mask in _choices(shape, room, usable, prefer):
        found = arrange(shape.request, room, mask, prefer, shape.kinds)
        if found.lots is not None:
            return found
    return found


def fits(shape: Shape, room: Room, usable: Mask) -> bool:
    """Whether :func:`find` would find places."""
    if not shape.constraints:
        return possible(shape.request, shape.kinds, room, usable)
    return any(
        possible(shape.request, shape.kinds, room, mask) for mask in _choices(shape, room, usable, by_name)
    )


def _choices(shape: Shape, room: Room, usable: Mask, prefer: Prefer) -> list[Mask]:
    """Rows to try one after the other; those where pieces fit, best first, are offered to rules on the whole gang."""
    fitting = np.zeros_like(usable)
    for kind in shape.kinds:
        fitting |= room.fits(kind, usable)
    rows = np.flatnonzero(fitting)
    pieces = sum(kind.count for kind in shape.kinds)
    best = prefer(room, rows, np.ones(len(rows), np.int64), max(2, pieces)).tolist()
    return constraints.choices(room.site, fitting, shape.constraints, pieces, best)
