"""Pipes of processes, in frames of a channel."""

from __future__ import annotations

import asyncio
import os

from hpcmesos.launch import protocol
from hpcmesos.launch.channel import Channel


def pipe(opened: list[int]) -> tuple[int, int]:
    """A pipe; its ends are noted, to be closed when something goes wrong."""
    ends = os.pipe()
    opened += ends
    return ends


async def pump(fd: int, channel: Channel, kind: bytes, prefix: bytes = b"") -> None:
    """Sends what comes from ``fd`` until its end, no faster than the channel takes it."""
    reader = asyncio.StreamReader(limit=protocol.CHUNK)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", 0)
    )
    try:
        while data := await reader.read(protocol.CHUNK):
            channel.send(protocol.frame(kind, prefix + data))
            await channel.drain()
    finally:
        transport.close()


async def read(fd: int, most: int, *, first: bool = False) -> bytes:
    """What comes from ``fd`` until its end: the last ``most`` bytes, or the first. Nobody who writes has to wait."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", 0)
    )
    data = b""
    try:
        while piece := await reader.read(protocol.CHUNK):
            data = (data + piece)[:most] if first else (data + piece)[-most:]
    finally:
        transport.close()
    return data


async def writer(fd: int) -> asyncio.StreamWriter:
    """The writing end of a pipe."""
    loop = asyncio.get_running_loop()
    transport, protocol_ = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), os.fdopen(fd, "wb", 0)
    )
    return asyncio.StreamWriter(transport, protocol_, None, loop)
