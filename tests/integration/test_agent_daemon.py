"""The agent as a process, between a scripted leader (real TLS, real frames) and a scripted or the real shepherd."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
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

import msgspec
import pytest

from hpcmesos import wire
from hpcmesos.agent.control import living, stop_shepherd
from hpcmesos.config import AgentSettings
from hpcmesos.launch import protocol
from hpcmesos.launch.clock import boottime
from hpcmesos.master import pki
from hpcmesos.pidfile import start_time

M = TypeVar("M", bound=wire.Message)
LIMIT = 20.0


def wait_until(condition: Callable[[], Any], what: str, limit: float = LIMIT) -> Any:
    """The first true value of ``condition``; fails with the last one seen."""
    event, deadline = threading.Event(), time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: last seen {value!r}"
        event.wait(0.01)
    return value


class Leader:
    """A leader that only notes what comes and says what the test tells it, and an API on a unix socket beside it."""

    def __init__(self, directory: Path) -> None:
        self.ca = pki.ensure_ca(directory)
        certificate, key = pki.ensure_certificate(self.ca, directory / "m", "m1", "master", ["127.0.0.1"])
        self.tls = pki.server_context(certificate, key, self.ca.path, require_client=True)
        self.api_tls = pki.server_context(certificate, key, self.ca.path, require_client=False)
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
        certificate = pki.sign_csr(self.ca, body["csr"], "agent", body["node"])
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
    if node.process:
        node.stop()
    assert stop_shepherd(node.settings, force=True, timeout=LIMIT)
    print(node.output() if node.log.exists() else "")


@pytest.fixture
def shepherd(node: Node) -> Iterator[ScriptedShepherd]:
    shepherd = ScriptedShepherd(node.settings)
    yield shepherd
    if node.process:
        node.stop()
    shepherd.close()


def spec(attempt: str, gpus: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
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
    node.start()
    shepherd.accept()
    return leader.expect(wire.Hello)


def ended(attempt: str, **changes: Any) -> dict[str, Any]:
    return {"event": "ended", "attempt": attempt, "head": True, "cause": "OK", "code": 0} | changes


def test_the_dead_man_timer_is_wound_with_what_the_leader_has_heard(
    node: Node, leader: Leader, shepherd: ScriptedShepherd
) -> None:
    began = boottime()
    shepherd.hello |= {"journal": "journal1", "operations": ["hello", "prepare", "end", "contact"]}
    assert connected(node, leader, shepherd).journal == "journal1"
    sent = []
    for nonce, heard in ((1, 0), (2, 0), (3, 2)):
        leader.say(wire.Ping(nonce=nonce, heard=heard))
        assert leader.expect(wire.Pong).nonce == nonce
        sent.append(boottime())
    leader.say(wire.End(attempt="7.hpcm#1", cause="DELETED", kill_delay=0.0))
    leader.expect(wire.Ended)
    leader.say(wire.Prepare(attempt="8.hpcm#1", spec=spec("8.hpcm#1", ())))
    assert shepherd.expect()["op"] == "prepare"  # by then all that came before it is here
    hello, second = shepherd.contacts
    assert began <= hello <= sent[0]
    assert sent[0] <= second <= sent[1]


def test_a_shepherd_of_the_release_before_is_asked_nothing_that_it_does_not_know(
    node: Node, leader: Leader, shepherd: ScriptedShepherd
) -> None:
    connected(node, leader, shepherd)
    for nonce in (1, 2, 3):
        leader.say(wire.Ping(nonce=nonce, heard=nonce - 1))
        leader.expect(wire.Pong)
    leader.say(wire.Prepare(attempt="8.hpcm#1", spec=spec("8.hpcm#1", ())))
    assert shepherd.expect()["op"] == "prepare"
    assert shepherd.contacts == []


def test_joins_says_hello_and_relays_an_attempt(
    node: Node, leader: Leader, shepherd: ScriptedShepherd
) -> None:
    hello = connected(node, leader, shepherd)
    assert (hello.node, hello.peer_port, hello.inventory.cpus, hello.inventory.declared) == (
        "node1",
        4711,
        4,
        True,
    )
    gpus = tuple(g.uuid for g in hello.inventory.gpus)
    assert len(gpus) == 2 and all(u.startswith("SIM-") for u in gpus)
    sent = spec("7.hpcm#1", gpus)
    leader.say(wire.Prepare(attempt="7.hpcm#1", spec=sent))
    assert shepherd.expect() == {"op": "prepare", "spec": sent}
    shepherd.say(event="ready", attempt="7.hpcm#1")
    assert leader.expect(wire.Ready).attempt == "7.hpcm#1"
    leader.say(wire.Go(attempt="7.hpcm#1"))
    assert shepherd.expect() == {"op": "go", "attempt": "7.hpcm#1"}
    shepherd.say(
        event="started", attempt="7.hpcm#1", pid=99, started_at=2.0, stdout_path="/o", stderr_path="/e"
    )
    assert leader.expect(wire.Started).pid == 99
    shepherd.say(**ended("7.hpcm#1", stdout_tail=base64.b64encode(b"\0hello").decode(), usage={"cput": 0.5}))
    report = leader.expect(wire.Ended)
    assert (report.code, report.stdout_tail, report.usage) == (0, b"\0hello", {"cput": 0.5})
    leader.say(wire.Acknowledged(attempt="7.hpcm#1"))
    assert shepherd.expect() == {"op": "forget", "attempt": "7.hpcm#1"}


def test_gpus_of_a_live_attempt_are_refused_to_another(
    node: Node, leader: Leader, shepherd: ScriptedShepherd
) -> None:
    gpus = tuple(g.uuid for g in connected(node, leader, shepherd).inventory.gpus)
    leader.say(wire.Prepare(attempt="7.hpcm#1", spec=spec("7.hpcm#1", gpus)))
    leader.say(wire.Prepare(attempt="8.hpcm#1", spec=spec("8.hpcm#1", gpus[1:])))
    refused = leader.expect(wire.Refused)
    assert refused.attempt == "8.hpcm#1" and refused.culprit == "node1"
    assert f"GPU 1 ({gpus[1]}) is allocated by 7.hpcm#1" in refused.reason


def test_end_is_repeated_on_every_new_link_until_acknowledged(
    node: Node, leader: Leader, shepherd: ScriptedShepherd
) -> None:
    connected(node, leader, shepherd)
    leader.say(wire.Prepare(attempt="7.hpcm#1", spec=spec("7.hpcm#1")))
    shepherd.expect()
    leader.part()
    shepherd.say(**ended("7.hpcm#1", code=3, cause="APP"))
    leader.expect(wire.Hello)
    assert leader.expect(wire.Ended).code == 3
    leader.part()
    hello = leader.expect(wire.Hello)
    assert [(a.attempt, a.phase) for a in hello.attempts] == [("7.hpcm#1", "ended")]
    assert leader.expect(wire.Ended).code == 3
    leader.say(wire.Acknowledged(attempt="7.hpcm#1"))
    assert shepherd.expect() == {"op": "forget", "attempt": "7.hpcm#1"}


def test_an_old_leader_is_refused_also_after_a_restart(
    node: Node, leader: Leader, shepherd: ScriptedShepherd
) -> None:
    connected(node, leader, shepherd)
    wait_until((node.settings.state / "term").exists, "the term on disk")
    assert node.stop() == 0
    leader.welcome = wire.Welcome(protocol=wire.PROTOCOL, cluster="c", timeline=1, term=4)
    node.start()
    shepherd.accept()
    assert leader.expect(wire.Hello).seen_term == 5
    wait_until(lambda: "an old leader: timeline 1 term 4" in node.output(), "the refusal in the log")


def test_a_silent_leader_is_left_as_soon_as_another_one_leads(
    node: Node, leader: Leader, shepherd: ScriptedShepherd
) -> None:
    leader.welcome = msgspec.structs.replace(leader.welcome, ping_interval=0.2)
    connected(node, leader, shepherd)
    began = time.monotonic()
    leader.latest = 6
    leader.expect(wire.Hello)
    assert "term 5 is silent, 6 has begun" in node.output()
    assert time.monotonic() - began < 4.5, "a link is given up as dead after 5 s"


def test_a_master_that_hangs_does_not_keep_the_agent_from_the_next_leader(
    node: Node, leader: Leader, shepherd: ScriptedShepherd, directory: Path
) -> None:
    hung = directory / "hung.sock"
    node.settings = dataclasses.replace(node.settings, master=f"unix:{hung},{node.settings.master}")
    connected(node, leader, shepherd)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(hung))
        listening.listen()
        leader.unsure = 2
        began = time.monotonic()
        leader.part()
        leader.expect(wire.Hello)
        assert time.monotonic() - began < 4.5, "a master that does not answer is given 5 s"


def test_an_end_says_how_long_ago_it_was(node: Node, leader: Leader, shepherd: ScriptedShepherd) -> None:
    connected(node, leader, shepherd)
    leader.say(wire.Prepare(attempt="7.hpcm#1", spec=spec("7.hpcm#1")))
    shepherd.expect()
    shepherd.say(**ended("7.hpcm#1", ended_boot=boottime() - 100.0))
    assert 100.0 <= leader.expect(wire.Ended).ago < 100.0 + LIMIT


def test_a_second_agent_for_the_same_state_is_refused(
    node: Node, leader: Leader, shepherd: ScriptedShepherd
) -> None:
    connected(node, leader, shepherd)
    second = Node(node.log.parent, leader)
    second.log = node.log.with_name("second.log")
    assert node.process
    second.start()
    assert second.process and second.process.wait(LIMIT) == 1
    pid = node.process.pid
    assert second.output().splitlines()[-1] == (
        f"hpcmesos agent: an agent already runs for {node.settings.state} (pid {pid})"
    )


def test_a_wrong_token_ends_the_agent_in_one_line(node: Node, leader: Leader) -> None:
    assert node.settings.join_token_file
    node.settings.join_token_file.write_text("0" * 64 + ".x")
    node.start()
    assert node.process and node.process.wait(LIMIT) == 2
    assert "hpcmesos agent: cannot join the cluster: the join token is not valid" in node.output()


def test_joins_over_https_only_where_the_fingerprint_agrees(
    directory: Path, leader: Leader, request: pytest.FixtureRequest
) -> None:
    node = Node(directory, leader, master=leader.url)
    shepherd = ScriptedShepherd(node.settings)
    try:
        assert node.settings.join_token_file
        node.settings.join_token_file.write_text("0" * 64 + "." + leader.secret)
        node.start()
        assert node.process and node.process.wait(LIMIT) == 2
        assert "is not of the cluster that the join token is for" in node.output()
        node.settings.join_token_file.write_text(leader.token)
        assert connected(node, leader, shepherd).node == "node1"
    finally:
        node.stop()
        shepherd.close()


def test_a_leader_without_a_masters_certificate_gets_no_hello(
    node: Node, leader: Leader, shepherd: ScriptedShepherd
) -> None:
    certificate, key = pki.ensure_certificate(
        leader.ca, node.log.parent / "x", "node9", "agent", ["127.0.0.1"]
    )
    leader.tls.load_cert_chain(certificate, key)
    node.start()
    shepherd.accept()
    wait_until(lambda: "is no master" in node.output(), "the refusal in the log")
    assert not any(isinstance(m, wire.Hello) for m in list(leader.received.queue))


# --- with the real shepherd --------------------------------------------------------------------------------------

WAITS = "#!/bin/sh\nread line <{fifo}\nexit 3\n"


@pytest.fixture
def fifo(directory: Path) -> Path:
    path = directory / "fifo"
    os.mkfifo(path)
    return path


def release(fifo: Path) -> None:
    with fifo.open("w") as file:
        file.write("on\n")


def running(node: Node, leader: Leader, script: str) -> tuple[str, ...]:
    """Brings attempt 7.hpcm#1 on all GPUs of the node up to Started."""
    node.start()
    gpus = tuple(g.uuid for g in leader.expect(wire.Hello).inventory.gpus)
    leader.say(wire.Prepare(attempt="7.hpcm#1", spec=spec("7.hpcm#1", gpus, script=script)))
    leader.expect(wire.Ready)
    leader.say(wire.Go(attempt="7.hpcm#1"))
    leader.expect(wire.Started)
    return gpus


