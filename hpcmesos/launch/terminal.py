"""The terminal of an interactive job: a pty on the head, and the one client that has it.

A master relays frames between the client and here: ``I`` what was typed, ``O`` what was shown, ``J`` {"rows",
"columns"} and {"hangup": true}; the last one from here is ``J`` {"exit", "signal"}. A connection that ends without a
hang-up is a relay that was lost: the client may come back, from the byte that it has seen last. ``J`` {"display": N}
from here: a program's connection to the job's display waits to be fetched (`display`).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hpcmesos.launch import protocol
from hpcmesos.launch.channel import Channel
from hpcmesos.launch.display import Display
from hpcmesos.launch.owners import Owner

PATIENCE = 30.0
"""Seconds that a client has to come, for the first time or again after its connection broke."""
GRACE = 5.0
"""Seconds from the hang-up of the terminal to the end of what has ignored it."""
_LAST_WORDS = 1.0
"""Seconds that output is waited for once the program has ended: others may hold its terminal."""
_KEPT = 256 * 1024
"""Bytes that may wait for a client; as many are kept for one that comes back."""
_TYPED = 1024 * 1024
"""Bytes of input for a program that does not read; what is typed beyond them is dropped, as a terminal does."""


class Terminal:
    """``start`` is called once the job may begin and a client is there; ``abandon``, with why, to end the job."""

    def __init__(self, start: Callable[[], None], abandon: Callable[[str], None]) -> None:
        self._start = start
        self._abandon = abandon
        self._open = False
        self._begun = False
        self._channel: Channel | None = None
        self._master = self._slave = -1
        self._size = (24, 80)
        self._base = 0  # how many bytes came before those in _kept
        self._kept = bytearray()
        self._position = 0  # of the client, counted as _base
        self._news = asyncio.Event()
        self._typed = bytearray()
        self._drained = asyncio.Event()
        self._end: dict[str, Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.display: Display | None = None
        """Of a job with ``qsub -X``."""

    def tell_of_display(self, connection: int) -> bool:
        """The client is to fetch this one; False: nobody is there who could."""
        if self._channel is None:
            return False
        self._channel.say({"display": connection})
        return True

    # --- the job's side -----------------------------------------------------------------------------------------

    def open(self) -> None:
        """The job may begin, as soon as somebody is there."""
        self._open = True
        self._begin()
        self._expect()

    def create(self, owner: Owner) -> str:
        """Makes the pty, the owner's; its name. Raises OSError."""
        self._master, self._slave = os.openpty()
        os.set_blocking(self._master, False)
        if owner.switch:
            os.fchown(self._slave, owner.uid, owner.gid)
        os.fchmod(self._slave, 0o600)
        self._apply_size()
        self._resume()
        return os.ttyname(self._slave)

    def opened(self) -> None:
        """The program has the terminal open, so we need not hold it."""
        if self._slave >= 0:
            os.close(self._slave)
            self._slave = -1

    def note(self, line: str) -> None:
        """Shows a line of ours."""
        self._show(f"\r\n{line}\r\n".encode())

    async def finish(self, code: int | None, number: int | None) -> None:
        """The job's part here is over: what it has written goes out, then how its program ended."""
        self.opened()
        if self._master >= 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS):
                    await self._drained.wait()
        self._close()
        if self.display:
            self.display.close()
        self._stop_waiting()
        self._end = {"exit": code, "signal": number}
        self._news.set()

    # --- the client's side --------------------------------------------------------------------------------------

    async def serve(self, channel: Channel, request: dict[str, Any]) -> None:
        """One connection of the client, until one of both is gone. A new one takes the place of an old one."""
        if self._channel:
            self._channel.close()
        self._channel = channel
        self._stop_waiting()
        self._resize(request)
        end = self._base + len(self._kept)
        self._position = min(max(int(request.get("offset") or 0), self._base), end)
        self._resume()
        self._begin()
        sending = asyncio.get_running_loop().create_task(self._send(channel))
        try:
            hung_up = await self._hear(channel)
        finally:
            sending.cancel()
        if self._channel is not channel:
            return
        self._channel = None
        if hung_up:
            self._hang_up()
        elif self._end is None:
            self._expect()

    async def _hear(self, channel: Channel) -> bool:
        """Takes what the client sends; True: it has hung up, False: the connection broke, or a newer one is there."""
        while frame := await channel.receive():
            if self._channel is not channel:
                return False
            kind, body = frame
            if kind == protocol.STDIN:
                self._type(body)
            elif kind == protocol.MESSAGE:
                message = protocol.decode(body)
                if message.get("hangup"):
                    return True
                self._resize(message)
        return False

    async def _send(self, channel: Channel) -> None:
        while True:
            self._news.clear()
            data = bytes(self._kept[self._position - self._base :][: protocol.CHUNK])
            if data:
                channel.send(protocol.frame(protocol.STDOUT, data))
                self._position += len(data)
                self._resume()
                if not await channel.drain():
                    return
            elif self._end is not None:
                channel.say(self._end)
                await channel.drain()
                return
            else:
                await self._news.wait()

    def _begin(self) -> None:
        if self._open and self._channel and not self._begun and self._end is None:
            self._begun = True
            self._start()

    def _expect(self) -> None:
        """Waits for a client, for some time."""
        if self._open and self._channel is None and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(
                PATIENCE, self._abandon, f"nobody at its terminal for {PATIENCE:g} s"
            )

    def _stop_waiting(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _hang_up(self) -> None:
        """The kernel sends SIGHUP to the session; who ignores it has some seconds left."""
        if self._end is not None:
            return
        reason = "the connection to its terminal was closed"
        if not self._begun:
            self._abandon(reason)
            return
        self._close()
        self._timer = asyncio.get_running_loop().call_later(GRACE, self._abandon, reason)

    # --- the pty ------------------------------------------------------------------------------------------------

    def _resize(self, message: dict[str, Any]) -> None:
        rows, columns = message.get("rows"), message.get("columns")
        if isinstance(rows, int) and isinstance(columns, int):
            self._size = (min(max(rows, 0), 0xFFFF), min(max(columns, 0), 0xFFFF))
            self._apply_size()

    def _apply_size(self) -> None:
        if self._master >= 0:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", *self._size, 0, 0))

    def _read(self) -> None:
        try:
            data = os.read(self._master, protocol.CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        if data:
            self._show(data)
        else:
            self._pause()
            self._drained.set()

    def _show(self, data: bytes) -> None:
        self._kept += data
        seen = self._position - self._base
        if seen > _KEPT:
            del self._kept[: seen - _KEPT]
            self._base += seen - _KEPT
        if len(self._kept) - (self._position - self._base) >= _KEPT:
            self._pause()
        self._news.set()

    def _resume(self) -> None:
        waiting = self._base + len(self._kept) - self._position
        if self._master >= 0 and waiting < _KEPT and not self._drained.is_set():
            asyncio.get_running_loop().add_reader(self._master, self._read)

    def _pause(self) -> None:
        if self._master >= 0:
            asyncio.get_running_loop().remove_reader(self._master)

    def _type(self, data: bytes) -> None:
        if self._master >= 0 and len(self._typed) < _TYPED:
            self._typed += data
            self._write()

    def _write(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._typed:
                del self._typed[: os.write(self._master, self._typed)]
        except BlockingIOError:
            loop.add_writer(self._master, self._write)
            return
        except OSError:
            self._typed.clear()
        loop.remove_writer(self._master)

    def _close(self) -> None:
        self.opened()
        if self._master >= 0:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._master)
            loop.remove_writer(self._master)
            os.close(self._master)
            self._master = -1
            self._drained.set()


async def serve(terminal: Terminal | None, request: dict[str, Any], channel: Channel) -> None:
    """What a master asks for; refused where there is no such terminal, or not yet."""
    if terminal is None:
        channel.say({"refused": "this node does not hold that terminal"})
        await channel.drain()
        return
    channel.say({"attached": True})
    await terminal.serve(channel, request)
