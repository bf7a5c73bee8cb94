"""The doors between nodes: mutually authenticated TLS, one connection for one thing."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from hpcmesos.handshakes import Handshakes
from hpcmesos.launch import own_log, protocol
from hpcmesos.launch.channel import MOST_UNREAD, Channel
from hpcmesos.launch.settings import Config

FIRST_WORD = 10.0
"""Seconds within which a connection has to be made, and to say what it is for."""
_RELOAD = 10.0
"""Seconds after which renewed certificates are looked for."""
_BACKLOG = 1024


class PeerError(Exception):
    """A peer cannot be reached, or is not who it should be."""


class Identity(tuple[str, str]):
    """(organization, common name) of a certificate."""

    @classmethod
    def of(cls, channel: Channel) -> Identity:
        certificate: dict[str, Any] = channel.peer("peercert") or {}
        names = dict(pair for part in certificate.get("subject", ()) for pair in part)
        return cls((names.get("organizationName", ""), names.get("commonName", "")))


class Peers:
    """Listens for the other nodes and the masters, and dials other nodes."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._seen = self._stamps()
        self._server_side, self._client_side = self._contexts()
        self.port = 0

    def _contexts(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        """For those who dial us, and for dialling, by what the files say now: a context forgets no authority."""
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False  # certificates name nodes, not addresses; `dial` looks
        server.options |= ssl.OP_NO_TICKET  # nobody comes back by a certificate of a dropped authority
        server.num_tickets = 0
        for context in (server, client):
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.verify_mode = ssl.CERT_REQUIRED
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a site's own authority is below others
            context.load_verify_locations(self._config.ca)
            context.load_cert_chain(self._config.certificate, self._config.key)
        return server, client

    async def listen(
        self, answer: Callable[[Channel, Identity, dict[str, Any]], Awaitable[None]]
    ) -> Handshakes:
        """Serves ``answer`` with each connection's identity and first message. Raises OSError."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            channel = Channel(reader, writer)
            channel.most_unread = MOST_UNREAD
            try:
                async with asyncio.timeout(FIRST_WORD):
                    request = await channel.hear()
                if request:
                    await answer(channel, Identity.of(channel), request)
            except TimeoutError:
                pass
            except (protocol.FrameError, KeyError, TypeError, ValueError) as error:
                own_log.write(f"peer {Identity.of(channel)}: bad request: {error!r}")
            finally:
                channel.close()

        def choose(
            connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext
        ) -> None:
            connection.context = self._server_side

        listening, _ = self._contexts()
        listening.sni_callback = (
            choose  # OpenSSL calls it without SNI, too: each handshake by what holds by then
        )

        def stream() -> asyncio.BaseProtocol:
            return asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=2 * protocol.CHUNK), serve)

        bound = await _bind(self._config.address, self._config.peer_port)
        self.port = bound.getsockname()[1]
        asyncio.get_running_loop().call_later(_RELOAD, self._reload)
        return Handshakes(bound, listening, stream)

    def _reload(self) -> None:
        try:
            if (stamps := self._stamps()) != self._seen:
                self._server_side, self._client_side = self._contexts()
                self._seen = stamps
        except OSError as error:  # ssl.SSLError among them; the old ones go on
            own_log.write(f"cannot read renewed certificates: {error}")
        asyncio.get_running_loop().call_later(_RELOAD, self._reload)

    def _stamps(self) -> list[tuple[int, int]]:
        """Of the files: what changes when they are replaced."""
        paths = (self._config.certificate, self._config.key, self._config.ca)
        found = [os.stat(path) for path in paths]
        return [(status.st_mtime_ns, status.st_ino) for status in found]

    async def dial(self, member: dict[str, Any]) -> Channel:
        """A connection to that member of a gang.

        Raises:
            PeerError: it does not answer within `FIRST_WORD` seconds, or with another node's certificate.
        """
        node, address, port = member["node"], member["address"], member["peer_port"]
        try:
            async with asyncio.timeout(FIRST_WORD):
                reader, writer = await asyncio.open_connection(
                    address, port, ssl=self._client_side, limit=2 * protocol.CHUNK
                )
        except (OSError, TimeoutError) as error:
            reason = getattr(error, "strerror", None) or str(error) or "no answer"
            raise PeerError(f"cannot reach {node} at {address}:{port}: {reason}") from error
        channel = Channel(reader, writer)
        channel.most_unread = MOST_UNREAD
        if (identity := Identity.of(channel)) != ("agent", node):
            channel.close()
            raise PeerError(
                f"{address}:{port} should be {node} and shows a certificate of {'/'.join(identity)}"
            )
        return channel


async def _bind(address: str, port: int) -> socket.socket:
    """Listens there; 0: at any free port. Raises OSError."""
    loop = asyncio.get_running_loop()
    [(family, kind, number, _, where), *_] = await loop.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    bound = socket.socket(family, kind, number)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
        bound.listen(_BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound
