"""How many connections an API process holds, whose they are, and how long a request may take to arrive.

Nobody can fill the process: neither one user or address with many connections or large requests, nor many of them with
connections on which nothing comes. When there are too many, the oldest on which no request has come yet makes room for
the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from hpcmesos.master.peercred import Peer, PeerProtocol

log = logging.getLogger(__name__)

_MIB = 1024 * 1024
_SMALL = 64 * 1024  # bytes of a body
_SHARE_OF_DESCRIPTORS = 0.75  # the rest is for files, the database and the leader
_PAUSE = 0.1  # seconds until the next try when the machine has no descriptor left


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Times in seconds. ``of_one``: connections of one user (by unix socket or a gateway) or address (over TLS)."""

    connections: int = 4096
    of_one: int = 1024
    handshake: float = 10.0
    request: float = 60.0  # from a request's first byte, or the connection's start, to its last
    stalled: float = 60.0  # that a client may leave its answer unread
    head: int = 65536  # bytes of a request's first line and headers
    bodies: int = 256 * _MIB  # bytes of requests that are not answered yet, of all together
    bodies_of_one: int = 64 * _MIB  # the same of one user or address
    unread: int = 1024 * _MIB  # bytes of answers that wait for their readers
    unread_of_one: int = 256 * _MIB
    pipelined: int = 16  # requests on one connection behind the one that is being answered

    def within_descriptors(self) -> Limits:
        """These, or fewer where this process may not open so many files; the soft limit is raised to the hard one."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if soft == resource.RLIM_INFINITY:
            return self
        most = min(self.connections, int(soft * _SHARE_OF_DESCRIPTORS))
        return replace(self, connections=most, of_one=min(self.of_one, max(1, most // 2)))


@dataclass(eq=False, slots=True)
class Entry:
    """A connection. ``drop`` ends it; ``useful``: a whole request has come on it.

    ``body``: bytes that have come of what is not answered yet; ``unread``: bytes of answers that wait.
    """

    owner: str
    drop: Callable[[], None]
    useful: bool = False
    body: int = 0
    unread: int = 0


@dataclass(slots=True)
class Bytes:
    """What is held, by owner and of all."""

    of: Counter[str] = field(default_factory=Counter)
    all: int = 0

    def add(self, owner: str, size: int) -> None:
        """``size`` may be negative."""
        self.all += size
        self.of[owner] += size
        if not self.of[owner]:
            del self.of[owner]


@dataclass(slots=True)
class Door:
    """The connections of one process, oldest first."""

    limits: Limits = field(default_factory=Limits)
    _all: dict[Entry, None] = field(default_factory=dict)
    _of: dict[str, dict[Entry, None]] = field(default_factory=dict)
    _bodies: Bytes = field(default_factory=Bytes)
    _unread: Bytes = field(default_factory=Bytes)

    def __len__(self) -> int:
        return len(self._all)

    def enter(self, owner: str, drop: Callable[[], None]) -> Entry | None:
        """A place for a new connection; None: there is none, all that are held are in use."""
        own = self._of.get(owner, {})
        if len(own) >= self.limits.of_one and not self._make_room(own):
            return None
        if len(self._all) >= self.limits.connections and not self._make_room(self._all):
            return None
        entry = Entry(owner, drop)
        self._all[entry] = None
        self._of.setdefault(owner, {})[entry] = None
        return entry

    def reckon(self, entry: Entry, owner: str) -> bool:
        """From now on a connection counts as this owner's; False: he has too many that are in use."""
        if entry not in self._all or entry.owner == owner:
            return True
        own = self._of.get(owner, {})
        if len(own) >= self.limits.of_one and not self._make_room(own):
            return False
        for held, size in ((self._bodies, entry.body), (self._unread, entry.unread)):
            held.add(entry.owner, -size)
            held.add(owner, size)
        was = self._of[entry.owner]
        del was[entry]
        if not was:
            del self._of[entry.owner]
        entry.owner = owner
        self._of.setdefault(owner, {})[entry] = None
        return True

    def hold(self, entry: Entry, size: int) -> bool:
        """So many bytes more have come of a request; False: there is no room for them."""
        limits, held = self.limits, self._bodies
        full = held.of[entry.owner] + size > limits.bodies_of_one or held.all + size > limits.bodies
        if full and entry.body + size > _SMALL:  # small ones, which everybody sends, have room always
            return False
        entry.body += size
        held.add(entry.owner, size)
        return True

    def release(self, entry: Entry) -> None:
        """What has come of requests is held no more."""
        self._bodies.add(entry.owner, -entry.body)
        entry.body = 0

    def wait(self, entry: Entry, size: int) -> bool:
        """So many bytes of answers wait for the client now; False: they may not.

        An answer that waits alone may be half of what there is: the list of very many jobs is one.
        """
        limits, held = self.limits, self._unread
        held.add(entry.owner, size - entry.unread)
        entry.unread = size
        alone = held.of[entry.owner] == size
        most = max(limits.unread_of_one, limits.unread // 2) if alone else limits.unread_of_one
        return not size or (held.of[entry.owner] <= most and held.all <= limits.unread)

    def leave(self, entry: Entry) -> None:
        """The connection is over; a second time changes nothing."""
        self.release(entry)
        self.wait(entry, 0)
        self._all.pop(entry, None)
        own = self._of.get(entry.owner, {})
        own.pop(entry, None)
        if not own:
            self._of.pop(entry.owner, None)

    def _make_room(self, among: dict[Entry, None]) -> bool:
        idle = next((entry for entry in among if not entry.useful), None)
        if idle is None:
            return False
        self.leave(idle)
        idle.drop()
        return True


class GuardedProtocol(PeerProtocol):
    """uvicorn's HTTP protocol behind a door; ``door`` comes from the server's configuration."""

    door: Door = Door()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.entry: Entry | None = None
        self._arriving: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._in_head, self._head = True, 0  # bytes that were read of one
        self._too_large = False  # a head that came at once
        self.connected = False  # TLS: its handshake is over

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self.connected = True
        if self.entry is None:  # over TLS it has one since it was accepted
            self.entry = self.door.enter(f"uid {self.app_state['peer'].uid}", transport.abort)
            if self.entry is None:
                transport.abort()
                return
        peer: Peer = self.app_state["peer"]
        if peer.organization == "gateway":  # no agent or user of the same address is behind it
            self._reckon(f"gateway {peer.common_name}")
            told = replace(peer, reckon=self._vouched_for)
            self.app_state = {**self.app_state, "peer": told}
        self._expect()

    def _vouched_for(self, user: str) -> None:
        """From another thread."""
        owner = f"gateway {self.app_state['peer'].common_name}/{user}"
        self.loop.call_soon_threadsafe(self._reckon, owner)

    def _reckon(self, owner: str) -> None:
        if self.entry is not None and not self.door.reckon(self.entry, owner):
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._arrived()
        if self._unread is not None:
            self._unread.cancel()
        if self.entry is not None:
            self.door.leave(self.entry)

    def data_received(self, data: bytes) -> None:
        if self._arriving is None and (self.cycle is None or self.cycle.response_complete):
            self._expect()
        self._head += len(data)
        self._in_head = True  # unless the parser says that a head has ended, or that it reads a body
        super().data_received(data)
        if not self._in_head:
            self._head = 0
        elif self._head > self.door.limits.head and not self.transport.is_closing():
            self._refuse(b"431 Request Header Fields Too Large")

    def on_headers_complete(self) -> None:
        self._in_head = False
        if (
            len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            > self.door.limits.head
        ):
            self._too_large = True
            raise ValueError(
                "a request's head is too large"
            )  # ends the parser, which has the connection refused
        if len(self.pipeline) >= self.door.limits.pipelined:
            raise ValueError("too many requests before the first is answered")
        # No answer depends on the name by which we are called, and one that is none breaks whoever makes a URL of it.
        self.headers[:] = [(b"host", b"localhost"), *(one for one in self.headers if one[0] != b"host")]
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        if self._too_large:
            self._refuse(b"431 Request Header Fields Too Large")
        else:
            super().send_400_response(msg)

    def on_body(self, body: bytes) -> None:
        self._in_head = False
        if self.transport.is_closing():
            return
        if self.entry is not None and not self.door.hold(self.entry, len(body)):
            self._refuse(b"503 Service Unavailable")
        else:
            super().on_body(body)

    def on_response_complete(self) -> None:
        if self.entry is not None:
            self.door.release(self.entry)
        super().on_response_complete()

    def on_message_complete(self) -> None:
        self._in_head = False
        self._arrived()
        if self.entry is not None:
            self.entry.useful = True
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """From now on another protocol has the connection, and its place at the door."""
        self._arrived()
        if self.entry is not None:
            self.entry.useful = True
        self.app_state = {**self.app_state, "entry": self.entry}
        super().handle_websocket_upgrade()

    def pause_writing(self) -> None:
        super().pause_writing()
        waiting = self.transport.get_write_buffer_size()
        if self.entry is not None and not self.door.wait(self.entry, waiting):
            self.transport.abort()
            return
        self._unread = self.loop.call_later(self.door.limits.stalled, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.entry is not None:
            self.door.wait(self.entry, 0)
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _expect(self) -> None:
        self._arriving = self.loop.call_later(self.door.limits.request, self._too_slow)

    def _arrived(self) -> None:
        if self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None

    def _too_slow(self) -> None:
        self._arriving = None
        self._refuse(b"408 Request Timeout")

    def _refuse(self, status: bytes) -> None:
        if self.cycle is None or not self.cycle.response_started:
            self.transport.write(
                b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            )
        self.transport.close()


class GuardedWebSocket(WebSocketsSansIOProtocol):
    """What a connection of GuardedProtocol becomes by an upgrade."""

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if (entry := self.app_state.get("entry")) is not None:
            GuardedProtocol.door.leave(entry)


class Acceptor:
    """Takes TLS connections in, counted from the start: one that never ends its handshake is no better than idle."""

    def __init__(
        self,
        door: Door,
        listener: socket.socket,
        tls: ssl.SSLContext,
        protocol: Callable[[], GuardedProtocol],
    ) -> None:
        self._door, self._listener, self._tls, self._protocol = door, listener, tls, protocol
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._loop = asyncio.get_running_loop()
        listener.setblocking(False)
        self._loop.add_reader(listener.fileno(), self._ready)

    def close(self) -> None:
        """Takes in no more, and ends the handshakes that are under way."""
        self._closed = True
        self._loop.remove_reader(self._listener.fileno())
        for task in self._tasks:
            task.cancel()

    async def wait_closed(self) -> None:
        """As of servers of asyncio."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ready(self) -> None:
        try:
            connection, address = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:  # no descriptors
            log.warning("cannot accept: %s", error)
            self._loop.remove_reader(self._listener.fileno())
            self._loop.call_later(_PAUSE, self._again)
            return
        connection.setblocking(False)
        task = self._loop.create_task(self._take_in(connection, str(address[0])))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _again(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listener.fileno(), self._ready)

    async def _take_in(self, connection: socket.socket, address: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        protocol = self._protocol()
        entry = protocol.entry = self._door.enter(address, lambda: _drop(task, protocol))
        if entry is None:
            connection.close()
            return
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=self._door.limits.handshake,
            )
        except (OSError, asyncio.CancelledError):
            connection.close()
            self._door.leave(entry)


def _drop(task: asyncio.Task[None], protocol: GuardedProtocol) -> None:
    if protocol.connected:
        protocol.transport.abort()
    else:
        task.cancel()
