"""Reading a job's output from afar, while it grows."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from hpcmesos.launch import protocol
from hpcmesos.launch.attempt import Attempt
from hpcmesos.launch.channel import Channel

_LOOK = 0.15
"""Seconds between two looks at a file that somebody follows."""


async def serve_log(attempt: Attempt | None, request: dict[str, Any], channel: Channel) -> None:
    """Sends a stream from ``offset`` (bytes) on; with ``follow`` until the attempt is over or the reader has gone."""
    if attempt is None:
        await _refuse(channel)
        return
    stream, offset, follow = request["stream"], int(request.get("offset") or 0), bool(request.get("follow"))
    while True:
        over = attempt.phase == "ended"
        if (on := attempt.output.after_gap(stream, offset)) != offset:
            line = f"\n=>> hpcmesos: {on - offset} bytes left out\n"
            channel.send(protocol.frame(protocol.STDOUT, line.encode()))
            offset = on
        read = partial(attempt.output.read, stream, offset, protocol.CHUNK)
        data = await attempt.output.patiently(read, b"")
        if data:
            channel.send(protocol.frame(protocol.STDOUT, data))
            offset += len(data)
            if not await channel.drain():
                return
        elif attempt.output.closed:
            await _refuse(channel)  # forgotten while it was read: the rest is elsewhere
            return
        elif over or not follow:
            channel.say({"end": over})
            await channel.drain()
            return
        elif await _gone(channel):
            return


async def _refuse(channel: Channel) -> None:
    channel.say({"end": True, "error": "this node does not hold that attempt"})
    await channel.drain()


async def _gone(channel: Channel) -> bool:
    """Waits for the next look; True when the reader hung up meanwhile."""
    try:
        async with asyncio.timeout(_LOOK):
            return await channel.receive() is None
    except TimeoutError:
        return False
