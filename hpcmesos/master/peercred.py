"""Who is at the other end of an API connection: the kernel's word on a unix socket, the certificate's under TLS.

uvicorn copies its application state into ``scope["state"]`` of each request; :class:`PeerProtocol` adds ``peer``, a
:class:`Peer`, for the connection that the request came by.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hpcmesos.master import peers

_UCRED = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Peer:
    """The caller's process on a unix socket (``uid`` set), or its TLS connection (``uid`` None)."""

    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    organization: str = ""  # O and CN of the client's certificate; empty: none was shown
    common_name: str = ""
    serial: str = ""  # of that certificate, hex
    address: str = ""  # the other end's of a TLS connection, as numbers
    vouched: list[str] = field(default_factory=list)
    """The user for whom a gateway has opened this connection; set once, by its first request."""
    reckon: Callable[[str], object] = lambda user: None
    """Has the connection count as that user's; from any thread."""


class PeerProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol that tells the application who is connected."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a full transport, as uvicorn has it
        super().connection_made(transport)
        self.app_state = {**self.app_state, "peer": identify(transport)}


def identify(transport: asyncio.BaseTransport) -> Peer:
    """The peer of a connected transport."""
    tls = transport.get_extra_info("ssl_object")
    if isinstance(tls, ssl.SSLObject | ssl.SSLSocket):
        shown = tls.getpeercert()
        organization, common_name = peers.peer_name(shown) or ("", "")
        address = str((transport.get_extra_info("peername") or ("",))[0])
        return Peer(
            organization=organization,
            common_name=common_name,
            serial=peers.serial(shown),
            address=address,
        )
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family != socket.AF_UNIX:
        return Peer()
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(credentials)
    return Peer(uid=uid, gid=gid, pid=pid)
