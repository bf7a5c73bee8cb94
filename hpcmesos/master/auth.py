"""Who calls, and what that one may do. Identity comes from the connection, never from a field of the request.

unix socket: the kernel tells the uid, its *name* on this host counts. TLS: a bearer token of a user, or a certificate
of our authority: an agent (O=agent) or another master (O=master). uid 0 is nobody special: the settings name managers.
"""

from __future__ import annotations

import pwd
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType

from hpcmesos.config import MasterSettings
from hpcmesos.errors import RootRefused, Unauthenticated, Unauthorized
from hpcmesos.master.peercred import Peer
from hpcmesos.model import Role, Scope
from hpcmesos.queue.store import Store

NO_ATTRIBUTES: Mapping[str, str] = MappingProxyType({})

_BEARER = "bearer "
_SCOPES = tuple(Scope)  # from the least to the most


@dataclass(frozen=True, slots=True)
class Caller:
    """``user`` is empty for an agent, whose ``node`` is set, and for a master."""

    user: str
    role: Role = Role.USER
    node: str | None = None
    local: bool = False  # on this host, by its unix socket
    scope: Scope = Scope.ALL
    via: str = ""  # the credential and where it came from, for who reads what happened
    token: str | None = None  # id of the bearer token
    expires_at: datetime | None = None  # until when the credential is good; None: no limit

    @property
    def privileged(self) -> bool:
        """Operators and managers."""
        return self.role is not Role.USER

    def may_touch(self, owner: str) -> bool:
        """Whether the caller may change a job of ``owner`` and read what it holds."""
        return self.privileged or (self.user != "" and self.user == owner)


def identify(
    peer: Peer,
    authorization: str | None,
    settings: MasterSettings,
    store: Store,
    server: Mapping[str, str] = NO_ATTRIBUTES,
) -> Caller:
    """The caller on this connection. ``server``: its attributes; they may name managers and operators beside ours.

    Raises:
        Unauthenticated: no credential, or a wrong one.
    """
    if peer.uid is not None:
        via = f"socket uid {peer.uid} pid {peer.pid}"
        return replace(_user(_name_of(peer.uid), settings, server), local=True, via=via)
    if authorization is not None:
        return _bearer(authorization, peer, settings, store, server)
    via = f"certificate of {peer.organization} {peer.common_name} from {peer.address}"
    if peer.organization == "master":
        return Caller("", Role.MANAGER, via=via)
    if peer.organization == "agent" and peer.common_name:
        return Caller("", Role.USER, peer.common_name, via=via)
    raise Unauthenticated(
        "no credential: send a bearer token, or use the unix socket on a host of the cluster"
    )


def check_may_submit(caller: Caller, settings: MasterSettings) -> None:
    """Whether the caller may have jobs at all.

    Raises:
        RootRefused: root, and the site does not run root's jobs.
        Unauthorized: no user, or the cluster serves one other user only.
    """
    if not caller.user:
        raise Unauthorized("only users may submit jobs")
    if caller.user == "root" and not settings.root_jobs:
        raise RootRefused("qsub can not be run as root")
    if settings.single_user and caller.user != settings.single_user:
        raise Unauthorized(f"this cluster runs jobs of user {settings.single_user} only")


def check_scope(caller: Caller, wanted: Scope, what: str) -> None:
    """Raises Unauthorized when the caller's credential is good for less than ``wanted``."""
    if _SCOPES.index(caller.scope) < _SCOPES.index(wanted):
        raise Unauthorized(f"a token of scope '{caller.scope}' does not allow to {what}")


def check_manager(caller: Caller, what: str) -> None:
    """Raises Unauthorized unless the caller is a manager."""
    if caller.role is not Role.MANAGER:
        raise Unauthorized(f"only managers may {what}")


def check_operator(caller: Caller, what: str) -> None:
    """Raises Unauthorized unless the caller is an operator or a manager."""
    if not caller.privileged:
        raise Unauthorized(f"only operators may {what}")


def _user(name: str, settings: MasterSettings, server: Mapping[str, str]) -> Caller:
    if name in settings.managers or _listed(name, server.get("managers", "")):
        return Caller(name, Role.MANAGER)
    operator = name in settings.operators or _listed(name, server.get("operators", ""))
    return Caller(name, Role.OPERATOR if operator else Role.USER)


def _listed(name: str, users: str) -> bool:
    """Whether ``user@host,...`` names the user; users are the same on all hosts of a cluster."""
    return name in (entry.partition("@")[0].strip() for entry in users.split(","))


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise Unauthenticated(f"user id {uid} has no name on this host") from None


def _bearer(
    authorization: str, peer: Peer, settings: MasterSettings, store: Store, server: Mapping[str, str]
) -> Caller:
    """The user of a token; one of less than full scope gives no role."""
    if not authorization.lower().startswith(_BEARER):
        raise Unauthenticated("write 'Authorization: Bearer TOKEN'")
    token = store.verify_token(authorization[len(_BEARER) :].strip())
    if not token.user:
        raise Unauthenticated("this token is no user's")
    via = f"token {token.id} from {peer.address}"
    caller = replace(
        _user(token.user, settings, server),
        scope=token.scope,
        via=via,
        token=token.id,
        expires_at=token.expires_at,
    )
    return caller if token.scope is Scope.ALL else replace(caller, role=Role.USER)