def test_true_exit_arrives_after_the_agent_was_killed(node: Node, leader: Leader, fifo: Path) -> None:
    gpus = running(node, leader, WAITS.format(fifo=fifo))
    assert node.stop(signal.SIGKILL) == -signal.SIGKILL
    node.start()
    hello = leader.expect(wire.Hello)
    assert [(a.attempt, a.phase, a.head, a.gpus) for a in hello.attempts] == [
        ("7.hpcm#1", "running", True, gpus)
    ]
    assert [g.state for g in hello.inventory.gpus] == ["allocated", "allocated"]
    leader.say(wire.Prepare(attempt="8.hpcm#1", spec=spec("8.hpcm#1", gpus[:1])))
    assert "is allocated by 7.hpcm#1" in leader.expect(wire.Refused).reason
    release(fifo)
    assert [g.state for g in leader.expect(wire.GpuReport).gpus] == ["free", "free"]
    report = leader.expect(wire.Ended)
    assert (report.attempt, report.head, report.cause, report.code) == ("7.hpcm#1", True, "APP", 3)
    leader.say(wire.Acknowledged(attempt="7.hpcm#1"))
    leader.say(wire.Prepare(attempt="8.hpcm#2", spec=spec("8.hpcm#2", gpus[:1])))
    assert leader.expect(wire.Ready).attempt == "8.hpcm#2"


