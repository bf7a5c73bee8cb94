"""The rows that keep a gang's constraints (see ``constraints``).

Rules on the gang make groups of rows of which an arrangement may use some each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from hpcmesos.gang.constraints import GANG_RULES
from hpcmesos.gang.room import Mask, Site
from hpcmesos.model import Constraint

_CLOSE = 0.001  # numbers that differ by less are the same for IS, as Marathon has it
_MOST_WAYS = 64  # groups of CLUSTER that are tried

Enough = Callable[[Sequence[int]], bool]
"""Whether a gang could find room on these rows, as far as can be told quickly."""


def allowed(site: Site, rules: Iterable[Constraint]) -> Mask:
    """The rows that LIKE, UNLIKE, IS, and CLUSTER with a value leave; others ask only that the attribute is there."""
    mask = site.everywhere
    for rule in rules:
        mask = mask & _allowed(site, rule)
    return mask


def _allowed(site: Site, rule: Constraint) -> Mask:
    passing = site.masks.get(rule)
    if passing is None:
        attribute = site.attribute(rule.field)
        verdicts = [_passes(rule, value) for value in attribute.values]
        passing = site.masks[rule] = attribute.mask(verdicts)
    return passing


def _passes(rule: Constraint, value: str | None) -> bool:
    if value is None:
        return rule.operator == "UNLIKE"
    match rule.operator:
        case "LIKE":
            return re.fullmatch(rule.value, value) is not None
        case "UNLIKE":
            return re.fullmatch(rule.value, value) is None
        case "IS":
            return _same(rule.value, value)
        case "CLUSTER":
            return not rule.value or rule.value == value
    return True


def _same(wanted: str, value: str) -> bool:
    try:
        return abs(float(wanted) - float(value)) < _CLOSE
    except ValueError:
        return wanted == value


def choices(
    site: Site,
    usable: Mask,
    rules: Sequence[Constraint],
    pieces: int,
    spare: Sequence[int],
    enough: Enough = bool,
) -> Iterator[Mask]:
    """Masks of rows to try one after the other; any rows of one of them, each used once, keep all the rules.

    ``pieces``: nodes that the gang takes. ``spare``: rows, best first, from which a mask picks when only some rows of a
    value may be used.
    """
    gang = [rule for rule in rules if rule.operator in GANG_RULES]
    return _narrowed(site, usable & allowed(site, rules), gang, pieces, spare, enough)


def _narrowed(
    site: Site,
    mask: Mask,
    rules: Sequence[Constraint],
    pieces: int,
    spare: Sequence[int],
    enough: Enough,
) -> Iterator[Mask]:
    if not rules:
        yield mask
        return
    for rows in _ways(site, mask, rules[0], pieces, spare, enough):
        yield from _narrowed(site, site.only(rows) & mask, rules[1:], pieces, spare, enough)


def _ways(
    site: Site, mask: Mask, rule: Constraint, pieces: int, spare: Sequence[int], enough: Enough
) -> Iterator[Sequence[int]]:
    """Sets of rows, of each of which any rows keep the rule."""
    groups: dict[int, list[int]] = {}
    of = site.attribute(rule.field).of
    for row in spare:
        if mask[row]:
            groups.setdefault(of[row], []).append(row)
    if rule.operator == "CLUSTER":
        hold = [rows for _, rows in sorted(groups.items()) if enough(rows)]
        yield from hold[:_MOST_WAYS]
        return
    if rule.operator == "GROUP_BY":
        number = int(rule.value or len(groups))
        if not number or len(groups) < number:
            return
        largest = sorted(groups.values(), key=len, reverse=True)[: max(1, min(len(groups), pieces))]
        share, more = divmod(pieces, len(largest))
        yield [row for at, rows in enumerate(largest) for row in rows[: share + (at < more)]]
        return
    most = 1 if rule.operator == "UNIQUE" else int(rule.value)
    yield [row for rows in groups.values() for row in rows[:most]]
