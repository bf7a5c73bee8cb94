"""``python -m hpcmesos.agent.docker_proxy GRANT``: the Docker socket of one attempt, with the Engine behind it.

Standard input is the socket, listening already; GRANT is JSON, see `Settings`. A process of its own, started by the
shepherd with the first caller and ended with the attempt: the Engine may hang, and what a job says is read here and
nowhere else. What may be asked, and what becomes of it, is `docker_rules`' and `docker_create`'s.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import h11
import msgspec

from hpcmesos.agent import docker_rules
from hpcmesos.agent.docker_create import Bind, Grant, Refused
from hpcmesos.agent.docker_rules import Call, Kind
from hpcmesos.launch import docker_pins
from hpcmesos.launch.container import TEMPORARY

_CHUNK = 1 << 16
_LARGEST_BODY = 1 << 20
"""Bytes of a request; those of `docker run` have a few thousand."""
_MOST_CALLERS = 64
_MOST_CONTAINERS = 256
"""Of one attempt on its node, at once: the Engine, which all share, holds each in its memory."""
_MOST_COMMANDS = 4096
"""In one container. The Engine forgets one some minutes after its end."""
_FAREWELL = 10.0
"""Seconds that containers which are being started are waited for: later they could not be killed with the others."""
_BETWEEN_ENDS = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te", b"trailer"})
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Settings:
    """``engine``: path of its socket. ``pins``: directory. ``private_tmp``: what the job has for /tmp; empty: the
    node's. ``shepherd``: its pid.
    """

    grant: Grant
    engine: str
    pins: str
    private_tmp: str
    shepherd: int


def settings(text: str) -> Settings:
    """From JSON. Directories that may be mounted become free of symbolic links, and of what a private /tmp hides."""
    given = msgspec.json.decode(text, type=Settings)
    hidden = TEMPORARY if given.private_tmp else ()
    paths = [(os.path.realpath(path), write) for path, write in given.grant.paths if path not in hidden]
    return replace(given, grant=replace(given.grant, paths=tuple(paths)))


def main(argv: list[str]) -> int:
    """Serves until SIGTERM, or the shepherd's death."""
    given = settings(argv[0])
    _end_with(given.shepherd)
    os.umask(0o077)
    asyncio.run(Proxy(given).serve(socket.socket(fileno=os.dup(0))))
    return 0