def test_end_while_the_agent_was_away_is_reported(node: Node, leader: Leader, fifo: Path) -> None:
    running(node, leader, WAITS.format(fifo=fifo))
    assert node.stop() == 0
    release(fifo)
    node.start()
    leader.expect(wire.Hello)
    assert leader.expect(wire.Ended).code == 3


def test_a_killed_shepherd_is_replaced_and_its_attempt_is_lost(
    node: Node, leader: Leader, fifo: Path
) -> None:
    running(node, leader, WAITS.format(fifo=fifo))
    before = living(node.settings)
    assert before
    os.kill(before, signal.SIGKILL)
    hello = leader.expect(wire.Hello)
    assert hello.shepherd_pid not in (0, before)
    report = leader.expect(wire.Ended)
    assert (report.attempt, report.cause, report.code) == ("7.hpcm#1", "NODE_LOST", None)


def test_a_shepherd_of_other_settings_is_replaced_once_its_jobs_are_over(
    node: Node, leader: Leader, fifo: Path
) -> None:
    gpus = running(node, leader, WAITS.format(fifo=fifo))
    before = living(node.settings)
    assert node.stop() == 0
    node.environ["HPCMESOS_GANG_SILENCE"] = "25"
    node.start()
    assert leader.expect(wire.Hello).shepherd_pid == before
    release(fifo)
    assert leader.expect(wire.Ended).code == 3
    assert living(node.settings) == before
    leader.say(wire.Acknowledged(attempt="7.hpcm#1"))
    assert leader.expect(wire.Hello).shepherd_pid not in (0, before)
    leader.say(wire.Prepare(attempt="8.hpcm#1", spec=spec("8.hpcm#1", gpus)))
    assert leader.expect(wire.Ready).attempt == "8.hpcm#1"


