"""Who calls, and what that one may do. Identity comes from the connection, never from a field of the request.

unix socket: the kernel tells the uid, its *name* on this host counts. TLS: a bearer token of a user, ours or the site's
OpenID provider's; a MUNGE credential; or a certificate of our authority: an agent (O=agent), another master
(O=master), or the gateway of a login host (O=gateway), which asks the kernel there. uid 0 is nobody special: the
settings, the server's attributes and groups name managers and operators.
"""

from __future__ import annotations

import grp
import hmac
import os
import pwd
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from hpcmesos import munge
from hpcmesos.config import MasterSettings
from hpcmesos.errors import RootRefused, Unauthenticated, Unauthorized
from hpcmesos.master.oidc import Provider
from hpcmesos.master.peercred import Peer
from hpcmesos.model import Role, Scope
from hpcmesos.queue.records import RequestKey
from hpcmesos.queue.store import Store

_DOTS_OF_JWT = 2  # RFC 7515; our own tokens have none
USER_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.$-]{0,63}", re.ASCII)
_SCOPES = tuple(Scope)  # from the least to the most


@dataclass(frozen=True, slots=True)
class Caller:
    """``user`` is empty for an agent, whose ``node`` is set, for a gateway that asks for itself, and for a master."""

    user: str
    role: Role = Role.USER
    node: str | None = None
    gateway: str | None = None  # of a gateway that asks for itself
    host: str = ""  # where the user is, on the word of that host's gateway
    local: bool = False  # on this host, by its unix socket
    scope: Scope = Scope.ALL
    address: str = ""  # the other end's of a TLS connection
    via: str = ""  # the credential and where it came from, for who reads what happened
    serial: str = ""  # of a node's certificate
    token: str | None = None  # id of the bearer token
    project: str = ""  # of jobs that name none
    expires_at: datetime | None = None  # until when the credential is good; None: no limit
    key: RequestKey | None = None  # of what is asked for; None: asked again, it is done again

    @property
    def privileged(self) -> bool:
        """Operators and managers."""
        return self.role is not Role.USER

    def may_touch(self, owner: str) -> bool:
        """Whether the caller may change a job of ``owner`` and read what it holds."""
        return self.privileged or (self.user != "" and self.user == owner)


@dataclass(frozen=True, slots=True)
class Authority:
    """What calls are judged by. ``server``: its attributes; they may name more managers and operators."""

    settings: MasterSettings
    store: Store
    server: Mapping[str, str] = field(default_factory=dict)
    provider: Provider | None = None
    revoked: Callable[[], Collection[str]] = tuple  # serials of certificates that are good no more

    def identify(self, peer: Peer, authorization: str | None, purpose: str = "") -> Caller:
        """The caller on this connection. ``purpose``: what a MUNGE credential has to be for, METHOD and path.

        Raises:
            Unauthenticated: no credential, or a wrong one.
        """
        if peer.uid is not None:
            via = f"socket uid {peer.uid} pid {peer.pid}"
            return replace(self._user(_name_of(peer.uid)), local=True, via=via)
        if peer.organization == "gateway" and peer.common_name:
            return self._by_gateway(peer)
        if authorization is not None:
            return replace(self._shown(authorization, peer, purpose), address=peer.address)
        via = f"certificate of {peer.organization} {peer.common_name} from {peer.address}"
        if peer.organization == "master":
            return Caller("", Role.MANAGER, via=via)
        if peer.organization == "agent" and peer.common_name:
            if peer.serial in self.revoked():
                raise Unauthenticated(f"the certificate of node {peer.common_name} is revoked")
            return Caller("", Role.USER, peer.common_name, via=via, serial=peer.serial)
        raise Unauthenticated(
            "no credential: HPCMESOS_TOKEN_FILE names a bearer token's file; on a host of the cluster none is needed"
        )

    def _by_gateway(self, peer: Peer) -> Caller:
        """Whom the gateway of a login host has vouched for on this connection, or the gateway itself."""
        host = peer.common_name
        if peer.serial in self.revoked():
            raise Unauthenticated(f"the certificate of gateway {host} is revoked")
        via = f"gateway {host} from {peer.address}"
        if peer.vouched:
            return replace(self._user(peer.vouched[0]), via=via, host=host)
        return Caller("", Role.USER, gateway=host, via=via, serial=peer.serial)

    def _shown(self, authorization: str, peer: Peer, purpose: str) -> Caller:
        scheme, _, credential = authorization.partition(" ")
        credential = credential.strip()
        if scheme.lower() == "munge" and self.settings.munge:
            return self._by_munge(credential, peer, purpose)
        if scheme.lower() != "bearer":
            raise Unauthenticated("write 'Authorization: Bearer TOKEN'")
        if self.provider is not None and credential.count(".") == _DOTS_OF_JWT:
            return self._by_jwt(credential, peer, self.provider)
        return self._by_token(credential, peer)

    def _by_munge(self, credential: str, peer: Peer, purpose: str) -> Caller:
        user, payload = munge.decode(credential, self.settings.munge_socket)
        if not hmac.compare_digest(payload, purpose.encode()):
            raise Unauthenticated("the MUNGE credential was made for another request")
        return replace(self._user(user), via=f"MUNGE from {peer.address}")

    def _by_jwt(self, credential: str, peer: Peer, provider: Provider) -> Caller:
        found = provider.verify(credential)
        if not USER_NAME.fullmatch(found.user):
            raise Unauthenticated("the token's user is no user name")
        return replace(
            self._user(found.user, found.groups),
            via=f"JWT from {peer.address}",
            project=found.project,
            expires_at=datetime.fromtimestamp(found.expires_at, UTC),
        )

    def _by_token(self, credential: str, peer: Peer) -> Caller:
        """The user of a token; one of less than full scope gives no role."""
        token = self.store.verify_token(credential)
        if not token.user:
            raise Unauthenticated("this token is no user's")
        caller = replace(
            self._user(token.user),
            scope=token.scope,
            via=f"token {token.id} from {peer.address}",
            token=token.id,
            expires_at=token.expires_at,
        )
        return caller if token.scope is Scope.ALL else replace(caller, role=Role.USER)

    def _user(self, name: str, groups: Collection[str] | None = None) -> Caller:
        """``groups``: those that a claim names; None: the user's on this host."""
        settings = self.settings
        if groups is None:
            groups = _groups_of(name) if settings.manager_groups or settings.operator_groups else ()

        def holds(users: Collection[str], attribute: str, of_role: Collection[str]) -> bool:
            listed = _listed(name, self.server.get(attribute, ""))
            return name in users or listed or not set(of_role).isdisjoint(groups)

        if holds(settings.managers, "managers", settings.manager_groups):
            return Caller(name, Role.MANAGER)
        operator = holds(settings.operators, "operators", settings.operator_groups)
        return Caller(name, Role.OPERATOR if operator else Role.USER)


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


def _listed(name: str, users: str) -> bool:
    """Whether ``user@host,...`` names the user; users are the same on all hosts of a cluster."""
    return name in (entry.partition("@")[0].strip() for entry in users.split(","))


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise Unauthenticated(f"user id {uid} has no name on this host") from None


def _groups_of(name: str) -> frozenset[str]:
    """Names of the user's groups on this host; none for who is unknown here."""
    try:
        ids = os.getgrouplist(name, pwd.getpwnam(name).pw_gid)
    except KeyError:
        return frozenset()
    return frozenset(group for group in map(_group_name, ids) if group)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""
