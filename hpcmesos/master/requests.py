"""What every handler of the API asks of a request: the site's tools, and who is at the other end."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any, cast

import msgspec
from litestar import Request, WebSocket
from litestar.datastructures import State

from hpcmesos.errors import InvalidValue
from hpcmesos.master import auth
from hpcmesos.master.peercred import Peer
from hpcmesos.master.services.site import Site
from hpcmesos.model import Scope
from hpcmesos.queue.records import RequestKey

ApiRequest = Request[Any, Any, State]
ApiSocket = WebSocket[Any, Any, State]
_LONGEST_KEY = 255  # characters; an index holds it
OPEN: list[dict[str, list[str]]] = [{}]
"""``security`` of a handler that asks for no credential."""


def site_of(request: ApiRequest | ApiSocket) -> Site:
    return cast("Site", request.app.state.site)


def caller_of(request: ApiRequest | ApiSocket) -> auth.Caller:
    """Who is at the other end; Unauthenticated when nobody is known there."""
    site = site_of(request)
    authority = auth.Authority(
        site.settings, site.store, site.server.recent(), site.provider, site.revoked.recent
    )
    path = request.scope["raw_path"].decode("ascii", "replace")  # as it was sent, without the query
    purpose = f"{request.scope.get('method', 'GET')} {path}"  # a WebSocket begins with a GET
    return authority.identify(peer_of(request), request.headers.get("authorization"), purpose)


def actor_of(request: ApiRequest | ApiSocket) -> auth.Caller:
    """As caller_of(), for what changes something: a credential that is for reading only is refused."""
    caller = caller_of(request)
    auth.check_scope(caller, Scope.JOBS, "change anything")
    return caller


def keyed(caller: auth.Caller, key: str | None, *asked: Any) -> auth.Caller:
    """The caller of a request that may come again under ``key``; ``asked``: what it asks for, as JSON holds it. Raises
    InvalidValue.
    """
    if not key:
        return caller
    check_key(key)
    return replace(caller, key=RequestKey(key, hashlib.sha256(msgspec.json.encode(asked)).digest()))


def check_key(key: str) -> None:
    """Raises InvalidValue for one that no index holds."""
    if len(key) > _LONGEST_KEY:
        raise InvalidValue(f"the idempotency key has {len(key)} characters; at most {_LONGEST_KEY}")


def peer_of(request: ApiRequest | ApiSocket) -> Peer:
    peer: Peer = request.scope.get("state", {}).get("peer", Peer())
    return peer