def test_end_signal_and_delete(node: Node, leader: Leader, fifo: Path) -> None:
    running(node, leader, WAITS.format(fifo=fifo))
    leader.say(wire.End(attempt="7.hpcm#1", cause="DELETED", kill_delay=1.0))
    report = leader.expect(wire.Ended)
    assert (report.cause, report.signal) == ("DELETED", signal.SIGTERM)


def test_stop_shepherd_waits_for_attempts_unless_forced(node: Node, leader: Leader, fifo: Path) -> None:
    running(node, leader, WAITS.format(fifo=fifo))
    assert stop_shepherd(node.settings, force=False) is False
    assert node.stop() == 0
    assert living(node.settings) is not None
    assert stop_shepherd(node.settings, force=True) is True
    assert living(node.settings) is None


def test_end_for_an_attempt_that_is_not_here_is_answered(node: Node, leader: Leader) -> None:
    node.start()
    leader.expect(wire.Hello)
    leader.say(wire.End(attempt="9.hpcm#1", cause="DELETED", kill_delay=1.0))
    report = leader.expect(wire.Ended)
    assert (report.attempt, report.cause) == ("9.hpcm#1", "DELETED")
    assert report.message == "node node1 holds nothing of 9.hpcm#1"


# --- with cards (the fake NVML) ----------------------------------------------------------------------------------

