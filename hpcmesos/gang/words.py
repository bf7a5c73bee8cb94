"""Requests and amounts in the words of the people who read pending reasons; names in their natural order."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hpcmesos.model import Chunk, Placement, Request
from hpcmesos.units import format_size

_DIGITS = re.compile(r"(\d+)")
LISTED = 3  # names a sentence lists before "and N more"


def natural_key(name: str) -> tuple[tuple[str | int, ...], str]:
    """Sorts node2 before node10; names that differ only in leading zeros still differ."""
    return tuple(int(part) if part.isdigit() else part for part in _DIGITS.split(name)), name


def counted(number: int, noun: str) -> str:
    """``1 node``, ``4 GPUs``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def size(amount: int) -> str:
    """Bytes, in the largest unit that leaves no rest worth a reader's time."""
    return format_size(amount if amount < 1 << 30 else amount >> 20 << 20)


def listed(names: Sequence[str]) -> str:
    """``node1, node2, node3 and 4 more``."""
    shown = ", ".join(names[:LISTED])
    return f"{shown} and {len(names) - LISTED} more" if len(names) > LISTED else shown


def listed_of(shown: Sequence[str], number: int) -> str:
    """The same, when only the first of ``number`` names are at hand."""
    text = ", ".join(shown[:LISTED])
    return f"{text} and {number - LISTED} more" if number > LISTED else text


def amounts(chunk: Chunk, free: str = "") -> str:
    """What one piece takes: ``4 GPUs``, ``1 GPU and 8 CPUs``; ``free`` is put before each unit.

    One CPU beside a GPU goes without saying.
    """
    parts = []
    if chunk.gpus:
        parts.append(counted(chunk.gpus, f"{free}GPU"))
    if chunk.cpus > 1 or not chunk.gpus:
        parts.append(counted(chunk.cpus, f"{free}CPU"))
    if chunk.mem:
        parts.append(f"{format_size(chunk.mem)} {free}memory")
    parts.extend(f"feature {feature}" for feature in chunk.features)
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]


def need(chunk: Chunk, placement: Placement, free: bool = False) -> str:
    """One kind of pieces as a need: ``2 nodes with 4 free GPUs each``, ``6 pieces of 1 GPU``."""
    what = amounts(chunk, "free " if free else "")
    if chunk.host is not None:
        times = f"{chunk.count} times " if chunk.count > 1 else ""
        return f"node {chunk.host} with {times}{what}"
    if chunk.count == 1:
        return f"1 node with {what}"
    if placement is Placement.FREE:
        return f"{chunk.count} pieces of {what}"
    return f"{chunk.count} nodes with {what} each"


def needs(request: Request, kinds: Sequence[Chunk], free: bool = False) -> str:
    """The whole request: its kinds of pieces, joined."""
    return " + ".join(need(kind, request.placement, free) for kind in kinds)
