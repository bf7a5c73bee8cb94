"""What there is on each node, as columns: one row a node, in the natural order of names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hpcmesos.gang import words
from hpcmesos.gang.snapshot import NodeView
from hpcmesos.model import MIG_FEATURE, Chunk, Constraint, NodeName

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Refusal(StrEnum):
    """Why a piece does not fit a node; the first that applies, in this order."""

    HOST = "host"
    FEATURES = "features"
    GPUS = "GPU"
    CPUS = "CPU"
    MEM = "memory"


class Lot(NamedTuple):
    """``pieces`` pieces of kind ``kind`` on row ``row``."""

    row: int
    kind: int
    pieces: int


class Attribute:
    """What one attribute is on each row: ``values[of[row]]``; None: the node has no such attribute."""

    __slots__ = ("_numbers", "of", "values")

    def __init__(self, found: Iterable[str | None]) -> None:
        numbers: dict[str | None, int] = {}
        self.of = [numbers.setdefault(value, len(numbers)) for value in found]
        self.values = tuple(numbers)
        self._numbers = np.array(self.of, np.int64)

    def mask(self, verdicts: list[bool]) -> Mask:
        """The rows whose value, by its number, has the verdict True."""
        rows: Mask = np.array([*verdicts, False], np.bool_)[self._numbers]
        return rows


class Site:
    """What the rows are, whatever is free of them: names, features, switches. Unchanging."""

    __slots__ = ("_attributes", "_masks", "_paths", "cut", "everywhere", "masks", "nodes", "rows", "switch")

    def __init__(self, nodes: Iterable[NodeView]) -> None:
        self.nodes = tuple(sorted(nodes, key=lambda node: words.natural_key(node.name)))
        self.rows: dict[NodeName, int] = {node.name: row for row, node in enumerate(self.nodes)}
        self.cut = any(_is_cut(node) for node in self.nodes)  # whether some have MIG instances
        self._masks: dict[tuple[str | None, tuple[str, ...], bool], Mask] = {}
        self.masks: dict[Constraint, Mask] = {}  # rows that pass, by rule
        self._attributes: dict[str, Attribute] = {}
        self.everywhere: Mask = np.ones(len(self.nodes), np.bool_)
        self._paths: tuple[Ints, ...] | None = None
        self.switch = self.levels[-1]

    @property
    def levels(self) -> tuple[Ints, ...]:
        """For each level of the switch tree, from the root down, the number of each row's switch on it."""
        if self._paths is None:
            paths = [tuple(node.switch.split("/")) for node in self.nodes]
            depth = max((len(path) for path in paths), default=1)
            self._paths = tuple(_numbered([path[: level + 1] for path in paths]) for level in range(depth))
        return self._paths

    def mask(self, test: Callable[[NodeView], bool]) -> Mask:
        """The rows whose node passes ``test``."""
        return np.fromiter((test(node) for node in self.nodes), np.bool_, len(self.nodes))

    def only(self, rows: Sequence[int]) -> Mask:
        """These rows and no others."""
        mask: Mask = np.zeros(len(self.nodes), np.bool_)
        mask[list(rows)] = True
        return mask

    def attribute(self, field: str) -> Attribute:
        """What ``field`` is on each row: a feature ``name=value``, hostname or switch."""
        if field not in self._attributes:
            self._attributes[field] = Attribute(_value(node, field) for node in self.nodes)
        return self._attributes[field]

    def matters(self, chunk: Chunk) -> bool:
        """Whether some rows have not what ``named`` asks for."""
        return bool(chunk.features or chunk.host or (chunk.gpus and self.cut))

    def named(self, chunk: Chunk) -> Mask:
        """The rows whose node has the chunk's host name, features and kind of GPU, whatever its size."""
        key = (chunk.host, chunk.features, chunk.gpus > 0)
        if key not in self._masks:
            self._masks[key] = self.mask(
                lambda node: chunk.host in (None, node.name) and _has_features(node, chunk)
            )
        return self._masks[key]