Cards = Callable[..., dict[str, str]]


@pytest.fixture
def with_cards(directory: Path, leader: Leader) -> Iterator[Node]:
    """``auto``: all cards that NVML shows."""
    node = Node(directory, leader, gpus="auto")
    yield node
    if node.process:
        node.stop()
    assert stop_shepherd(node.settings, force=True, timeout=LIMIT)
    print(node.output())


def card(name: str, **changes: Any) -> dict[str, Any]:
    """One that no other test of this host claims."""
    return {"uuid": f"GPU-{os.getpid()}-{name}"} | changes


def test_a_foreign_process_refuses_the_attempt_by_name(
    with_cards: Node, leader: Leader, fake_nvml: Cards
) -> None:
    a, b = card("a"), card("b")
    with_cards.environ = fake_nvml([a, b])
    with_cards.start()
    assert [g.state for g in leader.expect(wire.Hello).inventory.gpus] == ["free", "free"]
    fake_nvml([a, b | {"processes": {os.getpid(): 1}}])
    leader.say(wire.Prepare(attempt="7.hpcm#1", spec=spec("7.hpcm#1", (a["uuid"], b["uuid"]))))
    (dirty,) = leader.expect(wire.GpuReport).gpus
    assert (dirty.uuid, dirty.state) == (b["uuid"], "cleaning")
    refused = leader.expect(wire.Refused)
    assert refused.culprit == "node1"
    assert f"GPU 1 ({b['uuid']}) is not clean: process {os.getpid()}" in refused.reason
    fake_nvml([a, b])
    (clean,) = leader.expect(wire.GpuReport).gpus
    assert (clean.uuid, clean.state) == (b["uuid"], "free")


def test_a_lost_card_ends_its_attempt_and_costs_one_card(
    with_cards: Node, leader: Leader, fake_nvml: Cards, fifo: Path
) -> None:
    a, b = card("a"), card("b")
    with_cards.environ = fake_nvml([a, b])
    with_cards.start()
    leader.expect(wire.Hello)
    script = WAITS.format(fifo=fifo)
    leader.say(wire.Prepare(attempt="7.hpcm#1", spec=spec("7.hpcm#1", (a["uuid"],), script=script)))
    leader.expect(wire.Ready)
    leader.say(wire.Go(attempt="7.hpcm#1"))
    leader.expect(wire.Started)
    fake_nvml([a | {"lost": True}, b])
    (lost,) = leader.expect(wire.GpuReport).gpus
    assert (lost.uuid, lost.state) == (a["uuid"], "lost")
    report = leader.expect(wire.Ended)
    assert report.cause == "GPU_LOST" and a["uuid"] in report.message
    leader.say(wire.Prepare(attempt="8.hpcm#1", spec=spec("8.hpcm#1", (b["uuid"],))))
    assert leader.expect(wire.Ready).attempt == "8.hpcm#1"


