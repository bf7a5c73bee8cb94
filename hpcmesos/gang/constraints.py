"""Rules on the nodes of a gang by their attributes, in Marathon's words.

A node's attributes are its features ``name=value`` (a feature without a value is "true"), ``hostname`` and ``switch``.
LIKE, UNLIKE and IS look at each node by itself; a node without the attribute passes UNLIKE only. CLUSTER, UNIQUE,
MAX_PER and GROUP_BY look at the gang: all nodes of one value; no two, or at most N, of one value; evenly over at least
N values (all there are, if N is not given). Those make groups of rows of which an arrangement may use some each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from hpcmesos.errors import InvalidValue
from hpcmesos.gang.room import Mask, Site
from hpcmesos.model import Constraint

NODE_RULES = frozenset({"LIKE", "UNLIKE", "IS"})
GANG_RULES = frozenset({"CLUSTER", "UNIQUE", "MAX_PER", "GROUP_BY"})
MOST = 8
"""Rules of one job."""

LONGEST_PATTERN = 128
MOST_REPETITIONS = 2
"""Of a pattern. Without groups, and with so few repetitions, a match takes no more steps than the square of the value's
length: the leader matches patterns that users write."""

_OPERATORS = "|".join(sorted(NODE_RULES | GANG_RULES))
_NEXT = re.compile(rf",\s*(?=[^:,\s]+:(?:{_OPERATORS})(?::|,|$))", re.IGNORECASE)
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{\d*,?\d*\}|.", re.DOTALL)
_CLOSE = 0.001  # numbers that differ by less are the same for IS, as Marathon has it
_MOST_WAYS = 64  # groups of CLUSTER that are tried

Enough = Callable[[Sequence[int]], bool]
"""Whether a gang could find room on these rows, as far as can be told quickly."""


def parse(text: str) -> tuple[Constraint, ...]:
    """Reads ``FIELD:OPERATOR[:VALUE][,FIELD:OPERATOR...]`` of ``-W constraints=``.

    A comma or a colon may be part of a value; what follows a comma is a rule if it looks like one.

    Raises:
        InvalidValue: what is no rule, and why.
    """
    pieces = [piece.strip() for piece in _NEXT.split(text) if piece.strip()]
    if not pieces:
        raise InvalidValue("constraints: write FIELD:OPERATOR[:VALUE], e.g. constraints=rack:GROUP_BY:3")
    if len(pieces) > MOST:
        raise InvalidValue(f"constraints: {len(pieces)} rules, at most {MOST} go together")
    return tuple(_one(piece) for piece in pieces)


def _one(text: str) -> Constraint:
    field, _, rest = text.partition(":")
    operator, _, value = rest.partition(":")
    if not field or not operator:
        raise InvalidValue(f"constraint '{text}': write FIELD:OPERATOR[:VALUE], e.g. rack:UNIQUE")
    rule = Constraint("hostname" if field == "@hostname" else field, operator.upper(), value)
    check(rule)
    return rule


def check(rule: Constraint) -> None:
    """Raises InvalidValue when it is no rule."""
    operator, value = rule.operator, rule.value
    wrong = f"constraint '{rule}': "
    if operator not in NODE_RULES | GANG_RULES:
        raise InvalidValue(f"{wrong}there are {', '.join(sorted(NODE_RULES | GANG_RULES))}, no '{operator}'")
    if operator in NODE_RULES and not value:
        raise InvalidValue(f"{wrong}{operator} wants a value, as in {rule.field}:{operator}:VALUE")
    if operator in ("LIKE", "UNLIKE"):
        _check_pattern(value, wrong)
    if operator == "UNIQUE" and value:
        raise InvalidValue(f"{wrong}UNIQUE takes no value")
    number = value.isascii() and value.isdigit() and int(value[:9]) > 0
    if operator == "MAX_PER" and not number:
        raise InvalidValue(f"{wrong}MAX_PER wants a number from 1")
    if operator == "GROUP_BY" and value and not number:
        raise InvalidValue(f"{wrong}GROUP_BY wants a number from 1, or nothing")


def _check_pattern(pattern: str, wrong: str) -> None:
    """Lets through what can be matched in a bounded time."""
    if len(pattern) > LONGEST_PATTERN:
        raise InvalidValue(f"{wrong}a pattern of more than {LONGEST_PATTERN} characters")
    tokens = _TOKEN.findall(pattern)
    if "(" in tokens:
        raise InvalidValue(f"{wrong}groups are not served; write node1|node2 or node[12]")
    repeated = sum(token in ("*", "+", "?") or token.startswith("{") for token in tokens)
    if repeated > MOST_REPETITIONS:
        raise InvalidValue(f"{wrong}at most {MOST_REPETITIONS} of * + ? {{m,n}} in one pattern")
    try:
        re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise InvalidValue(f"{wrong}no regular expression: {error}") from None


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