class Room:
    """An amount of CPUs, memory (bytes) and GPUs for each row of a site; columns change as pieces are placed."""

    __slots__ = ("cpus", "gpus", "mem", "site")

    def __init__(self, nodes: Iterable[NodeView], *, installed: bool) -> None:
        """``installed`` True counts all that the nodes have, False what is free, whatever their state."""
        self.site = Site(nodes)
        rows = self.site.nodes
        self.cpus = column(n.cpus if installed else n.cpus_free for n in rows)
        self.mem = column(n.mem if installed else n.mem_free for n in rows)
        self.gpus = column(len(n.gpus) if installed else sum(gpu.free for gpu in n.gpus) for n in rows)

    @classmethod
    def of(cls, site: Site, cpus: Ints, mem: Ints, gpus: Ints) -> Room:
        """Over columns that are given."""
        room = cls.__new__(cls)
        room.site, room.cpus, room.mem, room.gpus = site, cpus, mem, gpus
        return room

    @property
    def nodes(self) -> tuple[NodeView, ...]:
        return self.site.nodes

    def copy(self) -> Room:
        """Columns of its own."""
        return Room.of(self.site, self.cpus.copy(), self.mem.copy(), self.gpus.copy())

    def least(self, other: Room) -> Room:
        """On each row the smaller of both amounts."""
        return Room.of(
            self.site,
            np.minimum(self.cpus, other.cpus),
            np.minimum(self.mem, other.mem),
            np.minimum(self.gpus, other.gpus),
        )

    def fits(self, chunk: Chunk, usable: Mask) -> Mask:
        """The usable rows on which one piece fits."""
        mask = usable & self.site.named(chunk) if self.site.matters(chunk) else usable.copy()
        if chunk.gpus:
            mask &= self.gpus >= chunk.gpus
        if chunk.cpus:
            mask &= self.cpus >= chunk.cpus
        if chunk.mem:
            mask &= self.mem >= chunk.mem
        return mask

    def copies(self, chunk: Chunk, usable: Mask) -> Ints:
        """How many pieces, at most ``chunk.count``, fit together on each row."""
        number = np.where(usable & self.site.named(chunk), chunk.count, 0)
        for amounts, each in ((self.gpus, chunk.gpus), (self.cpus, chunk.cpus), (self.mem, chunk.mem)):
            if each:
                number = np.minimum(number, np.maximum(amounts // each, 0))
        return number

    def take(self, row: int, chunk: Chunk, count: int) -> None:
        """Takes ``count`` pieces off a row; a negative count gives them back."""
        self.cpus[row] -= count * chunk.cpus
        self.mem[row] -= count * chunk.mem
        self.gpus[row] -= count * chunk.gpus

    def refusal(self, chunk: Chunk, row: int) -> Refusal | None:
        """Why one piece does not fit the row; None: it fits."""
        node = self.site.nodes[row]
        if chunk.host not in (None, node.name):
            return Refusal.HOST
        if not _has_features(node, chunk):
            return Refusal.FEATURES
        if self.gpus[row] < chunk.gpus:
            return Refusal.GPUS
        if self.cpus[row] < chunk.cpus:
            return Refusal.CPUS
        return Refusal.MEM if self.mem[row] < chunk.mem else None


def column(values: Iterable[int]) -> Ints:
    return np.array(list(values), np.int64)


def _is_cut(node: NodeView) -> bool:
    """Whether its GPUs are MIG instances."""
    return any(feature.startswith(MIG_FEATURE) for feature in node.features)


def _has_features(node: NodeView, chunk: Chunk) -> bool:
    """MIG instances are for those who name a profile: who asks for GPUs means whole ones."""
    if not frozenset(chunk.features) <= node.features:
        return False
    whole = chunk.gpus > 0 and not any(feature.startswith(MIG_FEATURE) for feature in chunk.features)
    return not (whole and _is_cut(node))


def _value(node: NodeView, field: str) -> str | None:
    if field == "hostname":
        return node.name
    if field == "switch" and node.switch:
        return node.switch
    for feature in sorted(node.features):
        name, equals, value = feature.partition("=")
        if name == field:
            return value if equals else "true"
    return None


def _numbered(labels: list[tuple[str, ...]]) -> Ints:
    numbers = {label: number for number, label in enumerate(sorted(set(labels)))}
    return column(numbers[label] for label in labels)
