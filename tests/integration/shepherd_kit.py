"""Real shepherds in temporary directories, driven over control.sock as an agent does."""

from __future__ import annotations

import base64
import datetime
import errno
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hpcmesos.launch import protocol

LAUNCH = Path(protocol.__file__).parent / "__main__.py"
PATIENCE = 20.0
CLOCK = {"gang_silence": 4.0, "gang_ping": 0.2}
"""Of a gang that shall soon miss a lost member, and none that the machine only keeps waiting."""
UNIFIED = next(
    (p for p in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup") if os.access(f"{p}/cgroup.procs", os.W_OK)), ""
)
ME = pwd.getpwuid(os.geteuid()).pw_name


OPEN = """
import errno, os, sys
for path in sys.argv[1:]:
    try:
        os.close(os.open(path, os.O_RDWR))
        print("opened")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
"""A program that says of each file among its words whether it may be opened."""


def wait_until(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """The first true answer of ``condition``; fails with what it saw last."""
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {what} (last: {answer!r})"
        time.sleep(0.01)
    return answer


class Authority:
    """A CA and the certificates that it signed, as PEM files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test ca")])
        certificate = self._sign(self._name, self._key.public_key(), ca=True)
        self.ca = directory / "ca.pem"
        self.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, organization: str, name: str) -> dict[str, str]:
        """The ``tls`` part of a shepherd's configuration."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )
        certificate = self.directory / f"{organization}-{name}.pem"
        key_file = self.directory / f"{organization}-{name}.key"
        certificate.write_bytes(
            self._sign(subject, key.public_key(), ca=False).public_bytes(serialization.Encoding.PEM)
        )
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return {"certificate": str(certificate), "key": str(key_file), "ca": str(self.ca)}

    def _sign(self, subject: x509.Name, key: Any, ca: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )


class Agent:
    """One connection to control.sock, with everything that it heard."""

    def __init__(self, path: str) -> None:
        self.events: list[dict[str, Any]] = []
        self._parser = protocol.Parser()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        self.send(op="hello")
        self.hello = self.wait("hello")

    def send(self, **request: Any) -> None:
        self._socket.sendall(protocol.message(request))

    def wait(
        self, event: str | tuple[str, ...], attempt: str | None = None, timeout: float = PATIENCE
    ) -> dict[str, Any]:
        """The first event of that kind, or of one of those (and of that attempt), that came or comes."""
        kinds = (event,) if isinstance(event, str) else event
        deadline = time.monotonic() + timeout
        while True:
            for known in self.events:
                if known["event"] in kinds and attempt in (None, known.get("attempt")):
                    return known
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self._socket.recv(1 << 20)
            except TimeoutError:
                raise AssertionError(
                    f"no '{event}' of {attempt} within {timeout} s; heard {self.heard()}"
                ) from None
            assert data, f"the shepherd hung up; heard {self.heard()}"
            self.events += [protocol.decode(body) for _, body in self._parser.feed(data)]

    def heard(self) -> list[tuple[Any, ...]]:
        """The events in short."""
        return [(e["event"], e.get("attempt"), e.get("cause"), e.get("reason")) for e in self.events]

    def close(self) -> None:
        self._socket.close()


class Node:
    """One shepherd and its agent's connection."""

    def __init__(
        self,
        root: Path,
        authority: Authority,
        name: str,
        address: str,
        cgroups: bool,
        prefix: Callable[[list[str]], list[str]] = list,
        **settings: Any,
    ) -> None:
        self._prefix = prefix
        self.name = name
        self.address = address
        self.authority = authority
        self.state = root / name
        self.state.mkdir(exist_ok=True)
        self.state.chmod(0o711)
        self.sockets = Path(tempfile.mkdtemp(prefix="hpcm-", dir="/tmp"))
        self.cgroup = f"{UNIFIED}/hpcmesos-test-{os.getpid()}-{name}" if cgroups else None
        self.config = {
            "node": name,
            "address": address,
            "peer_port": 0,
            "state": str(self.state),
            "sockets": str(self.sockets),
            "tls": authority.issue("agent", name),
            "cgroup": self.cgroup,
            "gang_silence": 20,
            "gang_ping": 2,
            "boot_id": "boot-1",
            "python": sys.executable,
            **settings,
        }
        self.gpus: list[dict[str, Any]] = []
        self.slots = 1
        self.process: subprocess.Popen[bytes]
        self.agent: Agent
        self.start()

    @property
    def control_socket(self) -> str:
        return str(self.sockets / "control.sock")

    def start(self) -> None:
        path = self.state / "config.json"
        path.write_text(json.dumps(self.config))
        Path(self.control_socket).unlink(missing_ok=True)  # as the agent does
        with (self.state / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self._prefix([sys.executable, "-IS", str(LAUNCH), "shepherd", str(path)]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.agent = wait_until(self._connect, f"control.sock of {self.name}: {self.log()}")

    def _connect(self) -> Agent | None:
        assert self.process.poll() is None, self.log()
        with suppress(FileNotFoundError, ConnectionRefusedError):
            return Agent(self.control_socket)
        return None

    def reconnect(self) -> Agent:
        self.agent.close()
        self.agent = Agent(self.control_socket)
        return self.agent

    def log(self) -> str:
        path = self.state / "log"
        return path.read_text() if path.exists() else ""

    def kill(self) -> None:
        """As a crash: nothing is told to anybody."""
        self.process.kill()
        self.process.wait()
        self.agent.close()

    def stop(self) -> None:
        """Ends everything; fails when anything is left in the log or in the cgroup."""
        if self.process.poll() is None:
            self.agent.send(op="shutdown", force=True)
            self.process.wait(PATIENCE)
        self.agent.close()
        shutil.rmtree(self.sockets)
        if self.cgroup:  # who was killed last may still be on its way out
            wait_until(self._cgroup_is_empty, f"{self.cgroup} is empty", 5)
        assert "Traceback" not in self.log(), self.log()

    def _cgroup_is_empty(self) -> bool:
        try:
            os.rmdir(self.cgroup)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    def member(self) -> dict[str, Any]:
        return {
            "node": self.name,
            "address": self.address,
            "peer_port": self.agent.hello["peer_port"],
            "cpus": max(1, self.slots),
            "mem": 0,
            "slots": self.slots,
            "gpus": self.gpus,
        }


def spec(nodes: list[Node], directory: Path, script: str | None = None, **changes: Any) -> dict[str, Any]:
    """The spec of an attempt on ``nodes``, output in ``directory``; "me" is the head."""
    attempt = changes.pop("attempt", "12.hpcm#1")
    value = {
        "attempt": attempt,
        "job": attempt.partition("#")[0],
        "number": int(attempt.partition("#")[2]),
        "index": None,
        "name": "test",
        "queue": "batch",
        "server": "hpcm",
        "owner": ME,
        "submit_host": "localhost",
        "walltime": None,
        "kill_delay": 1.0,
        "prepare_timeout": 10.0,
        "environment": {},
        "gpubind": "rank",
        "me": 0,
        "members": [node.member() for node in nodes],
        "mpi_network": None,
        "job_path": [],
        "names_resolve": False,
        "workdir": str(directory),
        "umask": 0o022,
        "shell": "/bin/sh",
        "argv": None,
        "script": base64.b64encode(script.encode()).decode() if script is not None else None,
        "script_args": [],
        "stdout": str(directory / "out"),
        "stderr": str(directory / "err"),
        "join": "n",
    }
    return value | changes


class Run:
    """One attempt on its way: prepared on all nodes, started on the head."""

    def __init__(self, nodes: list[Node], value: dict[str, Any]) -> None:
        self.nodes = nodes
        self.spec = value
        self.attempt = value["attempt"]
        for index, node in enumerate(nodes):
            node.agent.send(op="prepare", spec=value | {"me": index})
        for node in nodes:
            node.agent.wait("ready", self.attempt)
        nodes[0].agent.send(op="go", attempt=self.attempt)

    def started(self) -> dict[str, Any]:
        return self.nodes[0].agent.wait("started", self.attempt)

    def end(self, cause: str = "DELETED", kill_delay: float = 1.0) -> None:
        self.nodes[0].agent.send(
            op="end", attempt=self.attempt, cause=cause, kill_delay=kill_delay, message=""
        )

    def ended(self, node: int = 0, timeout: float = PATIENCE) -> dict[str, Any]:
        return self.nodes[node].agent.wait("ended", self.attempt, timeout)

    def tail(self, stream: str) -> str:
        return base64.b64decode(self.ended()[f"{stream}_tail"]).decode()


def give_gpus(nodes: list[Node], count: int) -> None:
    """As many slots as simulated GPUs on each."""
    for node in nodes:
        node.slots = count
        node.gpus = [
            {"uuid": f"SIM-{node.name}-{i}", "index": i, "model": "Simulated", "simulated": True}
            for i in range(count)
        ]


@contextmanager
def runs(nodes: list[Node], directory: Path) -> Iterator[Callable[..., Run]]:
    """Starts attempts of scripts; afterwards all have ended on every node, and are forgotten."""
    count = len(nodes[0].agent.events)
    started: list[Run] = []

    def start(script: str, **changes: Any) -> Run:
        attempt = f"{count + len(started) + 1}.hpcm#1"
        # The machine may have an MPI of its own, but these are tests of ours.
        usual = {"attempt": attempt, "job_path": [str(Path(sys.executable).parent)]}
        started.append(Run(nodes, spec(nodes, directory, script, **{**usual, **changes})))
        return started[-1]

    yield start
    for one in started:
        for index, node in enumerate(nodes):
            one.ended(index)
            node.agent.send(op="forget", attempt=one.attempt)


@contextmanager
def cluster(root: Path, names: list[str], cgroups: bool, **settings: Any) -> Iterator[list[Node]]:
    """Shepherds on 127.0.9.1, .2, ...; everything is gone afterwards."""
    authority = Authority(root)
    nodes: list[Node] = []
    try:
        for index, name in enumerate(names):
            nodes.append(Node(root, authority, name, f"127.0.9.{index + 1}", cgroups, **settings))
        yield nodes
    finally:
        for node in nodes:
            node.stop()


def both_ways(names: list[str], gpus: int = 0, **settings: Any) -> Any:
    """A fixture of a test module, ``nodes = kit.both_ways(...)``: such a cluster with cgroups, and one without.

    ``gpus``: simulated ones of each node, as `give_gpus`; 0: none.
    """

    @pytest.fixture(scope="module", params=["cgroups", "tree"])
    def nodes(
        request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[list[Node]]:
        if request.param == "cgroups" and not UNIFIED:
            pytest.skip("needs a writable cgroup v2 hierarchy")
        root = tmp_path_factory.mktemp("state")
        with cluster(root, names, cgroups=request.param == "cgroups", **settings) as nodes:
            if gpus:
                give_gpus(nodes, gpus)
            yield nodes

    return nodes


@pytest.fixture
def gang(nodes: list[Node], tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """`runs` on all nodes of the module; it takes this over by ``gang = kit.gang``."""
    with runs(nodes, tmp_path) as start:
        yield start


def starter(node: Node) -> int:
    """The pid of the process that forks for its shepherd; 0: there is none."""
    pid = node.process.pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(OSError):  # it may end meanwhile
            if b"\0starter\0" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    return 0


def idle(pid: int) -> bool:
    """Whether it sleeps (a process that serves a socket: for want of requests)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def environment_of(pid: int) -> list[bytes]:
    """``NAME=VALUE`` of a process as it was at its exec; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def is_alive(pid: int) -> bool:
    """False for zombies too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
