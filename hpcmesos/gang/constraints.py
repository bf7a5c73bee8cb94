"""Rules on the nodes of a gang by their attributes, in Marathon's words: how they are written.

A node's attributes are its features ``name=value`` (a feature without a value is "true"), ``hostname`` and ``switch``.
LIKE, UNLIKE and IS look at each node by itself; a node without the attribute passes UNLIKE only. CLUSTER, UNIQUE,
MAX_PER and GROUP_BY look at the gang: all nodes of one value; no two, or at most N, of one value; evenly over at least
N values (all there are, if N is not given). ``constrained`` finds the nodes that keep them.
"""

from __future__ import annotations

import re

from hpcmesos.errors import InvalidValue
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
