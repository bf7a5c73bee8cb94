"""The supervisor: ``hpcmesos master``. Binds the API's sockets, starts the leader candidate and the API processes, and
starts again whatever dies. The first API process that is ready listens on the unix socket: until then clients are
refused, and ask another master. Single thread; no database connection of its own but to migrate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from hpcmesos import doorway, pidfile
from hpcmesos.config import MasterSettings
from hpcmesos.errors import DatabaseUnavailable, StateError
from hpcmesos.master import child, pki, vault
from hpcmesos.master.links import bind, parted
from hpcmesos.queue import schema

log = logging.getLogger(__name__)

_BACKLOG = 4096
_QUICK_DEATH = 5.0  # seconds of life under which the next start is delayed
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_STOP_TIMEOUT = 8.0
_RENEWAL = 10.0  # seconds between two looks at our certificate
_DAY = 86400.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


def run_master(settings: MasterSettings) -> int:
    """Runs until SIGTERM or SIGINT; answers the exit status.

    Raises:
        ConfigError: an address is none.
        StateError: another master has this state directory or this socket.
        OSError: nobody can listen at an address; says which.
        SchemaMismatch: the database has a schema that this release does not know.
    """
    child.log_to_stderr(settings.log_level)
    settings.state.mkdir(parents=True, exist_ok=True, mode=0o711)
    lock = pidfile.hold(str(settings.state / "master.pid"))
    if lock is None:
        raise StateError(f"another master runs on {settings.state}")
    with _wakeups() as wakeups:
        if not _prepare_database(settings, wakeups):
            return 0
        with (
            doorway.alone(settings.socket),
            contextlib.closing(doorway.bind(settings.socket)) as unix,
            _bind_tls(settings) as tls,
        ):
            try:
                Supervisor(settings, _children(settings, unix, tls), wakeups).run()
            finally:
                settings.socket.unlink(missing_ok=True)
    return 0


# --- what is needed before children can run


def _prepare_database(settings: MasterSettings, wakeups: Wakeups) -> bool:
    """Migrates, or checks the schema; waits as long as the database does not answer. False: told to stop meanwhile."""
    act = schema.migrate if settings.migrate else schema.check_schema
    said = ""
    while True:
        try:
            act(settings.database_url)
            return True
        except DatabaseUnavailable as error:
            if str(error) != said:
                log.warning("waiting: %s", error)
                said = str(error)
            if wakeups.wait(_LONGEST_PAUSE / 2):
                return False


def _bind_tls(settings: MasterSettings) -> socket.socket:
    """The API's TLS socket; its address is left in ``STATE/listen``."""
    parted(settings.link)  # else the leader would find out, again and again
    tls, address = bind(settings.listen)
    tls.listen(_BACKLOG)
    (settings.state / "listen").write_text(f"{address}\n")
    return tls


def _certificate(settings: MasterSettings) -> tuple[pki.Ca, Path, Path]:
    """The authority, and this master's certificate and key; renewed when it is time."""
    ca = pki.ensure_ca(settings.state)
    host = socket.gethostname()
    names = {host, socket.getfqdn(), "localhost", "127.0.0.1", _host(settings.listen), _host(settings.link)}
    sans = sorted(name for name in names if name not in ("", "0.0.0.0", "::"))  # noqa: S104  (compared, not bound)
    lifetime = timedelta(days=settings.certificate_days)
    return ca, *pki.ensure_certificate(ca, settings.state / "tls", host, "master", sans, lifetime)


def _children(settings: MasterSettings, unix: socket.socket, tls: socket.socket) -> list[Process]:
    """The leader candidate and the API processes, with their configuration written; not started."""
    ca, certificate, key = _certificate(settings)
    vault.ensure_key(settings.state)
    run = settings.state / "run"
    run.mkdir(exist_ok=True, mode=0o700)
    common = child.Child(settings=settings, certificate=certificate, key=key, ca=ca.path)
    descriptors = (unix.fileno(), tls.fileno())
    api = dataclasses.replace(common, unix_fd=unix.fileno(), tls_fd=tls.fileno())
    common.write(run / "leader.json")
    api.write(run / "api.json")
    leader = Process("leader", "hpcmesos.master.leader", {child.LEADER_CONFIG: str(run / "leader.json")})
    apis = [
        Process(
            f"api{n}", "hpcmesos.master.api_process", {child.API_CONFIG: str(run / "api.json")}, descriptors
        )
        for n in range(settings.api_processes)
    ]
    return [leader, *apis]


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


