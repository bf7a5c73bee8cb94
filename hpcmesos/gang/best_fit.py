"""The tightest node for one piece, found again and again while room only shrinks.

Most jobs ask for a part of one node, and many for the same. Looking at all nodes for each of them costs more than all
else in a cycle; here a start costs what it changes.
"""

from __future__ import annotations

import numpy as np

from hpcmesos.gang.feasible import Arrangement
from hpcmesos.gang.room import Ints, Lot, Mask, Room
from hpcmesos.gang.score import fit
from hpcmesos.model import Chunk

_NONE = np.iinfo(np.int64).max
_MANY = 4  # of so many rows one is changed: then all are looked at anew


class Changes:
    """Rows in the order in which their room has shrunk; the same row may come again."""

    __slots__ = ("_rows", "size")

    def __init__(self) -> None:
        self._rows: Ints = np.empty(64, np.int64)
        self.size = 0

    def add(self, rows: Ints) -> None:
        """The room of these rows has shrunk."""
        size = self.size + len(rows)
        while size > len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[self.size : size] = rows
        self.size = size

    def since(self, seen: int) -> Ints:
        """All but the first ``seen``."""
        return self._rows[seen : self.size]


class BestFit:
    """For one kind of pieces on the usable rows of one room."""

    def __init__(self, kind: Chunk, room: Room, usable: Mask) -> None:
        self._kind, self.room = kind, room
        self._named = usable & room.site.named(kind) if room.site.matters(kind) else usable
        self._seen = 0  # of the changes
        self._keys: Ints | None = None

    def find(self, changes: Changes) -> Arrangement:
        """The place of one piece. ``changes``: since the cycle began."""
        new = changes.since(self._seen)
        if self._keys is None or len(new) * _MANY > len(self._keys):
            self._keys = self._of(np.arange(len(self._named)))
        elif len(new):
            self._keys[new] = self._of(new)
        self._seen = changes.size
        if not len(self._keys):
            return Arrangement(None)
        row = int(self._keys.argmin())
        return Arrangement(None if self._keys[row] == _NONE else (Lot(row, 0, 1),))

    def _of(self, rows: Ints) -> Ints:
        """Lower is tighter; where the piece does not fit, the highest number there is."""
        kind, room = self._kind, self.room
        fits = self._named[rows] & (room.gpus[rows] >= kind.gpus) & (room.cpus[rows] >= kind.cpus)
        if kind.mem:
            fits &= room.mem[rows] >= kind.mem
        keys: Ints = np.where(fits, fit(room, rows), _NONE)
        return keys
