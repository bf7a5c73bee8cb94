"""Credentials: bearer tokens of users, one-time tokens by which agents join, and the agents' certificates."""

from __future__ import annotations

import re
import time
from datetime import timedelta

from hpcmesos.api_schema import JoinReply, JoinRequest, RevokeRequest, TokenReply, TokenRequest, TokenStatus
from hpcmesos.errors import InvalidValue
from hpcmesos.master import auth, peers, pki
from hpcmesos.master.auth import Caller
from hpcmesos.master.services import certificates
from hpcmesos.master.services.site import Site
from hpcmesos.model import Role, Scope

_TOKENS = {"agent": "join", "gateway": "gateway"}
"""What joins, and the kind of the token by which it does."""
_LONGEST = 10 * 365 * 86400.0  # seconds
MOST = 1000
"""Tokens of one user that are good at once."""
_NODE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})(?:\.[A-Za-z0-9-]{1,63}){0,8}", re.ASCII)


def create(site: Site, caller: Caller, request: TokenRequest) -> TokenReply:
    """A new token, shown this once. Users make bearer tokens for themselves; all others are the managers' to make.

    Raises:
        Unauthorized: the caller may not make this one.
        InvalidValue: an unknown kind, a malformed name or lifetime; too many of them.
    """
    if not 0 < request.lifetime <= _LONGEST:
        raise InvalidValue(f"a token's lifetime is more than 0 and at most {_LONGEST:.0f} seconds")
    auth.check_scope(caller, Scope.ALL, "make tokens")
    if request.scope not in tuple(Scope):
        raise InvalidValue(f"unknown scope '{request.scope[:40]}'; one of {', '.join(Scope)}")
    match request.kind:
        case "user":
            user = check_user(request.user or caller.user)
            if user != caller.user:
                auth.check_manager(caller, "make tokens for other users")
            site.rates.take(caller.user, 1)
            _check_room(site, user)
            token = _store(site, caller, "user", user, None, request.lifetime, request.scope)
        case "join" | "gateway":
            auth.check_manager(caller, "make join tokens")
            node = check_node(request.node) if request.node is not None else None
            secret = _store(site, caller, request.kind, None, node, request.lifetime)
            token = f"{pki.fingerprint(certificates.authority(site))}.{secret}"
        case other:
            raise InvalidValue(f"unknown kind of token '{other}'; one of user, join, gateway")
    return TokenReply(token=token, kind=request.kind, expires_at=_end(caller, request.lifetime))


def _check_room(site: Site, user: str) -> None:
    if len(site.store.tokens(user)) >= MOST:
        raise InvalidValue(
            f"{user} has {MOST} tokens, the most that one may have: hpcmesos token list, hpcmesos token revoke"
        )


def join(site: Site, request: JoinRequest, via: str) -> JoinReply:
    """Gives an agent, or a gateway, its certificate for a one-time token of that kind.

    The request is read first and signed only once the token is used up, so that no token is lost to a malformed
    request, and nothing is signed for anybody without one.

    Raises:
        Unauthenticated: the token is unknown, used, expired, or another node's.
        InvalidValue: a malformed node name or certificate request.
    """
    if request.role not in _TOKENS:
        raise InvalidValue(f"unknown role '{request.role[:40]}'; one of {', '.join(_TOKENS)}")
    node = check_node(request.node)
    ca = certificates.authority(site)
    asked = pki.read_csr(request.csr, node)
    site.store.consume_join_token(request.token.rpartition(".")[2], node, via, _TOKENS[request.role])
    if request.role == "gateway":
        site.store.deliveries.enrol(node)
    certificate = certificates.sign(site, ca, asked, request.role)
    # It writes all that it is given before it uses any of it.
    certificates.record(site, ca, node, certificate, via, peers.digest(ca.trusted), request.role)
    return JoinReply(certificate=certificate, ca=ca.trusted, cluster=site.settings.cluster)


def check_node(name: str) -> str:
    """A name that can stand in host files and certificates.

    Raises:
        InvalidValue: letters, digits, hyphens and dots only, as host names.
    """
    if not _NODE_NAME.fullmatch(name):
        raise InvalidValue(
            f"'{ascii(name[:40])[1:-1]}' is no node name; letters, digits, hyphens and dots, as host names"
        )
    return name


def check_user(name: str) -> str:
    """Raises InvalidValue unless ``name`` could be a user's."""
    if not auth.USER_NAME.fullmatch(name):
        raise InvalidValue(f"'{ascii(name[:40])[1:-1]}' is no user name")
    return name


def listing(site: Site, caller: Caller) -> list[TokenStatus]:
    """Tokens that are good: a manager sees all, others their own."""
    whose = None if caller.role is Role.MANAGER else caller.user
    return [
        TokenStatus(
            id=token.id,
            kind=token.kind,
            user=token.user,
            node=token.node,
            scope=token.scope,
            created_by=token.created_by,
            created_via=token.created_via,
            created_at=token.created_at.timestamp(),
            expires_at=token.expires_at.timestamp(),
            used_at=token.used_at.timestamp() if token.used_at else None,
        )
        for token in site.store.tokens(whose)
    ]


def revoke(site: Site, caller: Caller, request: RevokeRequest) -> list[str]:
    """Ends tokens at once, and those that were made by them; answers what was ended.

    Raises:
        Unauthorized: the caller's credential is too narrow.
        InvalidValue: none of them is a good token that the caller may end.
    """
    auth.check_scope(caller, Scope.ALL, "revoke tokens")
    whose = None if caller.role is Role.MANAGER else caller.user
    ended = site.store.revoke_tokens(request.ids, whose, caller.user or "master", caller.via)
    if not ended:
        raise InvalidValue("no such token of yours that is still good: see hpcmesos token list")
    return ended


def _store(
    site: Site,
    caller: Caller,
    kind: str,
    user: str | None,
    node: str | None,
    lifetime: float,
    scope: str = Scope.ALL,
) -> str:
    return site.store.create_token(
        kind,
        user,
        node,
        timedelta(seconds=lifetime),
        caller.user or "master",
        scope=Scope(scope),
        parent=caller.token,
        until=caller.expires_at,
        via=caller.via,
    )


def _end(caller: Caller, lifetime: float) -> float:
    """Epoch seconds; no token outlives the one by which it is made."""
    end = time.time() + lifetime
    return end if caller.expires_at is None else min(end, caller.expires_at.timestamp())
