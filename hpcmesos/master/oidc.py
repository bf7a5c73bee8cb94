"""Users by OpenID Connect: the JWTs of a site's identity provider, checked by its published keys.

Rules: OpenID Connect Core 1.0 section 3.1.3.7, RFC 7519 (JWT), RFC 8725 (best current practice: the algorithm is ours
to choose, never the token's; issuer and audience are both checked).
"""

from __future__ import annotations

import http.client
import json
import logging
import ssl
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import jwt

from hpcmesos.errors import ConfigError, Unauthenticated

log = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures by a key that is not ours. None with a shared secret, and not "none"."""

_FRESH = 300.0  # seconds that keys are used without a look at the provider
_PAUSE = 10.0  # seconds between two looks for a key that is not known
_STALE = 86400.0  # seconds that keys serve while the provider does not answer
_TIMEOUT = 5.0
_LARGEST = 1 << 20  # bytes of the provider's documents
_LEEWAY = 30.0  # seconds that its clock and ours may differ
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a token says that we go by. ``expires_at``: epoch seconds."""

    user: str
    groups: frozenset[str]
    project: str
    expires_at: float


class Provider:
    """One issuer. Thread-safe; its keys are fetched when they are wanted."""

    def __init__(
        self,
        issuer: str,
        audience: str,
        *,
        user_claim: str = "preferred_username",
        groups_claim: str = "groups",
        project_claim: str = "",
        keys_url: str = "",
    ) -> None:
        """``issuer``: its URL, as tokens name it. ``keys_url``: of its JWK set; empty: as its discovery document says.

        Raises:
            ConfigError: no audience, or an address that is neither https nor this host's own.
        """
        if not audience:
            raise ConfigError("oidc_issuer is set, so oidc_audience must be: whom the tokens are for")
        self._issuer, self._audience = issuer, audience
        self._user_claim, self._groups_claim, self._project_claim = user_claim, groups_claim, project_claim
        self._keys_url = _checked(keys_url or issuer)
        self._discovers = not keys_url
        self._lock = threading.Lock()
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched = self._looked = float("-inf")

    def verify(self, token: str) -> Identity:
        """Raises Unauthenticated, in words that name no secret: forged, expired, for another audience, ..."""
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in ALGORITHMS:
                raise Unauthenticated("the token's signature algorithm is not accepted")
            claims = jwt.decode(
                token,
                self._key(header.get("kid")),
                algorithms=list(ALGORITHMS),
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated(f"the token is not accepted: {error}") from error
        return self._identity(claims)

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        user = claims.get(self._user_claim)
        if not isinstance(user, str) or not user:
            raise Unauthenticated(f"the token has no claim '{self._user_claim}' that names its user")
        groups = claims.get(self._groups_claim) or ()
        project = claims.get(self._project_claim) if self._project_claim else None
        return Identity(
            user=user,
            groups=frozenset(map(str, groups if isinstance(groups, list) else ())),
            project=project if isinstance(project, str) else "",
            expires_at=float(claims["exp"]),
        )

    def _key(self, kid: str | None) -> jwt.PyJWK:
        """The issuer's key of this name; a token without a name is for an issuer with one key."""
        with self._lock:
            now = time.monotonic()
            found = self._find(kid)
            if now - self._fetched >= (_FRESH if found else 0.0) and now - self._looked >= _PAUSE:
                self._looked = now
                self._fetch(now)
                found = self._find(kid)
        if found is None:
            raise Unauthenticated("the token is signed by a key that its issuer does not publish")
        return found

    def _find(self, kid: str | None) -> jwt.PyJWK | None:
        if kid is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(kid)

    def _fetch(self, now: float) -> None:
        """The issuer's keys as they are now; while it does not answer the old ones serve on."""
        try:
            if self._discovers:
                document = _get(self._keys_url.rstrip("/") + "/.well-known/openid-configuration")
                if document.get("issuer") != self._issuer:
                    raise ValueError(f"its discovery document is of issuer {document.get('issuer')}")
                self._keys_url, self._discovers = _checked(str(document["jwks_uri"])), False
            found = jwt.PyJWKSet.from_dict(_get(self._keys_url)).keys
        except (
            OSError,
            http.client.HTTPException,
            ValueError,
            KeyError,
            jwt.PyJWTError,
            ConfigError,
        ) as error:
            log.warning("keys of %s: %s", self._issuer, error)
            if now - self._fetched > _STALE:
                self._keys = {}
        else:
            self._keys = {key.key_id: key for key in found if key.public_key_use in (None, "sig")}
            self._fetched = now


def _get(url: str) -> dict[str, Any]:
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310  # see _checked
    with urllib.request.urlopen(request, timeout=_TIMEOUT, context=_context(url)) as response:  # noqa: S310  # same
        content = response.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f"{url} answers more than {_LARGEST} bytes")
    document = json.loads(content)
    if not isinstance(document, dict):
        raise ValueError(f"{url} answers no JSON object")
    return document


def _context(url: str) -> ssl.SSLContext | None:
    return ssl.create_default_context() if url.startswith("https:") else None


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOCAL):
        return url
    raise ConfigError(f"'{url}' of the OpenID provider is no https address")
