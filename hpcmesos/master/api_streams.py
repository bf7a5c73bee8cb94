"""The API's handlers of output and terminals: what comes in pieces, and goes by gateways."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated

import msgspec
from litestar import get, post, put, websocket
from litestar.exceptions import WebSocketDisconnect
from litestar.params import Parameter
from litestar.response import Stream

from hpcmesos import api_schema
from hpcmesos.errors import HpcmesosError
from hpcmesos.master.requests import ApiRequest, ApiSocket, actor_of, caller_of, peer_of, site_of
from hpcmesos.master.services import display, logs, outputs, terminal, wait
from hpcmesos.master.services.lookup import find_own
from hpcmesos.master.services.replies import one_line

_RESTARTING = 1012  # the WebSocket's code for a server that stops
_BROKEN = frozenset({1005, 1006, 1011})  # a connection that ended without a close, or answered no ping


@get("/v1/jobs/{job_id:str}/logs/{stream:str}", media_type="application/octet-stream")
async def read_log(
    job_id: str, stream: str, request: ApiRequest, offset: int = 0, follow: bool = False
) -> Stream:
    """The bytes of ``stdout`` or ``stderr``, for the job's owner and operators."""
    logs.check_stream(stream, offset)
    site = site_of(request)
    caller = await wait.in_thread(caller_of, request)
    job = await wait.in_thread(find_own, site, caller, job_id)
    chunks: AsyncIterator[bytes] = logs.Reader(site, job, stream, offset).read(follow=follow)
    return Stream(chunks, media_type="application/octet-stream")


@websocket("/v1/jobs/{job_id:str}/terminal")
async def attach_terminal(
    job_id: str,
    socket: ApiSocket,
    rows: int = 24,
    columns: int = 80,
    attempt: int = 0,
    offset: int = 0,
) -> None:
    """The terminal of an interactive job, for its owner; see services/terminal.py. A refusal is an ErrorReply."""
    async with _accepted(socket):
        site = site_of(socket)
        caller = await wait.in_thread(actor_of, socket)
        job = await wait.in_thread(terminal.find_terminal, site, caller, job_id)
        client = _TerminalClient(socket, local=peer_of(socket).uid is not None)
        await terminal.Relay(site, caller, job, client, (attempt, offset), (rows, columns)).run()


@websocket("/v1/jobs/{job_id:str}/display")
async def attach_display(job_id: str, socket: ApiSocket, attempt: int, connection: int) -> None:
    """One connection to the display of an interactive job, for its owner. A refusal is an ErrorReply."""
    async with _accepted(socket):
        site = site_of(socket)
        caller = await wait.in_thread(actor_of, socket)
        job = await wait.in_thread(terminal.find_terminal, site, caller, job_id)
        await display.relay(site, job, attempt, connection, _TerminalClient(socket, local=True))


@asynccontextmanager
async def _accepted(socket: ApiSocket) -> AsyncIterator[None]:
    """Until the end of the block, or until the other side goes. An error of ours is told as a refusal."""
    await socket.accept()
    with suppress(WebSocketDisconnect):
        try:
            yield
        except HpcmesosError as error:
            await _refuse(socket, error)
        await socket.close()


async def _refuse(socket: ApiSocket, error: HpcmesosError) -> None:
    reply = api_schema.ErrorReply(code=error.code, message=one_line(str(error)), exit_code=error.exit_code)
    await socket.send_json({"event": "refused", **msgspec.to_builtins(reply)})


class _TerminalClient:
    """A WebSocket as `terminal.Relay` wants it.

    A client that leaves says so. One that went without a word over a network may be back by another way; ``local``,
    on a unix socket, its process is gone.
    """

    def __init__(self, socket: ApiSocket, *, local: bool) -> None:
        self._socket = socket
        self._lost = {_RESTARTING} if local else {_RESTARTING, *_BROKEN}
        self.left = False

    async def receive(self) -> bytes | str | None:
        event = await self._socket.receive()
        if event["type"] != "websocket.receive":
            self.left = event.get("code") not in self._lost
            return None
        return event.get("bytes") or event.get("text") or b""

    async def send(self, data: bytes | str) -> None:
        await self._socket.send_data(data, "binary" if isinstance(data, bytes) else "text")


@put("/v1/gateway/user/{user:str}", sync_to_thread=True, status_code=204)
def vouch_for(user: str, request: ApiRequest) -> None:
    """A gateway's first word on a connection that it makes for a local user: all that follows is this user's."""
    outputs.vouch(caller_of(request), peer_of(request), user)


@get("/v1/deliveries")
async def list_deliveries(
    request: ApiRequest, timeout: Annotated[float, Parameter(ge=0)] = 0.0
) -> list[api_schema.Delivery]:
    """Output that the gateway which asks has to write; answers when there is some, or after ``timeout`` seconds."""
    caller = await wait.in_thread(caller_of, request)
    return await outputs.waiting(site_of(request), caller, timeout)


@post("/v1/deliveries/{attempt:str}/{stream:str}", sync_to_thread=True, status_code=204)
def finish_delivery(attempt: str, stream: str, data: api_schema.Delivered, request: ApiRequest) -> None:
    """A gateway has written a stream, or says why it cannot."""
    outputs.finish(site_of(request), caller_of(request), attempt, stream, data.trouble)


@put("/v1/outputs/{attempt:str}/{stream:str}", status_code=200)
async def store_output(
    attempt: str,
    stream: str,
    request: ApiRequest,
    offset: Annotated[int, Parameter(ge=0, le=2**62)],
    total: Annotated[int, Parameter(ge=0, le=2**62)],
    wait_seconds: Annotated[float, Parameter(query="wait", ge=0)] = 0.0,
) -> api_schema.OutputReply:
    """A piece of what an attempt has written and nodes could not bring to its place; from the attempt's node."""
    site = site_of(request)
    caller = await wait.in_thread(caller_of, request)
    data = await request.body()
    reply = await wait.in_thread(outputs.take, site, caller, attempt, stream, (offset, total), data)
    return await outputs.settled(site, reply, attempt, stream, wait_seconds)


@get("/v1/outputs/{attempt:str}/{stream:str}", media_type="application/octet-stream")
async def fetch_output(attempt: str, stream: str, request: ApiRequest) -> Stream:
    """A stream that the gateway which asks has to write."""
    caller = await wait.in_thread(caller_of, request)
    chunks = await outputs.content(site_of(request), caller, attempt, stream)
    return Stream(chunks, media_type="application/octet-stream")


STREAMS = [
    read_log,
    attach_terminal,
    attach_display,
    vouch_for,
    list_deliveries,
    finish_delivery,
    store_output,
    fetch_output,
]
