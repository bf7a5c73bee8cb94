"""The display of an interactive job (``qsub -X``): a port of the head, whose connections go to the user's X server.

As ssh and Torque have it: DISPLAY is localhost:N, N from 10, and whoever connects has to know a cookie, which lies in
a file of the owner's (XAUTHORITY). The client is told of each connection that did on its terminal's channel, and
fetches it by one of its own: no windows, TCP is the flow control. What the user's own X server wants to hear, only the
client knows, and it says that instead (X Window System Protocol, chapter 8).
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hpcmesos.launch import protocol
from hpcmesos.launch.channel import Channel
from hpcmesos.launch.owners import Owner

FILE = "Xauthority"
COOKIE = b"MIT-MAGIC-COOKIE-1"
PATIENCE = 30.0
"""Seconds that a connection waits for the client to fetch it."""
_INTRODUCTION = 5.0
"""Seconds that a program may take to say who it is; it does so at once."""
_TCP = 6000
_NUMBERS = range(10, 1000)
"""Of displays; those before are the machine's own."""
_MOST = 64
"""Connections that may wait at once, and that may be about to say who they are: anybody on the node can connect."""
_HEAD = 12
"""Bytes of a program's first message before the names."""
_LONGEST = 4096
_ANYWHERE = 0xFFFF
"""FamilyWild of libXau: the entry holds for whatever host."""

_Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]


class Display:
    """``file``: for the cookie; ``tell``: tells the client of a connection; False: there is none."""

    def __init__(self, file: str, tell: Callable[[int], bool]) -> None:
        self.file = file
        self._tell = tell
        self._cookie = os.urandom(16)
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._count = 0
        self._unknown = 0
        self._waiting: dict[int, _Ends] = {}
        self._served: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, owner: Owner) -> dict[str, str]:
        """Takes a port; the variables that tell programs of it. Raises OSError."""
        self._socket, number = _listen()
        address = (b"", str(number).encode(), COOKIE, self._cookie)
        entry = struct.pack(">H", _ANYWHERE) + b"".join(
            struct.pack(">H", len(part)) + part for part in address
        )
        fd = os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            if owner.switch:
                os.fchown(fd, owner.uid, owner.gid)
            file.write(entry)
        self._start(self._serve(self._socket))
        return {"DISPLAY": f"localhost:{number}.0", "XAUTHORITY": self.file}

    def close(self) -> None:
        """Ends all connections too."""
        if self._server:
            self._server.close()
        elif self._socket:
            self._socket.close()
        for number in list(self._waiting):
            self._drop(number)
        for writer in self._served:
            writer.close()

    async def serve(self, channel: Channel, number: int) -> None:
        """Passes on what goes to and fro on one connection, until one end closes it."""
        ends = self._waiting.pop(number, None)
        if ends is None:
            channel.say({"refused": "no such connection"})
            await channel.drain()
            return
        reader, writer, begun = ends
        self._served.add(writer)
        channel.say({"attached": True})
        channel.send(protocol.frame(protocol.STDOUT, begun))
        ways = {asyncio.create_task(_up(reader, channel)), asyncio.create_task(_down(channel, writer))}
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._served.discard(writer)
            writer.close()

    async def _serve(self, listening: socket.socket) -> None:
        self._server = await asyncio.start_server(self._hear, sock=listening)

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A program says who it is, and then waits for the client."""
        if self._unknown >= _MOST:
            writer.close()
            return
        self._unknown += 1
        try:
            message = await _first_message(reader)
        finally:
            self._unknown -= 1
        known = introduction(message)
        self._count += 1
        number = self._count
        if (
            known is None
            or known[0] != COOKIE
            or not hmac.compare_digest(known[1], self._cookie)
            or len(self._waiting) >= _MOST
            or not self._tell(number)
        ):
            writer.close()
            return
        self._waiting[number] = (reader, writer, message)
        asyncio.get_running_loop().call_later(PATIENCE, self._drop, number)

    def _drop(self, number: int) -> None:
        if ends := self._waiting.pop(number, None):
            ends[1].close()

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def introduction(message: bytes) -> tuple[bytes, bytes, int] | None:
    """How a program's first message proves its right, with what, and where it ends; None: it is not complete yet."""
    if len(message) < _HEAD:
        return None
    name, data = struct.unpack(_order(message) + "2H", message[6:10])
    end = _HEAD + _padded(name) + _padded(data)
    if len(message) < end:
        return None
    start = _HEAD + _padded(name)
    return message[_HEAD : _HEAD + name], message[start : start + data], end


def introduced(message: bytes, cookie: bytes) -> bytes | None:
    """A first message with another cookie, or with none (empty), and all that follows; None: it is not complete yet."""
    if (known := introduction(message)) is None:
        return None
    kind = COOKIE if cookie else b""
    sizes = struct.pack(_order(message) + "2H", len(kind), len(cookie))
    names = b"".join(part.ljust(_padded(len(part)), b"\0") for part in (kind, cookie))
    return message[:6] + sizes + message[10:_HEAD] + names + message[known[2] :]


async def serve(display: Display | None, request: dict[str, Any], channel: Channel) -> None:
    """What a master asks for; refused where there is no such display."""
    if display is None:
        channel.say({"refused": "this node does not hold that display"})
        await channel.drain()
        return
    await display.serve(channel, int(request["connection"]))


def _listen() -> tuple[socket.socket, int]:
    """At the first number that nobody has."""
    for number in _NUMBERS:
        one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", _TCP + number))
            one.listen()
        except OSError as error:
            one.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return one, number
    raise OSError(errno.EADDRINUSE, "no number of a display is free")


async def _first_message(reader: asyncio.StreamReader) -> bytes:
    """As much of it as comes in time."""
    message = b""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_INTRODUCTION):
            while introduction(message) is None and len(message) < _LONGEST:
                data = await reader.read(_LONGEST - len(message))
                if not data:
                    break
                message += data
    return message


async def _up(reader: asyncio.StreamReader, channel: Channel) -> None:
    with suppress(OSError):
        while data := await reader.read(protocol.CHUNK):
            channel.send(protocol.frame(protocol.STDOUT, data))
            if not await channel.drain():
                return


async def _down(channel: Channel, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while (frame := await channel.receive()) and frame[0] == protocol.STDIN:
            writer.write(frame[1])
            await writer.drain()


def _order(message: bytes) -> str:
    """Of bytes, as the program has chosen it: its first one is B or l."""
    return ">" if message[:1] == b"B" else "<"


def _padded(size: int) -> int:
    return (size + 3) // 4 * 4
