"""This master's certificate and what it trusts, as TLS contexts that follow the files without a restart."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from pathlib import Path

from hpcmesos.master import peers

log = logging.getLogger(__name__)

_PAUSE = 5.0
"""Seconds between two looks at the files."""


class Identity:
    """Certificate, key and trusted authorities. Connections that are open go on; the next ones use the new files.

    A context can learn to trust another authority, but not to forget one: so there are new ones each time.
    """

    def __init__(self, certificate: Path, key: Path, ca: Path) -> None:
        self._files = certificate, key, ca
        self._inner: dict[bool, ssl.SSLContext] = {}
        self._seen = self._stamps()
        self._read()

    def client(self) -> ssl.SSLContext:
        """For the next connection to a server of the cluster."""
        return self._client

    def server(self, *, require_client: bool) -> ssl.SSLContext:
        """For a listener, as long as it listens: each handshake is done with what holds by then."""
        outer = peers.server_context(*self._files, require_client=require_client)
        self._inner[require_client] = peers.server_context(*self._files, require_client=require_client)

        def choose(
            connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext
        ) -> None:
            connection.context = self._inner[require_client]

        outer.sni_callback = choose  # OpenSSL calls it without SNI, too
        return outer

    def look(self) -> bool:
        """Whether there was something new. Raises OSError, ssl.SSLError: it cannot be used; the old goes on."""
        if (stamps := self._stamps()) == self._seen:
            return False
        self._read()
        self._seen = stamps
        return True

    def _read(self) -> None:
        certificate, key, ca = self._files
        client = peers.client_context(ca, certificate, key)
        inner = {needed: peers.server_context(*self._files, require_client=needed) for needed in self._inner}
        digest = peers.digest(ca.read_text())
        self._client, self._inner, self.trusts = client, inner, digest

    def _stamps(self) -> list[tuple[int, int]]:
        found = [path.stat() for path in self._files]
        return [(status.st_mtime_ns, status.st_ino) for status in found]


async def keep_fresh(identity: Identity, changed: Callable[[], None] = lambda: None) -> None:
    """Looks again and again, until cancelled."""
    while True:
        await asyncio.sleep(_PAUSE)
        try:
            if identity.look():
                log.info("certificates are read again")
                changed()
        except (OSError, ssl.SSLError) as error:
            log.error("cannot use the new certificates: %s", error)
