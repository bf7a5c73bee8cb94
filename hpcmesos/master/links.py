"""The leader's listener: one link per agent, and questions of API processes.

Runs on the event loop of the leader's main thread. Decides nothing: every message becomes an event of the planner.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import cast

import msgspec

from hpcmesos import wire
from hpcmesos.errors import ConfigError, ProtocolError
from hpcmesos.handshakes import Handshakes
from hpcmesos.master import links_client
from hpcmesos.master.events import Asked, Event, LinkDown, LinkUp, Received
from hpcmesos.master.peers import peer_name, serial

log = logging.getLogger(__name__)

_BACKLOG = 4096
_HELLO_TIMEOUT = 10.0
_ALIVE = 5.0  # seconds of silence after which an agent may have another one in its place
_LAST_PORT = 65535
_MAX_UNSENT = 64 * 1024 * 1024  # bytes waiting for an agent that does not read, until its link is given up

Sink = Callable[[Event], None]


def parted(address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``. Raises ConfigError."""
    host, colon, port = address.rpartition(":")
    number = colon and port.isascii() and port.isdigit() and len(port) <= len(str(_LAST_PORT))
    if not number or int(port) > _LAST_PORT:
        raise ConfigError(f"'{address}' is no address to listen at; write HOST:PORT, e.g. 0.0.0.0:7600")
    return host.strip("[]"), int(port)


def bind(listen: str) -> tuple[socket.socket, str]:
    """Binds ``host:port`` without listening yet; returns the socket and the address where others reach it.

    Raises:
        ConfigError: it is no address. OSError: it is taken, or not this host's; says which.
    """
    host, port = parted(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named, not 0: asyncio turns Nagle's algorithm off (40 ms) only where it sees that a connection is TCP.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"cannot listen at {listen}: {error.strerror}") from error
    shown = socket.getfqdn() if host in ("", "0.0.0.0", "::") else host  # noqa: S104  (compared, not bound)
    return (
        bound,
        f"[{shown}]:{bound.getsockname()[1]}" if ":" in shown else f"{shown}:{bound.getsockname()[1]}",
    )


class Links:
    """All links; made and closed on the event loop, ``send`` and ``drop`` from any thread."""

    def __init__(self, welcome: wire.Welcome, silence: float, sink: Sink) -> None:
        self.welcome = welcome
        self.silence = silence
        self.sink = sink
        self.nodes: dict[str, Connection] = {}
        self.numbers = itertools.count(1)
        self._open: set[Connection] = set()
        self._loop = asyncio.get_running_loop()
        self._server: Handshakes | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._nonce = 0
        self._warned = False
        self.revoked: frozenset[str] = frozenset()
        self.trusts = ""  # digest of the certificate authorities, told with each ping

    async def start(self, bound: socket.socket, tls: ssl.SSLContext) -> None:
        """Listens on a bound socket."""
        bound.listen(_BACKLOG)
        self._server = Handshakes(bound, tls, lambda: Connection(self))
        self._tick()

    def refuse(self, serials: frozenset[str]) -> None:
        """Certificates that are good no more: their links end now, and none begins."""
        if serials == self.revoked:
            return
        self.revoked = serials
        for connection in list(self._open):
            if connection.serial in serials:
                connection.reject("this node's certificate is revoked")

    def hand_over(self, leader: str) -> None:
        """Stops listening and tells every agent where its next leader listens."""
        self._stop()
        for connection in list(self.nodes.values()):
            connection.reject("another master leads now", leader)

    def close(self) -> None:
        """Stops listening and parts from everybody."""
        self._stop()
        for connection in list(self._open):
            connection.abort("the leader stops")

    def _stop(self) -> None:
        if self._ticker:
            self._ticker.cancel()
        if self._server:
            self._server.close()

    def send(self, messages: Iterable[tuple[str, wire.ToAgent]]) -> None:
        """Sends each message to its node, in order; those to nodes without a link are lost, as on a real wire."""
        frames: dict[str, list[bytes]] = {}
        for node, message in messages:
            frames.setdefault(node, []).append(wire.encode(message))
        if frames:
            self._loop.call_soon_threadsafe(
                self._deliver, {n: b"".join(parts) for n, parts in frames.items()}
            )

    def _deliver(self, frames: dict[str, bytes]) -> None:
        for node, data in frames.items():
            if connection := self.nodes.get(node):
                connection.write(data)

    def drop_all(self, why: str) -> None:
        """Parts from every agent; they dial again and say hello."""
        self._loop.call_soon_threadsafe(self._drop_all, why)

    def _drop_all(self, why: str) -> None:
        for connection in list(self.nodes.values()):
            connection.abort(why)

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)

    def closed(self, connection: Connection, why: str) -> None:
        """A link is over; the planner hears of it if it was a node's."""
        self._open.discard(connection)
        if connection.node and self.nodes.get(connection.node) is connection:
            del self.nodes[connection.node]
            self.sink(LinkDown(connection.node, connection.number, why))

    def hello(self, connection: Connection, hello: wire.Hello) -> None:
        """A link is up. One of the same node has to go if it is the same agent's or silent; else the newcomer has.

        Two machines with one certificate, a copied disk say, would else throw each other out for ever.
        """
        if hello.seen_term > self.welcome.term and not self._warned:
            self._warned = True
            log.error(
                "node %s has obeyed term %d, this is %d: is the database a restored backup (hpcmesos migrate"
                " --restored), or an old primary?", hello.node, hello.seen_term, self.welcome.term,
            )  # fmt: skip
        process = (hello.boot_id, hello.pid)
        if older := self.nodes.get(hello.node):
            if process != older.process and self._loop.time() - older.heard < _ALIVE:
                connection.reject(f"another agent of {hello.node} is linked and alive")
                return
            older.reject(f"a newer agent of {hello.node} dialled in")
        connection.node, connection.process = hello.node, process
        self.nodes[hello.node] = connection
        welcome = msgspec.structs.replace(self.welcome, protocol=hello.protocol)
        connection.write(wire.encode(welcome))
        self.sink(LinkUp(hello.node, connection.number, hello))

    def ask(self, connection: Connection, question: links_client.Question) -> None:
        """Passes a question of an API process on to the planner, and its answer back."""

        def reply(answer: links_client.Answer) -> None:
            self._loop.call_soon_threadsafe(connection.write, links_client.frame(answer))

        self.sink(Asked(question, reply))

    def _tick(self) -> None:
        """Pings every link; parts from the silent ones."""
        self._nonce += 1
        now = self._loop.time()
        for connection in list(self._open):
            limit = self.silence if connection.node else _HELLO_TIMEOUT
            if connection.organisation == "agent" and now - connection.heard > limit:
                connection.abort(f"silent for {now - connection.heard:.0f} s")
            elif connection.node:
                connection.write(
                    wire.encode(wire.Ping(nonce=self._nonce, heard=connection.answered, trusts=self.trusts))
                )
        self._ticker = self._loop.call_later(self.welcome.ping_interval, self._tick)


