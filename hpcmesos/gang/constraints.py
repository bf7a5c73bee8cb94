"""Rules on the nodes of a gang by their attributes, in Marathon's words.

A node's attributes are its features ``name=value`` (a feature without a value is "true"), ``hostname`` and ``switch``.
LIKE, UNLIKE and IS look at each node by itself; a node without the attribute passes UNLIKE only. CLUSTER, UNIQUE,
MAX_PER and GROUP_BY look at the gang: all nodes of one value; no two, or at most N, of one value; evenly over at least
N values (all there are, if N is not given). Those make groups of rows of which an arrangement may use some each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from hpcmesos.errors import InvalidValue
from hpcmesos.gang.room import Mask, Site
from hpcmesos.gang.snapshot import Constraint, NodeView

NODE_RULES = frozenset({"LIKE", "UNLIKE", "IS"})
GANG_RULES = frozenset({"CLUSTER", "UNIQUE", "MAX_PER", "GROUP_BY"})
_CLOSE = 0.001  # numbers that differ by less are the same for IS, as Marathon has it


def attribute(node: NodeView, field: str) -> str | None:
    """The value; None: the node has no such attribute."""
    if field in ("hostname", "@hostname"):
        return node.name
    if field == "switch":
        return node.switch or None
    for feature in sorted(node.features):
        name, equals, value = feature.partition("=")
        if name == field:
            return value if equals else "true"
    return None


def check(constraint: Constraint) -> None:
    """Raises InvalidValue when it is no constraint."""
    operator, value = constraint.operator, constraint.value
    if operator not in NODE_RULES | GANG_RULES:
        raise InvalidValue(
            f"'{operator}' is no constraint; there are {', '.join(sorted(NODE_RULES | GANG_RULES))}"
        )
    if operator in ("LIKE", "UNLIKE"):
        try:
            re.compile(value)
        except re.error as error:
            raise InvalidValue(f"constraint {constraint.field} {operator}: '{value}': {error}") from error
    if operator == "MAX_PER" and not (value.isdigit() and int(value)):
        raise InvalidValue(f"constraint {constraint.field} MAX_PER wants a number from 1, not '{value}'")
    if operator == "GROUP_BY" and value and not value.isdigit():
        raise InvalidValue(f"constraint {constraint.field} GROUP_BY wants a number or nothing, not '{value}'")


def allowed(site: Site, constraints: Iterable[Constraint]) -> Mask:
    """The rows that LIKE, UNLIKE, IS, and CLUSTER with a value leave; others ask only that the attribute is there."""
    mask = np.ones(len(site.nodes), np.bool_)
    for constraint in constraints:
        mask &= site.mask(lambda node, rule=constraint: _passes(rule, attribute(node, rule.field)))  # type: ignore[misc]  # bound at once
    return mask


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
    site: Site, usable: Mask, constraints: Sequence[Constraint], pieces: int, spare: Sequence[int]
) -> list[Mask]:
    """Masks of rows to try one after the other; any rows of one of them, each used once, keep all the rules.

    ``pieces``: nodes that the gang takes. ``spare``: rows, best first, from which a mask picks when only some rows of a
    value may be used.
    """
    masks = [usable & allowed(site, constraints)]
    for rule in constraints:
        if rule.operator in GANG_RULES:
            masks = [narrowed for mask in masks for narrowed in _narrow(site, mask, rule, pieces, spare)]
    return masks


def _narrow(site: Site, mask: Mask, rule: Constraint, pieces: int, spare: Sequence[int]) -> list[Mask]:
    groups: dict[str, list[int]] = {}
    for row in spare:
        if mask[row]:
            groups.setdefault(attribute(site.nodes[row], rule.field) or "", []).append(row)
    if rule.operator == "CLUSTER":
        return [_only(mask, rows) for _, rows in sorted(groups.items())]
    if rule.operator == "GROUP_BY":
        number = int(rule.value or len(groups))
        if len(groups) < number or not number:
            return []
        largest = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))[
            : max(1, min(len(groups), pieces))
        ]
        share, more = divmod(pieces, len(largest))
        return [
            _only(mask, [row for at, (_, rows) in enumerate(largest) for row in rows[: share + (at < more)]])
        ]
    most = 1 if rule.operator == "UNIQUE" else int(rule.value)
    return [_only(mask, [row for rows in groups.values() for row in rows[:most]])]


def _only(mask: Mask, rows: Sequence[int]) -> Mask:
    only = np.zeros_like(mask)
    only[list(rows)] = True
    return only & mask
