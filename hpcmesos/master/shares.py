"""The tree of shares: projects, and users within them; what nobody set is one share. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpcmesos.errors import InvalidValue

_MOST = 1_000_000.0


def changed(document: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """The shares after a change: ``project``, ``user`` (absent: the project itself), ``shares`` (None: one again).

    Raises:
        InvalidValue: no number, a negative one, or a name with a slash.
    """
    project, user, shares = str(value.get("project") or ""), value.get("user"), value.get("shares")
    if "/" in project or "/" in str(user or ""):
        raise InvalidValue("names of projects and users hold no slash")
    kind, name = ("projects", project) if user is None else ("users", f"{project}/{user}")
    tree = {branch: dict(document.get(branch) or {}) for branch in ("projects", "users")}
    if shares is None:
        tree[kind].pop(name, None)
        return tree
    if isinstance(shares, bool) or not isinstance(shares, int | float) or not 0 <= shares <= _MOST:
        raise InvalidValue(f"shares={shares}: write a number from 0 to {_MOST:.0f}")
    tree[kind][name] = float(shares)
    return tree
