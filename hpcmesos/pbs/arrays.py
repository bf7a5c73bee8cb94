"""The array option: ``-t 0-9,20%2`` (Torque qsub(1B)) and ``-J 0-9:2%3`` (OpenPBS qsub(1B)), one grammar for both."""

from __future__ import annotations

import re
from itertools import pairwise

from hpcmesos.errors import InvalidValue
from hpcmesos.queue.arrays import ArraySpec

_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?", re.ASCII)
_LIMIT = re.compile(r"\d{1,9}", re.ASCII)


def parse_array(text: str) -> ArraySpec:
    """Reads ``FIRST-LAST[:STEP]`` or ``N``, several joined by commas, and an optional ``%LIMIT`` (at least 1).

    Raises:
        InvalidValue: for anything else, a range that runs backwards, and ranges that overlap.
    """
    body, percent, limit_text = text.strip().partition("%")
    pieces = sorted(_parse_range(piece.strip(), text) for piece in body.split(","))
    for (_, before, _), (after, _, _) in pairwise(pieces):
        if after <= before:
            raise InvalidValue(f"array request '{text}' names index {after} twice or has ranges that overlap")
    if percent and (not _LIMIT.fullmatch(limit_text) or int(limit_text) == 0):
        raise InvalidValue(
            f"array request '{text}': the limit after % is an integer of at least 1, e.g. 0-9%2"
        )
    return ArraySpec(tuple(pieces), int(limit_text) if percent else None)


def _parse_range(piece: str, whole: str) -> tuple[int, int, int]:
    match = _RANGE.fullmatch(piece)
    if match is None:
        raise InvalidValue(f"illegal array request '{whole}'; write e.g. 0-9, 0-9:2, 1,5,7-9 or 0-9%2")
    first = int(match[1])
    last = int(match[2] or first)
    step = int(match[3] or 1)
    if last < first or step == 0:
        raise InvalidValue(f"illegal array request '{whole}': a range runs upwards in steps of at least 1")
    return first, last - (last - first) % step, step
