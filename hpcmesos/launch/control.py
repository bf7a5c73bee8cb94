"""``control.sock``: the agent's door. Every operation may be repeated; see docs/architecture.md."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any, Protocol

from hpcmesos.launch import own_log, protocol
from hpcmesos.launch.attempt import Attempt
from hpcmesos.launch.channel import Channel
from hpcmesos.launch.deadman import DeadMan
from hpcmesos.launch.order import Order

_OF_ATTEMPTS = ("go", "signal", "alter", "end")
_OF_SPECS = ("instances", "mps")
OPERATIONS = ("hello", "prepare", "contact", "forget", "shutdown", *_OF_ATTEMPTS, *_OF_SPECS)
"""What a hello says that this shepherd can do, and parts of specs that it understands: an agent may be newer, for it is
upgraded under living shepherds.
"""


_AT_ONCE = 4
"""Requests, of which many come at once, until what has happened meanwhile is dealt with: the leader goes on with places
that come free while the others' next jobs are only being started.
"""


class Holder(Protocol):
    """What the agent commands: the shepherd."""

    attempts: dict[str, Attempt]
    deadman: DeadMan

    def hello(self) -> dict[str, Any]: ...
    def replay(self) -> list[dict[str, Any]]: ...
    def prepare(self, spec: dict[str, Any]) -> None: ...
    def forget(self, attempt: str) -> None: ...
    def shutdown(self, force: bool) -> None: ...


class Control:
    """Serves any number of connections; what `emit` gets goes to all of them."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self._channels: set[Channel] = set()
        self._told: list[
            bytes
        ] = []  # in this turn of the loop; before anything that is said to one connection
        self._known: dict[str, Callable[[Channel, dict[str, Any]], None]] = {
            "hello": self._hello,
            "prepare": lambda _, r: holder.prepare(r["spec"]),
            "contact": lambda _, r: holder.deadman.contact(float(r["at"])),
            "forget": lambda _, r: holder.forget(r["attempt"]),
            "shutdown": lambda _, r: holder.shutdown(bool(r.get("force"))),
        }

    def emit(self, event: dict[str, Any]) -> None:
        """To every connection, with all else that is told in this turn of the loop: who is woken twice works twice."""
        if not self._told:
            asyncio.get_running_loop().call_soon(self._send)
        self._told.append(protocol.message(event))

    def _send(self) -> None:
        told, self._told = self._told, []
        for channel in self._channels if told else ():
            channel.send(b"".join(told))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until it ends."""
        channel = Channel(reader, writer)
        self._channels.add(channel)
        parser, obeyed = protocol.Parser(), 0
        try:
            while data := await reader.read(protocol.CHUNK):
                for kind, body in parser.feed(data):
                    if kind != protocol.MESSAGE:
                        raise protocol.FrameError(f"a {kind!r} frame where a message belongs")
                    self._obey(channel, protocol.decode(body))
                    obeyed += 1
                    if obeyed % _AT_ONCE == 0:
                        await asyncio.sleep(0)
        except OSError:  # it is gone
            pass
        except (protocol.FrameError, KeyError, TypeError, ValueError) as error:
            own_log.write(f"control.sock: bad request: {error!r}")
        finally:
            self._channels.discard(channel)
            channel.close()

    def _obey(self, channel: Channel, request: dict[str, Any]) -> None:
        if request["op"] in _OF_ATTEMPTS:
            self._to_attempt(channel, request)
        elif operation := self._known.get(request["op"]):
            operation(channel, request)
        else:  # of an agent of a later release, which heard in our hello what we can do
            own_log.write(f"control.sock: no operation {request['op']!r}")

    def _hello(self, channel: Channel, _: dict[str, Any]) -> None:
        self._say(channel, self._holder.hello(), *self._holder.replay())

    def _say(self, channel: Channel, *events: dict[str, Any]) -> None:
        """To one connection, after what all were told before."""
        self._send()
        for event in events:
            channel.say(event)

    def _to_attempt(self, channel: Channel, request: dict[str, Any]) -> None:
        attempt = self._holder.attempts.get(request["attempt"])
        if attempt is None:
            self._say(channel, {"event": "unknown", "attempt": request["attempt"]})
        elif request["op"] == "go":
            attempt.go()
        elif request["op"] == "signal":
            attempt.signal(int(request["signal"]))
        elif request["op"] == "alter":
            attempt.alter(request["walltime"], request["streams"], request["text"], request.get("suspended"))
        elif request["op"] == "end":
            if attempt.ended:
                self._say(channel, attempt.ended)
            else:
                attempt.end(
                    Order(
                        request["cause"], float(request.get("kill_delay") or 0), request.get("message") or ""
                    )
                )


async def listen(
    path: str,
    mode: int,
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any],
) -> asyncio.Server:
    """A unix socket at ``path``, in place of one that a dead shepherd left; never open to more than ``mode`` allows."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except BaseException:
            writer.close()  # before Python 3.12 nobody else does, and who asked would wait for ever
            raise

    if os.path.exists(path):
        os.unlink(path)
    before = os.umask(0o777 & ~mode)
    try:
        return await asyncio.start_unix_server(answer, path, limit=2 * protocol.CHUNK)
    finally:
        os.umask(before)
