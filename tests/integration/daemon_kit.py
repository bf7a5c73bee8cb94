"""The agent as a process, between a scripted leader (real TLS, real frames) and a scripted or the real shepherd.

Test modules take over the fixtures that they want: ``node = kit.node``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import json
import os
import queue
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from hpcmesos import wire
from hpcmesos.agent.control import stop_shepherd
from hpcmesos.config import AgentSettings
from hpcmesos.launch import protocol
from hpcmesos.master import peers, pki
from hpcmesos.pidfile import start_time

M = TypeVar("M", bound=wire.Message)
LIMIT = 20.0
"""Seconds that anything may take."""
WAITS = "#!/bin/sh\nread line <{fifo}\nexit 3\n"
"""A script that runs until `release`."""


class Leader:
    """A leader that only notes what comes and says what the test tells it, and an API on a unix socket beside it."""

    def __init__(self, directory: Path) -> None:
        self.ca = pki.ensure_ca(directory)
        certificate, key = pki.ensure_certificate(self.ca, directory / "m", "m1", "master", ["127.0.0.1"])
        self.tls = peers.server_context(certificate, key, self.ca.path, require_client=True)
        self.api_tls = peers.server_context(certificate, key, self.ca.path, require_client=False)
        self.socket = directory / "api.sock"
        self.secret = secrets.token_hex(8)
        self.welcome = wire.Welcome(
            protocol=wire.PROTOCOL, cluster="c", timeline=1, term=5, ping_interval=60.0
        )
        self.received: queue.Queue[wire.ToLeader | None] = queue.Queue()
        self.kept: list[wire.ToLeader] = []
        self.address = self.url = ""
        self.latest = 5  # the term that the API tells
        self.unsure = 0  # so many questions are answered by: nobody leads
        self.writer: asyncio.StreamWriter | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.call(self._start())

    @property
    def token(self) -> str:
        return f"{pki.fingerprint(self.ca)}.{self.secret}"

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LIMIT)

    async def _start(self) -> None:
        links = await asyncio.start_server(self._link, "127.0.0.1", 0, ssl=self.tls)
        self.address = f"127.0.0.1:{links.sockets[0].getsockname()[1]}"
        unix = await asyncio.start_unix_server(self._api, self.socket)
        tcp = await asyncio.start_server(self._api, "127.0.0.1", 0, ssl=self.api_tls)
        self.url = f"https://127.0.0.1:{tcp.sockets[0].getsockname()[1]}"
        self._servers = [links, unix, tcp]

    async def _api(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError:
            writer.close()
            return
        sizes = [
            line.split(":")[1] for line in head.splitlines() if line.lower().startswith("content-length")
        ]
        content = await reader.readexactly(int(sizes[0])) if sizes else b""
        path = head.split()[1]
        if path.startswith("/v1/outputs/"):  # a log store that takes everything
            status, answer = 200, {"have": int(re.findall(r"total=(\d+)", path)[0])}
        else:
            status, answer = self._answer(path, json.loads(content) if content else {})
        text = json.dumps(answer).encode()
        writer.write(b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n%b" % (status, len(text), text))
        writer.close()

    def _answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if path.startswith("/v1/leader?"):
            self.unsure -= 1
            address = None if self.unsure >= 0 else self.address
            return 200, {"address": address, "term": self.latest, "timeline": 1}
        if path != "/v1/nodes/join":
            return 404, {"code": "unknown", "message": f"nothing at {path}", "exit_code": 1}
        if body["token"] != self.token:
            return 401, {
                "code": "unauthenticated",
                "message": "the join token is not valid",
                "exit_code": 159,
            }
        certificate = pki.sign(self.ca, pki.read_csr(body["csr"], body["node"]), "agent")
        return 200, {"certificate": certificate, "ca": self.ca.pem, "cluster": "c"}

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            while True:
                body = await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
                message = wire.decode_to_leader(body)
                self.received.put(message)
                if isinstance(message, wire.Hello):
                    writer.write(wire.encode(self.welcome))
        writer.close()
        self.received.put(None)

    def say(self, message: wire.ToAgent) -> None:
        async def write() -> None:
            assert self.writer is not None
            self.writer.write(wire.encode(message))

        self.call(write())

    def part(self) -> None:
        async def close() -> None:
            assert self.writer is not None
            self.writer.transport.abort()

        self.call(close())

    def expect(self, kind: type[M], condition: Callable[[M], bool] = lambda m: True) -> M:
        """The next message of this kind; what came before it is kept for the failure text."""
        deadline = time.monotonic() + LIMIT
        while True:
            try:
                message = self.received.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {kind.__name__}; came: {self.kept[-8:]}") from None
            if isinstance(message, kind) and condition(message):
                return message
            if message is not None:
                self.kept.append(message)

    def close(self) -> None:
        async def stop() -> None:
            for server in self._servers:
                server.close()
            others = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self.call(stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class ScriptedShepherd:
    """control.sock and the locked pid file, in this process."""

    def __init__(self, settings: AgentSettings, attempts: list[dict[str, Any]] | None = None) -> None:
        self.hello = {
            "event": "hello", "pid": os.getpid(), "started_at": 1.0, "peer_port": 4711, "attempts": attempts or [],
        }  # fmt: skip
        for directory in (settings.state, settings.sockets):
            directory.mkdir(parents=True, exist_ok=True)
        self._pid_file = (settings.state / "shepherd.pid").open("w")
        json.dump({"pid": os.getpid(), "start_time": start_time(os.getpid())}, self._pid_file)
        self._pid_file.flush()
        fcntl.flock(self._pid_file, fcntl.LOCK_EX)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(settings.sockets / "control.sock"))
        self._server.listen()
        self._server.settimeout(LIMIT)
        self.connection: socket.socket | None = None
        self.contacts: list[float] = []
        self._parser, self._waiting = protocol.Parser(), list[tuple[bytes, bytes]]()

    def accept(self) -> None:
        if self.connection:
            self.connection.close()
        self.connection, _ = self._server.accept()
        self.connection.settimeout(LIMIT)
        assert self.expect() == {"op": "hello"}
        self.say(**self.hello)

    def say(self, **message: Any) -> None:
        assert self.connection
        self.connection.sendall(protocol.message(message))

    def expect(self) -> dict[str, Any]:
        """The next request but for ``contact``, which winds the dead-man timer; those are counted."""
        assert self.connection
        while True:
            received = protocol.receive(self.connection, self._parser, self._waiting)
            assert received is not None, "the agent closed control.sock"
            request = protocol.decode(received[1])
            if request["op"] != "contact":
                return request
            self.contacts.append(request["at"])

    def close(self) -> None:
        if self.connection:
            self.connection.close()
        self._server.close()
        self._pid_file.close()


class Node:
    """One agent process and its settings."""

    def __init__(self, directory: Path, leader: Leader, **changes: Any) -> None:
        token = directory / "token"
        token.write_text(leader.token)
        self.settings = AgentSettings(
            **{
                "node": "node1", "master": f"unix:{leader.socket}", "state": directory / "state",
                "sockets": directory / "s", "cpus": 4, "memory": 1 << 30, "gpus": "simulated:2",
                "join_token_file": token, "cgroups": "none",
            }
            | changes
        )  # fmt: skip
        self.environ: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.log = directory / "agent.log"

    def start(self) -> None:
        names = ("node", "master", "state", "sockets", "cpus", "memory", "gpus", "join_token_file", "cgroups")
        variables = {f"HPCMESOS_{n.upper()}": str(getattr(self.settings, n)) for n in names}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hpcmesos.cli", "agent"],
                env=os.environ | variables | self.environ | {"HPCMESOS_LOG_LEVEL": "DEBUG"},
                stdout=log, stderr=log,
            )  # fmt: skip

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(LIMIT)

    def end(self) -> None:
        """Stops the shepherd too; shows the log of a test that failed."""
        if self.process:
            self.stop()
        assert stop_shepherd(self.settings, force=True, timeout=LIMIT)
        print(self.output() if self.log.exists() else "")

    def output(self) -> str:
        return self.log.read_text()


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short: unix sockets live in it."""
    path = Path(tempfile.mkdtemp(prefix="hpcm", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def leader(directory: Path) -> Iterator[Leader]:
    leader = Leader(directory)
    yield leader
    leader.close()


@pytest.fixture
def node(directory: Path, leader: Leader) -> Iterator[Node]:
    node = Node(directory, leader)
    yield node
    node.end()


@pytest.fixture
def shepherd(node: Node) -> Iterator[ScriptedShepherd]:
    shepherd = ScriptedShepherd(node.settings)
    yield shepherd
    if node.process:
        node.stop()
    shepherd.close()


def spec(attempt: str, gpus: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    """Of an attempt on this node alone; ``script``: in place of one that does nothing."""
    number = int(attempt.partition(".")[0])
    script = changes.pop("script", "#!/bin/sh\nexit 0\n")
    member = {
        "node": "node1", "address": "127.0.0.1", "peer_port": 0, "cpus": 1, "mem": 0, "slots": 1,
        "gpus": [{"uuid": u, "index": i, "model": "Simulated GPU", "simulated": True} for i, u in enumerate(gpus)],
    }  # fmt: skip
    return {
        "attempt": attempt, "job": attempt.partition("#")[0], "number": number, "index": None, "name": "t",
        "queue": "batch", "server": "hpcm", "owner": "root", "submit_host": "h", "walltime": None, "kill_delay": 2.0,
        "prepare_timeout": 10.0, "environment": {"HOME": "/", "PATH": "/usr/bin:/bin"}, "gpubind": "rank", "me": 0,
        "members": [member], "mpi_network": None, "job_path": [], "names_resolve": True, "workdir": "/", "umask": 0o22,
        "shell": "/bin/sh", "argv": None, "script": base64.b64encode(script.encode()).decode(), "script_args": [],
        "stdout": None, "stderr": None, "join": "n",
    } | changes  # fmt: skip


def connected(node: Node, leader: Leader, shepherd: ScriptedShepherd) -> wire.Hello:
    """Starts the node; it has its shepherd and its leader then."""
    node.start()
    shepherd.accept()
    return leader.expect(wire.Hello)


def ended(attempt: str, **changes: Any) -> dict[str, Any]:
    """A shepherd's word that an attempt is over, as far as the agent looks at it."""
    return {"event": "ended", "attempt": attempt, "head": True, "cause": "OK", "code": 0} | changes


@pytest.fixture
def fifo(directory: Path) -> Path:
    path = directory / "fifo"
    os.mkfifo(path)
    return path


def release(fifo: Path) -> None:
    """Lets a script that WAITS go on, which then returns 3."""
    with fifo.open("w") as file:
        file.write("on\n")


def begin(leader: Leader, gpus: tuple[str, ...], script: str) -> None:
    """Brings attempt 7.hpcm#1 on these GPUs up to Started."""
    leader.say(wire.Prepare(attempt="7.hpcm#1", spec=spec("7.hpcm#1", gpus, script=script)))
    leader.expect(wire.Ready)
    leader.say(wire.Go(attempt="7.hpcm#1"))
    leader.expect(wire.Started)


def running(node: Node, leader: Leader, script: str) -> tuple[str, ...]:
    """Starts the node, and `begin` on all its GPUs."""
    node.start()
    gpus = tuple(g.uuid for g in leader.expect(wire.Hello).inventory.gpus)
    begin(leader, gpus, script)
    return gpus
