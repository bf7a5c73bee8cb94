"""Users' secrets: kept sealed, given to their owner's jobs as files, never shown again."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from hpcmesos.api_schema import SecretRequest, SecretStatus
from hpcmesos.errors import InvalidValue, StateError, Unauthorized
from hpcmesos.launch.secrets import NAME
from hpcmesos.master import vault
from hpcmesos.master.auth import Caller
from hpcmesos.master.services.site import Site

LARGEST = 64 * 1024
"""Bytes of one secret."""
MOST = 100
"""Secrets of one user."""


def put(site: Site, caller: Caller, name: str, request: SecretRequest) -> SecretStatus:
    """Keeps a secret, in place of an older one of this name.

    Raises:
        Unauthorized: the caller is no user.
        InvalidValue: a name that is no file name, a value that is empty, too large or not base64; too many of them.
    """
    user = _user(caller)
    if not NAME.fullmatch(name):
        raise InvalidValue("a secret's name has letters, digits, _ . and -, at most 64")
    try:
        value = base64.b64decode(request.value, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidValue("the secret's value is not base64") from None
    if not 0 < len(value) <= LARGEST:
        raise InvalidValue(f"a secret has 1 to {LARGEST} bytes")
    known = {secret.name for secret in site.store.secrets(user)}
    if name not in known and len(known) >= MOST:
        raise InvalidValue(f"{user} has {MOST} secrets, the most that one may have")
    site.rates.take(user, 1)
    site.store.put_secret(user, name, vault.seal(_state(site), user, name, value), caller.via)
    return next(secret for secret in listing(site, caller) if secret.name == name)


def listing(site: Site, caller: Caller) -> list[SecretStatus]:
    """Names and times of the caller's own."""
    return [
        SecretStatus(name=one.name, changed_at=one.changed_at.timestamp())
        for one in site.store.secrets(_user(caller))
    ]


def remove(site: Site, caller: Caller, name: str) -> list[SecretStatus]:
    """Takes it away; jobs that want it and have not begun cannot begin. Raises InvalidValue: there is none."""
    site.rates.take(_user(caller), 1)
    if not site.store.remove_secret(_user(caller), name, caller.via):
        raise InvalidValue(f"you have no secret '{ascii(name[:40])[1:-1]}'")
    return listing(site, caller)


def check(site: Site, user: str, names: tuple[str, ...]) -> None:
    """Raises InvalidValue: the user has no such secret."""
    if names:
        known = {secret.name for secret in site.store.secrets(user)}
        for name in names:
            if name not in known:
                raise InvalidValue(f"you have no secret '{name[:40]}': hpcmesos secret set {name[:40]}")


def _user(caller: Caller) -> str:
    if not caller.user:
        raise Unauthorized("only users have secrets")
    return caller.user


def _state(site: Site) -> Path:
    if site.ca_state is None:
        raise StateError("this master keeps no secrets")
    return site.ca_state
