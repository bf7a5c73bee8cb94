"""One API process: the application over the unix socket and over TLS, on sockets that the supervisor bound.

``HPCMESOS_API_CONFIG`` names the file of a :class:`hpcmesos.master.child.Child`; either descriptor may be null. The
process ends on SIGTERM, letting requests finish, and with its parent.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
import ssl
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
import uvloop
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from hpcmesos import api_schema
from hpcmesos.errors import MasterUnreachable
from hpcmesos.master.api import build_app
from hpcmesos.master.child import API_CONFIG, Child, log_to_stderr
from hpcmesos.master.door import Acceptor, Door, GuardedProtocol, GuardedWebSocket, Limits
from hpcmesos.master.identity import Identity, keep_fresh
from hpcmesos.master.metrics import Metrics, counting
from hpcmesos.master.seldom import Seldom
from hpcmesos.master.services import authorities
from hpcmesos.master.services.routing import LOOK, Router
from hpcmesos.master.services.site import Site
from hpcmesos.master.services.wait import in_thread
from hpcmesos.priority import come_first
from hpcmesos.queue.servers import look_after
from hpcmesos.queue.store import Store

log = logging.getLogger(__name__)

_GRACE = 0.5  # seconds that requests may take to finish
_STOPPING = msgspec.json.encode(
    api_schema.ErrorReply(
        code=MasterUnreachable.code,
        message="the server stops; try again",
        exit_code=MasterUnreachable.exit_code,
    )
)
_CLIENT_SILENCE = 60.0  # seconds without an answer to a ping: the client at a terminal is gone
_LARGEST_MESSAGE = 1024 * 1024  # bytes of what a terminal's client sends at once
_LAST = 3.0  # seconds after the last request that threads may take to end
_SWITCH_INTERVAL = 0.0005  # seconds; a request hops between the loop and a thread
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Serves until SIGTERM or the end of the parent."""
    config = Child.read(Path(os.environ[API_CONFIG]))
    log_to_stderr(config.settings.log_level)
    come_first()
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # it tells of every client that leaves early
    supervisor = _die_with_supervisor()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    uvloop.run(_serve(config, supervisor))
    return 0


async def _serve(config: Child, supervisor: int | None) -> None:
    settings, certificate, key, ca = config.settings, config.certificate, config.key, config.ca
    url = settings.api_database_url or settings.database_url
    look_after(url)
    store = Store(url)
    identity = Identity(certificate, key, ca)
    site = replace(Site.open(settings, store, identity.client), supervisor=supervisor)
    metrics = Metrics(site)
    app = counting(_interruptible(build_app(site, metrics)), metrics)
    door = Door(Limits().within_descriptors())
    servers: list[tuple[_Server, socket.socket]] = []
    if config.unix_fd is not None:
        servers.append((_server(app, None, door), socket.socket(fileno=config.unix_fd)))
    if config.tls_fd is not None:
        tls = identity.server(require_client=False)
        servers.append((_server(app, tls, door), socket.socket(fileno=config.tls_fd)))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, [server for server, _ in servers])
    tasks = [
        asyncio.create_task(keep_fresh(identity)),
        asyncio.create_task(_keep_routing(Router(site))),
        asyncio.create_task(_keep_authorities(authorities.Keeper(site))),
    ]
    gc.freeze()  # a collection that looks at all that was loaded stops every answer for 40 ms and more
    try:
        await asyncio.gather(*(server.serve([listener]) for server, listener in servers))
    finally:
        # A thread in a call that does not come back must not keep a process that serves nobody any more.
        last = threading.Timer(_LAST, os._exit, (0,))
        last.daemon = True
        last.start()
        for task in tasks:
            task.cancel()
        site.close()


async def _keep_routing(router: Router) -> None:
    """Looks after jobs in route queues for as long as this process serves."""
    outages = Seldom(log)
    while True:
        await asyncio.sleep(LOOK)
        try:
            await in_thread(router.look)
        except Exception as error:  # the next look may do better; requests are served meanwhile
            outages.warn(f"route queues are looked at later: {error}")


async def _keep_authorities(keeper: authorities.Keeper) -> None:
    """Has this master's files follow what the database says of certificate authorities."""
    said = ""
    while True:
        try:
            await in_thread(keeper.look)
            said = ""
        except Exception as error:  # the next look may do better; requests are served meanwhile
            if str(error) != said:
                log.error("certificate authorities are looked at later: %s", error)
            said = str(error)
        await asyncio.sleep(authorities.LOOK)


class _Server(uvicorn.Server):
    """A server that leaves signals to us, for two of them share the process, and takes TLS in by the door."""

    def __init__(self, config: uvicorn.Config, door: Door) -> None:
        super().__init__(config)
        self._door = door

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await self._serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        tls = self.config.ssl
        if tls is None or sockets is None:
            return await super().startup(sockets)
        await self.lifespan.startup()
        self.servers = [Acceptor(self._door, one, tls, self._protocol) for one in sockets]  # type: ignore[misc]  # asked to close only
        self.started = True

    def _protocol(self) -> GuardedProtocol:
        return GuardedProtocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )


def _server(app: Any, tls: ssl.SSLContext | None, door: Door) -> _Server:
    GuardedProtocol.door = door
    config = uvicorn.Config(
        app,
        http=GuardedProtocol,
        ws=GuardedWebSocket,
        ws_max_size=_LARGEST_MESSAGE,
        ws_per_message_deflate=False,
        ws_ping_timeout=_CLIENT_SILENCE,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # nobody may say for another where he comes from
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=_GRACE,  # type: ignore[arg-type]  # asyncio takes fractions
        backlog=4096,
    )
    config.load()
    config.ssl = tls
    return _Server(config, door)


def _interruptible(app: ASGIApp) -> ASGIApp:
    """``app`` whose clients that still wait when we stop are told to come again; an answer under way just breaks."""

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def note(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await app(scope, receive, note)
        except asyncio.CancelledError:
            if not begun and scope["type"] == ScopeType.HTTP:
                headers = [(b"content-type", b"application/json")]
                await send({"type": "http.response.start", "status": 503, "headers": headers})
                await send({"type": "http.response.body", "body": _STOPPING, "more_body": False})

    return served


def _stop(servers: list[_Server]) -> None:
    for server in servers:
        server.should_exit = True


def _die_with_supervisor() -> int | None:
    """SIGTERM when the supervisor ends, also if it has ended already: requests in progress may finish.

    Answers its pid; None: this process was started without one.
    """
    known = os.environ.pop("HPCMESOS_SUPERVISOR", None)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if known is not None and os.getppid() != int(known):
        sys.exit("the supervisor is gone already")
    return None if known is None else int(known)


if __name__ == "__main__":
    sys.exit(main())
