"""Advance reservations and maintenance windows, as operators make them and as the scheduler sees them. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from hpcmesos.errors import InvalidValue
from hpcmesos.gang.snapshot import Window
from hpcmesos.model import NodeName

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
_LISTS = ("nodes", "users", "queues")


def windows(document: Mapping[str, Any], now: float) -> tuple[Window, ...]:
    """Those that are not over."""
    return tuple(
        Window(
            name,
            float(kept["starts_at"]),
            float(kept["ends_at"]),
            frozenset(NodeName(node) for node in kept["nodes"]),
            frozenset(kept["users"]),
            frozenset(kept["queues"]),
        )
        for name, kept in sorted(document.items())
        if kept["ends_at"] > now
    )


def next_change(document: Mapping[str, Any], now: float) -> float | None:
    """When the next one begins or ends; None: none does."""
    times = (float(kept[word]) for kept in document.values() for word in ("starts_at", "ends_at"))
    return min((time for time in times if time > now), default=None)


def changed(
    document: Mapping[str, Any],
    name: str,
    value: Mapping[str, Any] | None,
    *,
    nodes: Collection[str],
    queues: Collection[str],
    now: float,
) -> dict[str, Any]:
    """All reservations after one was made (``value``) or taken away (None); those that are over are forgotten.

    Raises:
        InvalidValue: it names what there is not, is over already, shares nodes with another at the same time, or
            there is none of that name to take away.
    """
    kept = {other: entry for other, entry in document.items() if entry["ends_at"] > now}
    if value is None:
        if name not in document:
            raise InvalidValue(f"there is no reservation {name}; hpcmesos reserve list shows all")
        kept.pop(name, None)
        return kept
    entry = _checked(name, value, nodes, queues, now)
    for other, there in kept.items():
        if other == name:
            raise InvalidValue(f"there is a reservation {name} already; take it away first")
        common = sorted(set(there["nodes"]) & set(entry["nodes"]))
        if common and there["starts_at"] < entry["ends_at"] and entry["starts_at"] < there["ends_at"]:
            raise InvalidValue(f"reservation {other} has {common[0]} at that time")
    return kept | {name: entry}


def _checked(
    name: str, value: Mapping[str, Any], nodes: Collection[str], queues: Collection[str], now: float
) -> dict[str, Any]:
    if not _NAME.fullmatch(name):
        raise InvalidValue(f"'{name}' is no name of a reservation: letters, digits, '.', '_' and '-'")
    starts_at, ends_at = float(value.get("starts_at") or now), float(value.get("ends_at") or 0.0)
    if ends_at <= max(starts_at, now):
        raise InvalidValue(f"reservation {name} must end after its start, and not in the past")
    lists = {word: _words(value.get(word) or ()) for word in _LISTS}
    if not lists["nodes"]:
        raise InvalidValue(f"reservation {name} needs nodes")
    for word, known in (("nodes", nodes), ("queues", queues)):
        for given in lists[word]:
            if given not in known:
                raise InvalidValue(f"reservation {name}: unknown {word.removesuffix('s')} {given}")
    note, by = str(value.get("note") or ""), str(value.get("by") or "")
    return {"starts_at": starts_at, "ends_at": ends_at, **lists, "note": note, "by": by}


def _words(values: Iterable[Any]) -> list[str]:
    return sorted({str(value) for value in values})
