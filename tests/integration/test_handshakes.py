"""TLS connections on their way in: those that get nowhere keep nobody out, and no more are held than may be."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hpcmesos import handshakes
from hpcmesos.handshakes import Handshakes
from hpcmesos.master import peers, pki

HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"


class Greeting(asyncio.Protocol):
    """Says a word to whoever has come in."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(b"hello")
        transport.close()


@contextlib.asynccontextmanager
async def listening(place: Path) -> AsyncIterator[int]:
    """The port of one that listens at all addresses of this machine."""
    certificate, key = pki.ensure_certificate(pki.ensure_ca(place), place / "tls", "m", "master", [])
    tls = peers.server_context(certificate, key, place / "ca" / "ca.pem", require_client=False)
    with socket.create_server(("", 0)) as bound:
        door = Handshakes(bound, tls, Greeting)
        try:
            yield bound.getsockname()[1]
        finally:
            door.close()
            door.close()  # nothing more


async def greeted(place: Path, port: int, source: str) -> bytes:
    reader, writer = await asyncio.open_connection(
        HERE, port, ssl=peers.client_context(place / "ca" / "ca.pem"), local_addr=(source, 0)
    )
    said = await reader.read()
    writer.close()
    with contextlib.suppress(OSError, ssl.SSLError):
        await writer.wait_closed()
    return said


def held(port: int, source: str, count: int) -> list[socket.socket]:
    """Connections on which nothing is said."""
    return [socket.create_connection((HERE, port), 10, (source, 0)) for _ in range(count)]


def test_one_address_cannot_keep_another_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "MOST", 20)

    async def scenario() -> None:
        async with listening(tmp_path) as port:
            stuck = held(port, ELSEWHERE, 100)  # it may have ten
            assert await asyncio.wait_for(greeted(tmp_path, port, HERE), 10) == b"hello"
            assert await asyncio.wait_for(greeted(tmp_path, port, ELSEWHERE), 10) == b"hello"
            for one in stuck:
                one.close()

    asyncio.run(scenario())


def test_some_addresses_cannot_keep_another_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "MOST", 8)

    async def scenario() -> None:
        async with listening(tmp_path) as port:
            stuck = [one for number in range(2, 6) for one in held(port, f"127.0.0.{number}", 4)]
            assert (
                await asyncio.wait_for(greeted(tmp_path, port, HERE), 5) == b"hello"
            )  # none is over by then
            for one in stuck:
                one.close()

    asyncio.run(scenario())


def test_where_all_have_one_the_next_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many clients that come at once do not drive each other out."""
    monkeypatch.setattr(handshakes, "MOST", 4)
    monkeypatch.setattr(handshakes, "PATIENCE", 6.0)

    async def scenario() -> None:
        async with listening(tmp_path) as port:
            stuck = [one for number in range(2, 6) for one in held(port, f"127.0.0.{number}", 1)]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(greeted(tmp_path, port, HERE), 0.5)
            assert [is_open(one) for one in stuck] == [True] * 4
            assert await asyncio.wait_for(greeted(tmp_path, port, HERE), 30) == b"hello"  # once they are over
            for one in stuck:
                one.close()

    asyncio.run(scenario())


def is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return bool(connection.recv(1))
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
