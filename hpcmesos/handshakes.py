"""TLS connections on their way in: who has shown no certificate yet is anybody, so how many there are is bounded."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import ssl
from collections.abc import Callable
from functools import partial

log = logging.getLogger(__name__)

MOST = 4096
"""At once, and no more than a quarter of what this process may have open. Then the oldest of the address that has most
makes room; where none has more than one, as after a restart of a large cluster, the others wait in the kernel."""
MOST_OF_ONE = 512
"""Of one address at once, and no more than half of all; beyond that its oldest makes room."""
PATIENCE = 10.0
"""Seconds that a handshake may take."""
_PAUSE = 0.1  # seconds until the next try when this process may open nothing more


class Handshakes:
    """Accepts on a listening TCP socket; made and closed on the event loop."""

    def __init__(
        self, listener: socket.socket, tls: ssl.SSLContext, protocol: Callable[[], asyncio.BaseProtocol]
    ) -> None:
        """``protocol``: makes what gets a connection whose handshake is over."""
        self._listener, self._tls, self._protocol = listener, tls, protocol
        self._loop = asyncio.get_running_loop()
        self._under_way: dict[str, dict[asyncio.Task[None], None]] = {}  # by address, oldest first
        self._count = 0
        self._most = min(MOST, max(2, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        self._of_one = min(MOST_OF_ONE, self._most // 2)
        self._closed = self._listening = False
        listener.setblocking(False)
        self._listen()

    def close(self) -> None:
        """Takes in no more, and ends the handshakes that are under way; a second time changes nothing."""
        if self._closed:
            return
        self._pause()
        self._closed = True
        self._listener.close()
        for tasks in self._under_way.values():
            for task in tasks:
                task.cancel()

    def _listen(self) -> None:
        if not (self._closed or self._listening) and self._count < self._most:
            self._listening = True
            self._loop.add_reader(self._listener.fileno(), self._ready)

    def _pause(self) -> None:
        if self._listening:
            self._listening = False
            self._loop.remove_reader(self._listener.fileno())

    def _ready(self) -> None:
        try:
            connection, peer = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            log.warning("cannot accept: %s", error)
            self._pause()
            self._loop.call_later(_PAUSE, self._listen)
            return
        address = str(peer[0])
        if len(self._under_way.get(address, ())) >= self._of_one:
            self._shed(address)
        connection.setblocking(False)
        task = self._loop.create_task(self._take_in(connection))
        self._under_way.setdefault(address, {})[task] = None
        self._count += 1
        task.add_done_callback(partial(self._over, address))
        if self._count >= self._most:
            self._make_room()

    def _make_room(self) -> None:
        """For the next one."""
        address = max(self._under_way, key=lambda one: len(self._under_way[one]))
        if len(self._under_way[address]) > 1:
            self._shed(address)
        else:
            self._pause()

    def _shed(self, address: str) -> None:
        """Ends the oldest of that address."""
        oldest = next(iter(self._under_way[address]))
        oldest.cancel()
        self._leave(address, oldest)

    async def _take_in(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._protocol, connection, ssl=self._tls, ssl_handshake_timeout=PATIENCE
            )
        except (OSError, asyncio.CancelledError):  # it failed, took too long, or made room
            connection.close()

    def _over(self, address: str, task: asyncio.Task[None]) -> None:
        self._leave(address, task)
        self._listen()

    def _leave(self, address: str, task: asyncio.Task[None]) -> None:
        """A second time changes nothing."""
        of_it = self._under_way.get(address, {})
        if task in of_it:
            del of_it[task]
            self._count -= 1
        if not of_it:
            self._under_way.pop(address, None)
