"""Reservations and shares: what operators and managers make, and who has used how much of what is due to them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from hpcmesos import api_schema
from hpcmesos.errors import InvalidValue
from hpcmesos.gang.fair import decayed, standings
from hpcmesos.master import auth, reservations, shares
from hpcmesos.master.auth import Caller
from hpcmesos.master.services import wishes
from hpcmesos.master.services.site import Site
from hpcmesos.master.usage import accounts
from hpcmesos.queue import documents

_HOUR = 3600.0


def list_reservations(site: Site) -> list[api_schema.Reservation]:
    """Those that are not over, the first to begin first."""
    kept = site.store.documents().get(documents.RESERVATIONS) or {}
    now = time.time()
    found = [
        api_schema.Reservation(name=name, **entry) for name, entry in kept.items() if entry["ends_at"] > now
    ]
    return sorted(found, key=lambda one: (one.starts_at, one.name))


def reserve(site: Site, caller: Caller, wanted: api_schema.ReservationRequest) -> api_schema.Reservation:
    """Keeps nodes for a time. Raises Unauthorized, InvalidValue; then nothing is kept."""
    auth.check_operator(caller, "reserve nodes")
    value = {
        "starts_at": wanted.starts_at or time.time(),
        "ends_at": wanted.ends_at,
        "nodes": wanted.nodes or [view.name for view in site.nodes.fresh().nodes],
        "users": wanted.users,
        "queues": wanted.queues,
        "note": wanted.note,
        "by": caller.user,
    }
    _change_reservations(site, caller, wanted.name, "create", value)
    made = next((one for one in list_reservations(site) if one.name == wanted.name), None)
    if made is None or not _is_what(made, wanted, caller.user):
        raise InvalidValue(
            f"reservation {wanted.name}: the leader has not taken it yet, or others were quicker;"
            " hpcmesos reserve list shows all"
        )
    return made


def _is_what(made: api_schema.Reservation, wanted: api_schema.ReservationRequest, user: str) -> bool:
    """Whether it is the one that the user wanted: another of that name may have been quicker.

    What he left open is not compared, for a second try of his finds what the first one made of it.
    """
    asked: dict[str, object] = {
        "by": user,
        "ends_at": wanted.ends_at,
        "note": wanted.note,
        "users": sorted(set(wanted.users)),
        "queues": sorted(set(wanted.queues)),
    }
    if wanted.starts_at:
        asked["starts_at"] = wanted.starts_at
    if wanted.nodes:
        asked["nodes"] = sorted(set(wanted.nodes))
    return all(getattr(made, name) == value for name, value in asked.items())


def unreserve(site: Site, caller: Caller, name: str) -> None:
    """Takes a reservation away. Raises Unauthorized, InvalidValue."""
    auth.check_operator(caller, "take reservations away")
    _change_reservations(site, caller, name, "delete", None)


def _change_reservations(
    site: Site, caller: Caller, name: str, action: str, value: Mapping[str, Any] | None
) -> None:
    """Wishes it, if the leader would do it. Raises InvalidValue."""
    try:
        reservations.changed(
            site.store.documents().get(documents.RESERVATIONS) or {},
            name,
            value,
            nodes={view.name for view in site.nodes.fresh().nodes},
            queues=site.queues.fresh(),
            now=time.time(),
        )
    except InvalidValue:
        if site.wished(caller, "reservation") is None:
            raise
        return  # what the first try did is no reason to refuse the second
    _wish(site, caller, "reservation", name, action, value)


def list_shares(site: Site) -> list[api_schema.ShareStatus]:
    """Everybody who has used something or has shares set, by project and user."""
    kept = site.store.documents()
    tree, usage = kept.get(documents.SHARES) or {}, kept.get(documents.USAGE) or {}
    passed = max(0.0, time.time() - float(usage.get("at", 0.0)))
    used = {
        (project, user): decayed(float(amount), passed)
        for project, user, amount in usage.get("accounts") or ()
    }
    for name in tree.get("users") or {}:
        project, _, user = name.partition("/")
        used.setdefault((project, user), 0.0)
    of_projects = tree.get("projects") or {}
    listed = accounts(used, tree)
    found = standings(listed, of_projects)
    return [
        api_schema.ShareStatus(
            project=account.project,
            user=account.user,
            project_shares=float(of_projects.get(account.project, 1.0)),
            shares=account.shares,
            gpu_hours=account.usage / _HOUR,
            usage=found[account.project, account.user].usage,
            target=found[account.project, account.user].share,
            factor=found[account.project, account.user].factor,
        )
        for account in listed
    ]


def set_shares(site: Site, caller: Caller, wanted: api_schema.ShareRequest) -> None:
    """Gives a project, or a user in it, so many shares. Raises Unauthorized, InvalidValue."""
    auth.check_manager(caller, "set shares")
    value = {"project": wanted.project, "user": wanted.user, "shares": wanted.shares}
    shares.changed({}, value)
    _wish(site, caller, "shares", wanted.project, "set", value)


def _wish(
    site: Site, caller: Caller, kind: str, name: str, action: str, value: Mapping[str, Any] | None
) -> None:
    payload = {"kind": kind, "name": name, "action": action, "value": value}
    sent = site.wish(caller, wishes.OBJECT, None, payload, kind)
    site.notifier.poke()
    wishes.await_taken(site.store, [sent])