class Connection(asyncio.Protocol):
    """One connection: an agent's link once it said hello, or an API process that asks."""

    def __init__(self, links: Links) -> None:
        self.links = links
        self.number = next(links.numbers)
        self.node = ""  # empty: no hello yet
        self.process = ("", 0)  # boot id and pid of the agent
        self.organisation = ""
        self.name = ""
        self.serial = ""
        self.heard = 0.0
        self.answered = 0  # the nonce of the last pong
        self._why = "closed by the agent"
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._handle: Callable[[bytes], None] = self._on_hello

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods only
        self.heard = self.links._loop.time()
        shown = transport.get_extra_info("peercert")
        self.organisation, self.name = peer_name(shown) or ("", "")
        self.serial = serial(shown)
        if self.organisation == "master":
            self._handle = self._on_question
        self.links.opened(self)
        if self.organisation not in ("agent", "master"):
            self.abort(f"a certificate of O={self.organisation!r} may not dial here")
        elif self.serial in self.links.revoked:
            self.reject("this node's certificate is revoked")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.links.closed(self, f"{self._why}: {exc}" if exc else self._why)

    def data_received(self, data: bytes) -> None:
        self.heard = self.links._loop.time()
        self._buffer += data
        try:
            for body in wire.frames(self._buffer):
                if self._transport is None or self._transport.is_closing():
                    return
                self._handle(body)
        except (
            ValueError,
            ProtocolError,
            msgspec.MsgspecError,
            RecursionError,
        ) as error:  # the last: nested without end
            log.warning("link broken node=%s error=%r", self.name, error)
            self.abort(f"protocol error: {error}")

    def write(self, data: bytes) -> None:
        """Gives the link up when too much waits for an agent that does not read."""
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > _MAX_UNSENT:
            self.abort("the agent does not read")

    def reject(self, reason: str, leader: str | None = None) -> None:
        """Parts with a word; ``leader``: who is to be dialled instead."""
        log.log(
            logging.INFO if leader else logging.WARNING, "link rejected node=%s reason=%r", self.name, reason
        )
        self._why = reason
        self.write(wire.encode(wire.Rejected(reason=reason, leader=leader)))
        if self._transport:
            self._transport.close()

    def abort(self, why: str) -> None:
        self._why = why
        if self._transport:
            self._transport.abort()

    def _on_hello(self, body: bytes) -> None:
        message = wire.decode_to_leader(body)
        if not isinstance(message, wire.Hello):
            raise ValueError("the first message is no hello")
        if message.protocol not in wire.SPOKEN:
            self.reject(f"this leader speaks protocol {wire.PROTOCOL}, the agent {message.protocol}")
        elif message.node != self.name:
            self.reject(f"the certificate is of {self.name}, the agent says it is {message.node}")
        else:
            self._handle = self._on_message
            self.links.hello(self, message)

    def _on_message(self, body: bytes) -> None:
        message = wire.decode_to_leader(body)
        if isinstance(message, wire.Pong):
            self.answered = max(self.answered, message.nonce)
        else:
            self.links.sink(Received(self.node, message))

    def _on_question(self, body: bytes) -> None:
        self.links.ask(self, links_client.decode_question.decode(body))
