"""``run(settings)``: the gateway of a login host without a master, an agent without slots.

Commands find it where a master's socket would be. The kernel tells it who connects; it opens a connection to a master
with its own certificate, says for whom in the first request, and from then on only passes bytes on. A second task
writes on this host, as its owners, what jobs have left for it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import pwd
import resource
import socket
import ssl
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from hpcmesos import doorway
from hpcmesos.agent import api
from hpcmesos.agent.deliveries import Deliverer, Lines
from hpcmesos.agent.renewal import keep_certificate, watch_authorities
from hpcmesos.agent.service import enrol, pid_file, until_told
from hpcmesos.api_schema import Delivered, Delivery, ErrorReply
from hpcmesos.config import GatewaySettings
from hpcmesos.errors import (
    HpcmesosError,
    MasterUnreachable,
    StateError,
    Unauthenticated,
    Unavailable,
    UnknownJob,
)

log = logging.getLogger(__name__)

_UCRED = struct.Struct("3i")
_OF_ONE = 256  # connections of one user
_NAMED = 60.0  # seconds that a user's name is remembered
_CHUNK = 65536
_CONNECT = 5.0  # seconds until the next master is asked
_LONGEST_HEAD = 65536
_ASK = 20.0  # seconds that a master may wait with its answer until there is something to deliver
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_LOOK = 1.0  # seconds between two looks for what is new while other deliveries hang or fail


def run(settings: GatewaySettings) -> int:
    """Blocks until SIGTERM or SIGINT. Returns the exit code, after one line on an error."""
    try:
        settings.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        _allow_descriptors()
        with pid_file(settings.state / "gateway.pid", "a gateway"):
            asyncio.run(until_told(_work(settings)))
    except HpcmesosError as error:
        print(f"hpcmesos gateway: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"hpcmesos gateway: cannot use {error.filename}: {error.strerror}", file=sys.stderr)
        return StateError.exit_code
    return 0


def _allow_descriptors() -> None:
    """As many as the hard limit: each connection takes two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _work(settings: GatewaySettings) -> None:
    await enrol(settings, "gateway")
    door = Door(settings)
    due = asyncio.Event()
    await asyncio.gather(
        door.run(),
        deliver(settings),
        keep_certificate(settings, door.take_certificate, due),
        watch_authorities(settings, due),
    )


class Door:
    """The socket, and who comes in by it."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._masters = api.several(settings.master)
        self._context = api.context(settings.state)
        self._connections: set[asyncio.Task[None]] = set()
        self._of: Counter[int] = Counter()  # connections, by uid
        self._names: dict[int, tuple[str, float]] = {}  # by uid, with when they are looked up again

    def take_certificate(self) -> None:
        """Connections that are made from now on show the new one."""
        self._context = api.context(self._settings.state)

    async def run(self) -> None:
        """Until cancelled. Raises StateError: a master, or another gateway, serves there."""
        path = self._settings.socket
        with doorway.alone(path):
            server = await asyncio.start_unix_server(self._serve, sock=doorway.bind(path), backlog=1024)
            log.info("gateway %s listens at %s", self._settings.node, path)
            try:
                await (
                    asyncio.get_running_loop().create_future()
                )  # serve_forever() would wait for open connections
            finally:
                path.unlink(missing_ok=True)
                server.close()
                for task in self._connections:
                    task.cancel()
                await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        uid = _uid_of(writer.get_extra_info("socket"))
        self._of[uid] += 1
        try:
            if self._of[uid] > _OF_ONE:
                raise MasterUnreachable(f"user id {uid} has {_OF_ONE} connections by this gateway already")
            await self._connect(await self._name(uid), reader, writer)
        except HpcmesosError as error:
            writer.write(_answer(error))
        except (OSError, EOFError) as error:
            log.warning("a connection broke: %s", error)
        finally:
            writer.close()
            self._of[uid] -= 1
            if not self._of[uid]:
                del self._of[uid]

    async def _connect(self, user: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Bytes in both directions, until one side is gone."""
        answers, upstream = await self._vouch(user)
        both = [asyncio.create_task(_pass(reader, upstream)), asyncio.create_task(_pass(answers, writer))]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            upstream.close()

    async def _name(self, uid: int) -> str:
        """Remembered for a while; a directory server may take its time. Raises Unauthenticated: it has none here."""
        name, until = self._names.get(uid, ("", 0.0))
        if time.monotonic() >= until:
            try:
                name = (await asyncio.to_thread(pwd.getpwuid, uid)).pw_name
            except KeyError:
                raise Unauthenticated(f"user id {uid} has no name on this host") from None
            self._names[uid] = name, time.monotonic() + _NAMED
        return name

    async def _vouch(self, user: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to a master that is this user's.

        Raises:
            MasterUnreachable: none answers. Whatever leaf of the error tree a master answered.
        """
        last: Exception = MasterUnreachable(f"'{self._settings.master}' names no master")
        for master in list(self._masters):
            try:
                async with asyncio.timeout(_CONNECT):
                    return await self._begin(master, user)
            except (OSError, EOFError, ValueError, MasterUnreachable) as error:
                last = error
                self._masters.append(self._masters.pop(0))
        raise MasterUnreachable(f"gateway {self._settings.node}: no master answers ({last})")

    async def _begin(self, master: str, user: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = api.host_and_port(master)
        reader, writer = await asyncio.open_connection(
            host, port, ssl=self._context, server_hostname=host, limit=_LONGEST_HEAD
        )
        try:
            if api.organization(writer.get_extra_info("peercert")) != "master":
                raise MasterUnreachable(f"{master} shows a certificate of the cluster, but not a master's")
            path = f"/v1/gateway/user/{quote(user, safe='')}"
            writer.write(f"PUT {path} HTTP/1.1\r\nHost: gateway\r\nContent-Length: 0\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status = int(head.split(" ", 2)[1])
            if status != 204:
                length = next(
                    (
                        int(line[15:])
                        for line in head.lower().split("\r\n")
                        if line.startswith("content-length:")
                    ),
                    0,
                )
                raise api.refusal(master, status, await reader.readexactly(min(length, _LONGEST_HEAD)))
        except BaseException:
            writer.close()
            raise
        return reader, writer


async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Bytes from one side to the other, until either is gone."""
    with suppress(OSError, ssl.SSLError):
        while data := await source.read(_CHUNK):
            target.write(data)
            await target.drain()


def _uid_of(connection: socket.socket) -> int:
    """Whose the process at the other end is."""
    _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)