def _end_with(shepherd: int) -> None:
    """Whatever this process waits for then. The kernel forgets the wish when the process changes its rights."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != shepherd:  # it has died before
        os._exit(1)


class Proxy:
    """The callers of one attempt."""

    def __init__(self, given: Settings) -> None:
        self.grant = given.grant
        self.engine = given.engine
        self._private_tmp = given.private_tmp
        self._shepherd = given.shepherd
        self._pins = docker_pins.Pins(given.pins)
        self._callers: set[asyncio.Task[None]] = set()
        self._starting: set[asyncio.Task[None]] = set()
        self.creating = asyncio.Lock()
        """Of containers one at a time is created: so what is mounted in none is not about to be."""

    async def serve(self, listening: socket.socket) -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        server = await asyncio.start_unix_server(self._serve, sock=listening)
        await stop.wait()
        server.close()
        for caller in self._callers:
            caller.cancel()
        if self._starting:
            await asyncio.wait(self._starting, timeout=_FAREWELL)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._callers.add(task)
        try:
            if self._may_call(writer.get_extra_info("socket")):
                await Caller(self, reader, writer).serve()
        except (OSError, h11.ProtocolError, asyncio.CancelledError):
            pass  # it is gone, or speaks no HTTP, or the job is over
        except Exception as error:  # ours, and nobody else's trouble
            sys.stderr.write(f"docker proxy: {error!r}\n")
        finally:
            self._callers.discard(task)
            writer.close()

    def _may_call(self, connection: Any) -> bool:
        """The job's owner, by the kernel's word, and not too often at once."""
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", data)
        return uid in (0, self.grant.uid) and len(self._callers) <= _MOST_CALLERS

    async def resolved(self, call: Call) -> Call:
        """About the job's own container, by its whole id.

        Raises:
            NotThere: the job has none of that name.
        """
        if call.route.kind is Kind.EXECUTION:
            found = await self._look(f"/exec/{call.execution}/json")
            container = str(found.get("ContainerID", "")) if found else ""
            if not container or await self._own(container) is None:
                raise NotThere(f"No such exec instance of this job: {call.execution[:100]}")
        elif call.container:
            own = await self._own(call.container)
            if own is None:
                raise NotThere(f"No such container of this job: {call.container[:100]}")
            if call.route.kind is Kind.EXECUTE and len(own.get("ExecIDs") or ()) >= _MOST_COMMANDS:
                raise Refused(
                    f"{call.container[:100]} has had {_MOST_COMMANDS} commands of late; wait some minutes"
                )
            return call.about(str(own["Id"]))
        return call

    async def make_room(self) -> None:
        """For one more container; what no container mounts any more is let go. Raises Refused."""
        found = await self._look(docker_rules.all_own(self.grant)) or []
        if len(found) >= _MOST_CONTAINERS:
            raise Refused(
                f"a job has at most {_MOST_CONTAINERS} containers on a node; remove some: docker rm"
            )
        self._pins.trim({mount["Source"] for one in found for mount in one.get("Mounts") or ()})

    async def _own(self, name: str) -> dict[str, Any] | None:
        """What the Engine says of a container of this job; None: it is another's, or there is none."""
        found = await self._look(f"/containers/{name}/json")
        if found is None or not docker_rules.is_own(self.grant, found):
            return None
        return dict(found)

    async def _look(self, target: str) -> Any:
        """The Engine's answer to a question; None: it knows nothing of that."""
        async with self.exchange() as exchange:
            answer = await exchange.begin("GET", target, [], b"")
            body = b"".join([data async for data in exchange.data()])
        return json.loads(body) if answer.status_code == 200 else None

    def mounted(self, call: Call) -> Call:
        """With what it mounts held in place, and what its owner may not reach refused."""
        if call.creation is None:
            return call
        binds, places = [], []
        for bind in call.creation.binds:
            place, writable = self._hold(bind)
            places.append(place)
            binds.append(replace(bind, read_only=bind.read_only or not writable))
        return replace(call, body=replace(call.creation, binds=tuple(binds)).with_binds(places))

    def _hold(self, bind: Bind) -> tuple[str, bool]:
        grant, source = self.grant, self._on_the_node(os.path.normpath(bind.source))
        try:
            try:
                fd = docker_pins.open_as(grant.uid, grant.gid, grant.groups, source)
            finally:
                _end_with(self._shepherd)
            try:
                writable = grant.writable(docker_pins.real_path(fd))
                return self._pins.hold(fd), writable
            finally:
                os.close(fd)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise Refused(
                f"{bind.source} cannot be mounted: {why}; mount what {grant.name} has made and may reach"
            ) from None

    def _on_the_node(self, path: str) -> str:
        """Where what the job sees at ``path`` lies."""
        for place in TEMPORARY if self._private_tmp else ():
            if path == place or path.startswith(place + "/"):
                return self._private_tmp + path.removeprefix(place)
        return path

    async def started(self, work: Coroutine[Any, Any, None]) -> None:
        """Does what starts a container: whoever ends the attempt waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._starting.add(task)
        task.add_done_callback(self._over)
        await asyncio.shield(task)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        if not task.cancelled():
            task.exception()  # its caller has heard of it, unless he is gone

    @asynccontextmanager
    async def exchange(self) -> AsyncIterator[Exchange]:
        """One request to the Engine.

        Raises:
            NoEngine: it does not listen.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(self.engine)
        except OSError as error:
            raise NoEngine(f"the Docker Engine of this node does not answer: {error.strerror}") from error
        try:
            yield Exchange(reader, writer)
        finally:
            writer.close()


class NotThere(Exception):
    """404."""


class NoEngine(Exception):
    """503."""


