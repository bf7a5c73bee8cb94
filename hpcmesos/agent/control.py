"""The agent's side of control.sock: starts the shepherd or finds the living one, and keeps the connection to it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

import hpcmesos
from hpcmesos import pidfile
from hpcmesos.agent import isolation
from hpcmesos.agent.events import Event, FromShepherd, ShepherdDown
from hpcmesos.config import AgentSettings
from hpcmesos.errors import StateError
from hpcmesos.launch import protocol

log = logging.getLogger(__name__)

_START_TIMEOUT = 20.0  # s for a shepherd to listen
_POLL = 0.02
_END_TIMEOUT = 10.0
LAUNCH = Path(hpcmesos.__file__).parent / "launch"


class Control:
    """The one connection. Everything that comes goes to ``sink``; ``send`` without a connection is dropped."""

    def __init__(
        self, settings: AgentSettings, config: dict[str, Any], sink: Callable[[Event], None]
    ) -> None:
        self._settings = settings
        self._config = config
        self._sink = sink
        self._writer: asyncio.StreamWriter | None = None
        self._child: subprocess.Popen[bytes] | None = None  # only to reap it

    def send(self, message: dict[str, Any]) -> None:
        if self._writer is not None:
            self._writer.write(protocol.frame(protocol.MESSAGE, msgspec.json.encode(message)))

    async def run(self) -> None:
        """Until cancelled. Restarts a shepherd that died: it then reports its attempts as lost by itself."""
        pause = 0.05
        while True:
            try:
                reader, self._writer = await self._connect()
                pause = 0.05
                await self._converse(reader)
            except (OSError, StateError, protocol.FrameError) as error:
                log.error("no connection to the shepherd: %s", error)
            finally:
                self._close()
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if living(self._settings) is None:
            self._start()
        loop = asyncio.get_running_loop()
        give_up = loop.time() + _START_TIMEOUT
        while True:
            try:
                return await asyncio.open_unix_connection(self._settings.sockets / "control.sock")
            except (FileNotFoundError, ConnectionRefusedError) as error:
                code = self._child.poll() if self._child else None
                if code is not None and living(self._settings) is None:
                    raise StateError(
                        f"the shepherd ended with {code}; see {_log_path(self._settings)}"
                    ) from error
                if loop.time() > give_up:
                    raise StateError(
                        f"the shepherd does not listen; see {_log_path(self._settings)}"
                    ) from error
            await asyncio.sleep(_POLL)

    async def _converse(self, reader: asyncio.StreamReader) -> None:
        self.send({"op": "hello"})
        parser = protocol.Parser()
        while data := await reader.read(protocol.CHUNK):
            for kind, body in parser.feed(data):
                if kind == protocol.MESSAGE:
                    self._take(body)

    def _take(self, body: bytes) -> None:
        """What cannot be read costs itself: an agent that ends of it would meet it again at its next start."""
        try:
            self._sink(FromShepherd(msgspec.json.decode(body)))
        except (msgspec.MsgspecError, ValueError, KeyError, OverflowError):
            log.exception("passed over what the shepherd says: %r", body[:200])

    def _start(self) -> None:
        """A session of its own and a log file for its words: it outlives this agent."""
        path = self._settings.state / "shepherd.json"
        path.write_text(json.dumps(self._config, indent=1))
        # One that was killed listens until its last file is closed, which a file server that hangs can put off.
        (self._settings.sockets / "control.sock").unlink(missing_ok=True)
        with _log_path(self._settings).open("ab") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-IS", str(LAUNCH), "shepherd", str(path)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", start_new_session=True,
            )  # fmt: skip
        log.info("shepherd started pid=%d", self._child.pid)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._sink(ShepherdDown())
        if self._child is not None and self._child.poll() is not None:
            self._child = None


def living(settings: AgentSettings) -> int | None:
    """The pid of the shepherd of this state directory; None: none lives."""
    path = settings.state / "shepherd.pid"
    if (daemon := pidfile.living(str(path))) is None:
        return None
    try:
        with path.open("rb") as file:
            # Only now, for a shepherd that is just starting must not find the lock taken by us.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return daemon.pid
    except OSError:
        pass
    return None


def stop_shepherd(settings: AgentSettings, force: bool, timeout: float = 60.0) -> bool:
    """Asks the shepherd to end; True: none lives any more. ``force``: what it holds is ended first, for ``timeout`` s.

    Without ``force`` a shepherd that holds attempts stays, and the answer is False. With it, one that does not answer
    is killed, after its start time was compared with its pid file.
    """
    if living(settings) is None:
        return True
    if not _ask_to_end(settings, force, timeout):
        if not force:
            return living(settings) is None
        _kill(settings)
    deadline = time.monotonic() + _END_TIMEOUT
    while living(settings) is not None:
        if time.monotonic() > deadline:
            if not force:
                return False
            _kill(settings)
            deadline += _END_TIMEOUT
        time.sleep(_POLL)
    _remove_cgroups(settings)
    return True


def _ask_to_end(settings: AgentSettings, force: bool, timeout: float) -> bool:
    """True: it agreed. False: it holds attempts (and no ``force``), or does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(str(settings.sockets / "control.sock"))
            connection.sendall(protocol.message({"op": "hello"}))
            parser, waiting = protocol.Parser(), list[tuple[bytes, bytes]]()
            while frame := protocol.receive(connection, parser, waiting):
                event = protocol.decode(frame[1])
                if event["event"] == "hello":
                    if not force and any(a["phase"] != "ended" for a in event["attempts"]):
                        return False
                    connection.sendall(protocol.message({"op": "shutdown", "force": force}))
                if event["event"] == "bye":
                    return True
        except (OSError, KeyError, protocol.FrameError):
            return False
    return True  # it closed the connection: it is going


def _kill(settings: AgentSettings) -> None:
    if daemon := pidfile.living(str(settings.state / "shepherd.pid")):
        with suppress(ProcessLookupError):
            os.kill(daemon.pid, signal.SIGKILL)


def _remove_cgroups(settings: AgentSettings) -> None:
    try:
        config = json.loads((settings.state / "shepherd.json").read_text())
        directory, groups = config["cgroup"], config.get("limits", {}).get("v1", {})
    except (OSError, ValueError, KeyError):
        return
    for group in groups.values():
        isolation.remove(Path(group))
    if directory and settings.cgroups == "auto":
        isolation.remove(Path(directory))


def _log_path(settings: AgentSettings) -> Path:
    return settings.state / "shepherd.log"