def _answer(error: HpcmesosError) -> bytes:
    """The error as the API would have said it."""
    reply = ErrorReply(code=error.code, message=str(error), exit_code=error.exit_code)
    body = msgspec.json.encode(reply)
    head = f"HTTP/1.1 {error.http_status} Refused\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def deliver(settings: GatewaySettings) -> None:
    """Until cancelled: asks the masters for output, and writes it.

    In a thread that the process need not wait for when it ends: a delivery may be cut off anywhere.
    """
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def work() -> None:
        try:
            _keep_delivering(settings)
        except BaseException as error:  # a gateway that delivers nothing must not stay
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(over.set_exception, error)

    threading.Thread(target=work, daemon=True).start()
    await over


def _keep_delivering(settings: GatewaySettings) -> None:
    masters = Masters(settings)
    deliverer = Deliverer(settings.state, masters)
    lines = Lines(deliverer.deliver)
    pause = _FIRST_PAUSE
    while True:
        try:
            found = masters.waiting()
            if not found:
                deliverer.clean()
            if lines.give(found) or not found:
                pause = _FIRST_PAUSE
                continue
            lines.wait(min(pause, _LOOK))  # a master answers at once as long as anything is left
        except (HpcmesosError, OSError, ValueError, msgspec.MsgspecError) as error:
            log.warning("nothing can be delivered now: %s", error)
            time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


class Masters:
    """The gateway's own questions to the API; thread-safe."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._state = settings.state
        self._masters = api.several(settings.master)

    def waiting(self) -> list[Delivery]:
        """What there is to write; waits for it for a while."""
        path = f"/v1/deliveries?timeout={_ASK}"
        with self._request(self._masters[0], "GET", path, timeout=_ASK + api.TIMEOUT) as reply:
            return msgspec.json.decode(reply.read(), type=list[Delivery])

    def fetch(self, one: Delivery, target: Path) -> None:
        """From the first master that has it.

        Raises:
            UnknownJob: all have answered, and none has it. StateError: ``target`` cannot be written.
            MasterUnreachable: not the whole of it came, or one that does not answer may have it.
        """
        last: HpcmesosError | None = None
        for master in list(self._masters):
            try:
                return self._fetch(master, one, target)
            except UnknownJob as error:
                last = last or error
            except Unavailable as error:
                last = error
        raise last or MasterUnreachable("there is no master")

    def _fetch(self, master: str, one: Delivery, target: Path) -> None:
        path = f"/v1/outputs/{quote(one.attempt, safe='')}/{one.stream}"
        try:
            file = target.open("wb", buffering=0)
        except OSError as error:
            raise StateError(f"cannot write {target}: {error.strerror}") from error
        with file, self._request(master, "GET", path) as reply:
            while data := reply.read1(_CHUNK):
                try:
                    written = file.write(data)
                except OSError as error:  # not the connection's
                    raise StateError(f"cannot write {target}: {error.strerror}") from error
                if written != len(data):
                    raise StateError(f"cannot write {target}: {os.strerror(errno.ENOSPC)}")

    def finish(self, one: Delivery, trouble: str) -> None:
        """Tells the masters that a delivery is done; ``trouble``: why it cannot be, empty: it is.

        Raises:
            OSError, http.client.HTTPException: no answer. Whatever leaf of the error tree the API answered.
        """
        path = f"/v1/deliveries/{quote(one.attempt, safe='')}/{one.stream}"
        body = msgspec.to_builtins(Delivered(trouble=trouble))
        with self._request(self._masters[0], "POST", path, body) as reply:
            reply.read()

    @contextmanager
    def _request(
        self,
        master: str,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        timeout: float = api.TIMEOUT,
    ) -> Iterator[HTTPResponse]:
        """As api.request; after a master that cannot answer, the next question goes to another."""
        try:
            with api.request(master, method, path, body, api.context(self._state), timeout) as reply:
                yield reply
        except Unavailable:
            if (masters := self._masters)[0] == master:
                self._masters = [*masters[1:], master]
            raise