def test_a_card_is_free_only_when_nothing_computes_on_it(
    with_cards: Node, leader: Leader, fake_nvml: Cards, fifo: Path
) -> None:
    a = card("a")
    with_cards.environ = fake_nvml([a])
    running_with = (a["uuid"],)
    with_cards.start()
    leader.expect(wire.Hello)
    sent = spec("7.hpcm#1", running_with, script=WAITS.format(fifo=fifo))
    leader.say(wire.Prepare(attempt="7.hpcm#1", spec=sent))
    leader.expect(wire.Ready)
    leader.say(wire.Go(attempt="7.hpcm#1"))
    leader.expect(wire.Started)
    fake_nvml([a | {"processes": {os.getpid(): 1}}])
    release(fifo)
    assert leader.expect(wire.GpuReport).gpus[0].state == "cleaning"
    assert leader.expect(wire.Ended).code == 3
    leader.say(wire.Acknowledged(attempt="7.hpcm#1"))
    leader.say(wire.Prepare(attempt="8.hpcm#1", spec=spec("8.hpcm#1", running_with)))
    assert "is cleaning" in leader.expect(wire.Refused).reason
    fake_nvml([a])
    leader.expect(wire.GpuReport, lambda r: r.gpus[0].state == "free")


def test_one_card_belongs_to_one_agent_of_the_host(
    with_cards: Node, leader: Leader, fake_nvml: Cards, directory: Path
) -> None:
    a, b = card("a"), card("b")
    with_cards.environ = fake_nvml([a, b])
    with_cards.start()
    assert len(leader.expect(wire.Hello).inventory.gpus) == 2
    other = Node(
        directory, leader, node="node2", state=directory / "state2", sockets=directory / "s2", gpus="auto"
    )
    other.log = directory / "other.log"
    other.environ = with_cards.environ
    try:
        other.start()
        assert leader.expect(wire.Hello).inventory.gpus == ()
        assert f"GPU {a['uuid']} belongs to another agent of this host" in other.output()
    finally:
        other.stop()
        assert stop_shepherd(other.settings, force=True, timeout=LIMIT)


def test_a_blocked_card_does_not_block_the_agent(with_cards: Node, leader: Leader, fake_nvml: Cards) -> None:
    a = card("a")
    with_cards.environ = fake_nvml([a])
    with_cards.start()
    leader.expect(wire.Hello)
    fake_nvml([a], hang=["nvmlDeviceGetComputeRunningProcesses_v3"])
    leader.say(wire.Prepare(attempt="7.hpcm#1", spec=spec("7.hpcm#1", (a["uuid"],))))
    leader.say(wire.Prepare(attempt="8.hpcm#1", spec=spec("8.hpcm#1")))
    assert leader.expect(wire.Ready).attempt == "8.hpcm#1"
    (silent,) = leader.expect(wire.GpuReport).gpus
    assert (silent.state, silent.note) == ("quarantined", "NVML has not answered for 8 s")
    refused = leader.expect(wire.Refused)
    assert refused.attempt == "7.hpcm#1" and "NVML has not answered" in refused.reason
    fake_nvml([a])
    assert leader.expect(wire.GpuReport).gpus[0].state == "free"


def test_cgroups_are_used_where_they_can_be_and_go_with_the_shepherd(
    directory: Path, leader: Leader, fifo: Path
) -> None:
    node = Node(directory, leader, cgroups="auto")
    try:
        running(node, leader, WAITS.format(fifo=fifo))
        cgroup = json.loads((node.settings.state / "shepherd.json").read_text())["cgroup"]
        assert cgroup is None or list(Path(cgroup).glob("*/cgroup.procs"))
        leader.say(wire.End(attempt="7.hpcm#1", cause="DELETED", kill_delay=1.0))
        assert leader.expect(wire.Ended).cause == "DELETED"
    finally:
        node.stop()
        assert stop_shepherd(node.settings, force=True, timeout=LIMIT)
    assert cgroup is None or not Path(cgroup).exists()