# --- children


@dataclass(slots=True)
class Process:
    """A child and how to start it again."""

    name: str
    module: str
    environ: dict[str, str]
    descriptors: Sequence[int] = ()
    popen: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pause: float = 0.0  # before the next start
    due: float = 0.0
    deaths: int = field(default=0)

    def start(self) -> None:
        """With our environment and its own; it ends when we do. Raises OSError."""
        environ = os.environ | self.environ | {"HPCMESOS_SUPERVISOR": str(os.getpid())}
        self.popen = subprocess.Popen(
            [sys.executable, "-P", "-m", self.module],
            env=environ,
            stdin=subprocess.DEVNULL,
            pass_fds=self.descriptors,
        )
        self.started = time.monotonic()
        log.info("started child=%s pid=%d", self.name, self.popen.pid)

    def reap(self) -> None:
        """Notes a death: at once again after a good life, later and later after short ones."""
        if self.popen is None or self.popen.poll() is None:
            return
        now = time.monotonic()
        lived = now - self.started
        if lived >= _QUICK_DEATH:
            self.pause = 0.0
        else:
            self.pause = min(_LONGEST_PAUSE, max(_FIRST_PAUSE, 2 * self.pause))
        log.warning("died child=%s status=%d lived=%.1fs", self.name, self.popen.returncode, lived)
        self.deaths += 1
        self.due = now + (self.pause if self.deaths > 1 else 0.0)
        self.popen = None


class Supervisor:
    """Keeps its children alive until it is told to stop."""

    def __init__(self, settings: MasterSettings, children: list[Process], wakeups: Wakeups) -> None:
        self._settings = settings
        self._children = children
        self._wakeups = wakeups
        self._renewal = 0.0  # when to look at our certificate next, by the monotonic clock

    def run(self) -> None:
        """Until SIGTERM or SIGINT; what is accepted until then is in the database, for the next leader."""
        for process in self._children:
            process.start()
        log.info(
            "ready pid=%d socket=%s listen=%s",
            os.getpid(),
            self._settings.socket,
            (self._settings.state / "listen").read_text().strip(),
        )
        try:
            while not self._wakeups.wait(self._next_start()):
                self._look()
        finally:
            log.info("stopping")
            self._stop(self._children)

    def _look(self) -> None:
        self._renew()
        for process in self._children:
            process.reap()
            if process.popen is None and process.due <= time.monotonic():
                process.start()

    def _next_start(self) -> float:
        due = [process.due for process in self._children if process.popen is None]
        return max(0.0, min([*due, self._renewal]) - time.monotonic())

    def _renew(self) -> None:
        """Also when the authority is another. The children read the new certificate by themselves."""
        now = time.monotonic()
        if now < self._renewal:
            return
        self._renewal = now + min(_RENEWAL, self._settings.certificate_days * _DAY / 10)
        try:
            _certificate(self._settings)
        except (OSError, StateError) as error:
            log.error("cannot renew this master's certificate: %s", error)

    def _stop(self, processes: Sequence[Process]) -> None:
        living = [process.popen for process in processes if process.popen is not None]
        for popen in living:
            popen.terminate()
        deadline = time.monotonic() + _STOP_TIMEOUT
        for popen in living:
            try:
                popen.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                popen.kill()
                popen.wait()


class Wakeups:
    """Signals as something to wait for."""

    def __init__(self, reader: socket.socket) -> None:
        self._reader = reader

    def wait(self, timeout: float | None) -> bool:
        """Waits for a signal or the timeout; True: it is time to stop."""
        readable, _, _ = select.select([self._reader], [], [], timeout)
        numbers = self._reader.recv(4096) if readable else b""
        return any(number in numbers for number in (signal.SIGTERM, signal.SIGINT))


@contextlib.contextmanager
def _wakeups() -> Iterator[Wakeups]:
    """Routes our signals into a Wakeups while the block runs."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield Wakeups(reader)
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()
