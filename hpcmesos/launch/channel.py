"""Frames over asyncio streams: the shepherd's end of every connection."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from hpcmesos.launch import protocol

Frame = tuple[bytes, bytes]
_LOST = (OSError, EOFError, ssl.SSLError, asyncio.IncompleteReadError)
_SMALL = 2 * protocol.CHUNK
"""Bytes of a frame that a stream holds anyway; those of a larger one are held until all of it is here."""
MOST_UNREAD = 64 * 1024 * 1024
"""Bytes that may wait for the other side."""


class Channel:
    """One connection. What is sent to a lost connection goes nowhere; `receive` says that it is lost."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.sent = 0
        """Bytes so far."""
        self.turn: AbstractAsyncContextManager[Any] = nullcontext()
        """In which a large frame is received: those who share it send one at a time."""
        self.most_unread: int | None = None
        """Bytes that may wait for the other side; with more it is hung up. None: no limit."""

    async def receive(self) -> Frame | None:
        """The next frame; None at the end of the connection, however it came.

        Raises:
            protocol.FrameError: the other side does not speak frames.
        """
        try:
            head = await self._reader.readexactly(5)
            size = int.from_bytes(head[:4], "big")
            protocol.check_size(size)
            async with self.turn if size > _SMALL else nullcontext():
                return head[4:], await self._reader.readexactly(size - 1)
        except _LOST:
            return None

    async def hear(self) -> dict[str, Any] | None:
        """The next message. Raises protocol.FrameError when something else comes."""
        frame = await self.receive()
        if frame is None:
            return None
        if frame[0] != protocol.MESSAGE:
            raise protocol.FrameError(f"a {frame[0]!r} frame where a message belongs")
        return protocol.decode(frame[1])

    def say(self, value: dict[str, Any]) -> None:
        self.send(protocol.message(value))

    def send(self, data: bytes) -> None:
        if self._writer.is_closing():
            return
        waiting = self._writer.transport.get_write_buffer_size()
        if self.most_unread is not None and waiting > self.most_unread:
            self._writer.transport.abort()
            return
        self._writer.write(data)
        self.sent += len(data)

    @property
    def blocked(self) -> bool:
        """The other side has not yet taken everything."""
        return not self._writer.is_closing() and self._writer.transport.get_write_buffer_size() > 0

    async def drain(self) -> bool:
        """Waits until the other side takes more; False when it is gone."""
        try:
            await self._writer.drain()
        except _LOST:
            return False
        return not self._writer.is_closing()

    def close(self) -> None:
        self._writer.close()

    def peer(self, name: str) -> Any:
        """``get_extra_info`` of the transport."""
        return self._writer.get_extra_info(name)