class Exchange:
    """One request to the Engine, and its answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._http = h11.Connection(h11.CLIENT)

    async def begin(
        self, method: str, target: str, headers: list[tuple[str, str]], body: bytes
    ) -> h11.Response | h11.InformationalResponse:
        """The head of the answer; with 101 the connection is a stream from now on."""
        length = [("Content-Length", str(len(body)))] if body or method == "POST" else []
        request = h11.Request(method=method, target=target, headers=[("Host", "docker"), *headers, *length])
        for event in (request, h11.Data(data=body), h11.EndOfMessage()):
            if data := self._http.send(event):
                self.writer.write(data)
        await self.writer.drain()
        while True:
            event = await self._next()
            if isinstance(event, h11.Response) or (
                isinstance(event, h11.InformationalResponse) and event.status_code == 101
            ):
                return event
            if isinstance(event, h11.ConnectionClosed):
                raise NoEngine("the Docker Engine of this node hung up")

    async def data(self) -> AsyncIterator[bytes]:
        """The body of the answer, as it comes."""
        while not isinstance(event := await self._next(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                yield bytes(event.data)

    def rest(self) -> bytes:
        """What came behind a 101."""
        return bytes(self._http.trailing_data[0])

    async def _next(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self.reader.read(_CHUNK))
        return event


class Caller:
    """One connection of the job."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER)
        self._bodiless = False  # it asks for a head alone

    async def serve(self) -> None:
        """Request after request, until one of both ends it."""
        while (request := await self._request()) is not None:
            try:
                await self._answer(*request)
            except Refused as error:
                await self._say(403, str(error))
            except NotThere as error:
                await self._say(404, str(error))
            except NoEngine as error:
                await self._say(503, str(error))
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _request(self) -> tuple[h11.Request, bytes] | None:
        """None: there is no further one."""
        head, body = None, bytearray()
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    await self._say(error.error_status_hint, str(error))
                return None
            if event is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    self._send(h11.InformationalResponse(status_code=100, headers=[]))
                self._http.receive_data(await self._reader.read(_CHUNK))
            elif isinstance(event, h11.Request):
                head = event
                self._bodiless = head.method == b"HEAD"
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > _LARGEST_BODY:
                    await self._say(
                        413, "requests of jobs have at most 1 MiB; images cannot be built or loaded here"
                    )
                    return None
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return head, bytes(body)
            else:
                return None

    async def _answer(self, request: h11.Request, body: bytes) -> None:
        proxy = self._proxy
        method, target = request.method.decode("ascii"), request.target.decode("ascii", "replace")
        call = await proxy.resolved(docker_rules.read(proxy.grant, method, target, body))
        if call.route.kind is Kind.CREATE:
            await proxy.started(self._create(call, request))
        elif call.route.starts:
            await proxy.started(self._relay(call, request))
        elif call.route.hijacks:
            await self._relay(call, request)
        else:
            await self._while_it_is_there(self._relay(call, request))

    async def _create(self, call: Call, request: h11.Request) -> None:
        async with self._proxy.creating:
            await self._proxy.make_room()
            await self._relay(self._proxy.mounted(call), request)

    async def _relay(self, call: Call, request: h11.Request) -> None:
        headers = _passed_on(call, request)
        content = b"" if call.body is None else json.dumps(call.body).encode()
        async with self._proxy.exchange() as exchange:
            try:
                answer = await exchange.begin(call.method, call.target, headers, content)
            except h11.RemoteProtocolError as error:
                raise NoEngine(f"the Docker Engine of this node is not understood: {error}") from error
            kept = [(name, value) for name, value in answer.headers if name not in _BETWEEN_ENDS]
            if answer.status_code == 101:
                upgrade = [(b"Connection", b"Upgrade"), (b"Upgrade", b"tcp")]
                self._send(h11.InformationalResponse(status_code=101, headers=[*kept, *upgrade]))
                await self._splice(exchange)
                return
            self._send(h11.Response(status_code=answer.status_code, headers=kept))
            await self._writer.drain()
            async for data in exchange.data():
                self._send(h11.Data(data=data))
                await self._writer.drain()
            self._send(h11.EndOfMessage())
            await self._writer.drain()

    async def _splice(self, exchange: Exchange) -> None:
        """Both ends speak freely. The end of what a container says is the end; that of its input is passed on."""
        exchange.writer.write(bytes(self._http.trailing_data[0]))
        self._writer.write(exchange.rest())
        told = asyncio.create_task(_pump(self._reader, exchange.writer))
        try:
            await _pump(exchange.reader, self._writer)
        finally:
            told.cancel()

    async def _while_it_is_there(self, work: Coroutine[Any, Any, None]) -> None:
        """Until it hangs up: nobody else ends `docker wait` or `docker logs -f`."""
        working = asyncio.create_task(work)
        gone = asyncio.create_task(self._gone())
        try:
            await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not working.done():
                working.cancel()
            await asyncio.wait({working, gone})  # one at a time may read
        await working

    async def _gone(self) -> None:
        """What it says meanwhile is its next request, of which we take no more than a chunk."""
        with suppress(OSError):
            if data := await self._reader.read(_CHUNK):
                self._http.receive_data(data)
                await asyncio.Event().wait()

    async def _say(self, status: int, message: str) -> None:
        """As the Engine says what is wrong."""
        content = json.dumps({"message": message}).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
        self._send(h11.Response(status_code=status, headers=headers))
        if not self._bodiless:
            self._send(h11.Data(data=content))
        self._send(h11.EndOfMessage())
        await self._writer.drain()

    def _send(self, event: h11.Event) -> None:
        if data := self._http.send(event):
            self._writer.write(data)


def _passed_on(call: Call, request: h11.Request) -> list[tuple[str, str]]:
    """The headers that count: the registry's login, and the wish for a stream."""
    given = {name: value.decode("latin-1") for name, value in request.headers}
    headers = [("Content-Type", "application/json")] if call.body is not None else []
    if call.route.kind is Kind.PULL and b"x-registry-auth" in given:
        headers.append(("X-Registry-Auth", given[b"x-registry-auth"]))
    if call.route.hijacks and given.get(b"upgrade", "").lower() == "tcp":
        headers += [("Connection", "Upgrade"), ("Upgrade", "tcp")]
    return headers


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
