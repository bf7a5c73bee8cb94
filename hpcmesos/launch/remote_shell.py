"""``pbs_tmrsh [-n] [-x] [-q] [-l USER] HOST COMMAND...``: ssh without ssh, inside one job.

The words of the command are joined by blanks and run by ``sh -c`` on that host, as ssh does. Signals are passed on; the
exit code is the command's, 128 + N when signal N ended it, 255 when it could not be started. When the connection is
lost the parent is ended too, and a launcher also when its proxy was killed: it would wait for ever.
"""

from __future__ import annotations

import os
import select
import sys

from hpcmesos.launch import programs, protocol, quick

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROGRAM = "pbs_tmrsh"
USAGE = "usage: pbs_tmrsh [-n] [-x] [-q] [-l user] host command...\n"
LOST = 255
_PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


class _Usage(Exception):
    """The command line is none of ours."""


class _Deaf(Exception):
    """Nobody reads our output any more."""


def main(argv: list[str]) -> int:
    try:
        host, command, with_stdin = parse(argv)
    except _Usage as error:
        sys.stderr.write(f"pbs_tmrsh: {error}\n{USAGE}")
        return 2
    path = os.environ.get("HPCMESOS_SOCKET", "")
    if not path:
        sys.stderr.write("pbs_tmrsh: not inside a job: HPCMESOS_SOCKET is not set\n")
        return LOST
    try:
        return Session(path, host, command, with_stdin).run()
    except _Deaf:
        return 128 + int(quick.signal.SIGPIPE)
    except (OSError, protocol.FrameError) as error:
        return lost(host, str(error))


def parse(argv: list[str]) -> tuple[str, str, bool]:
    """(host, command, whether to pass on standard input). Raises _Usage."""
    words, with_stdin = list(argv), True
    while words and words[0].startswith("-"):
        option = words.pop(0)
        if option == "-n":
            with_stdin = False
        elif option == "-l" and words:
            words.pop(0)
        elif option not in ("-x", "-q", "--"):
            raise _Usage(f"unknown option {option}")
    if len(words) < 2:
        raise _Usage("a host and a command are needed")
    return words[0].rpartition("@")[2], " ".join(words[1:]), with_stdin


def lost(host: str, reason: str, program: str = PROGRAM) -> int:
    """Says so, ends the parent, answers the exit code."""
    _complain(program, host, reason)
    _end_parent()
    return LOST


def _complain(program: str, host: str, reason: str) -> None:
    where = "" if reason.startswith(f"{host} ") else f"{host}: "
    sys.stderr.write(f"{program}: {where}{reason}\n")
    sys.stderr.flush()


def _end_parent() -> None:
    parent = os.getppid()
    if parent > 1 and str(parent) != os.environ.get("HPCMESOS_SHEPHERD"):
        try:  # noqa: SIM105  (contextlib costs 3 ms to import)
            os.kill(parent, quick.signal.SIGTERM)
        except OSError:
            pass


def _parent_is_launcher() -> bool:
    try:
        with open(f"/proc/{os.getppid()}/comm", "rb", buffering=0) as file:
            return os.fsdecode(file.read(64)).startswith(programs.LAUNCHERS)
    except OSError:
        return False


class Session:
    """One command on one host. ``program``: in whose name it complains."""

    def __init__(self, path: str, host: str, command: str, with_stdin: bool, program: str = PROGRAM) -> None:
        self._program = program
        self._host = host
        self._parser = protocol.Parser()
        self._connection: Any = protocol.connect(path)
        self._stdin: int | None = 0 if with_stdin else None
        self._code: int | None = None
        self._wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        quick.signal.set_wakeup_fd(wake_write)
        for name in _PASSED_ON:
            quick.signal.signal(getattr(quick.signal, name), lambda number, frame: None)
        self._say(
            {
                "op": "shell",
                "host": host,
                "command": command,
                "environ": dict(os.environ),
                "cwd": os.getcwd(),
                "stdin": with_stdin,
            }
        )

    def run(self) -> int:
        """Passes bytes and signals on until the command has ended; answers the exit code."""
        while self._code is None:
            sources = [self._connection, self._wake_read]
            if self._stdin is not None:
                sources.append(self._stdin)
            ready, _, _ = select.select(sources, [], [])
            if self._wake_read in ready:
                self._pass_signals()
            if self._stdin in ready:
                self._pass_stdin()
            if self._connection in ready:
                self._hear()
        return self._code

    def _pass_signals(self) -> None:
        for number in os.read(self._wake_read, 64):
            self._say({"signal": number})

    def _pass_stdin(self) -> None:
        assert self._stdin is not None
        try:
            data = os.read(self._stdin, protocol.CHUNK)
        except OSError:  # there is none
            data = b""
        if data:
            self._send(protocol.frame(protocol.STDIN, data))
        else:
            self._stdin = None
            self._send(protocol.frame(protocol.STDIN_END))

    def _hear(self) -> None:
        data = self._connection.recv(4 * protocol.CHUNK)
        if not data:
            self._code = lost(self._host, "the connection to the shepherd was lost", self._program)
            return
        for kind, body in self._parser.feed(data):
            if kind == protocol.STDOUT:
                _write(1, body)
            elif kind == protocol.STDERR:
                _write(2, body)
            elif kind == protocol.MESSAGE:
                self._finish(protocol.decode(body))

    def _finish(self, end: dict[str, Any]) -> None:
        number = end.get("signal")
        if end.get("exit") is not None and not end.get("error"):
            self._code = int(end["exit"])
        elif number is not None:
            self._code = 128 + int(number)
        elif end.get("lost"):
            self._code = lost(self._host, str(end["error"]), self._program)
        else:
            _complain(self._program, self._host, str(end.get("error")))
            self._code = LOST
        if self._code > 128 and self._code != LOST and _parent_is_launcher():
            _complain(self._program, self._host, f"the proxy was killed by signal {self._code - 128}")
            _end_parent()

    def _say(self, value: dict[str, Any]) -> None:
        self._send(protocol.message(value))

    def _send(self, data: bytes) -> None:
        """Blocks for the shepherd's sake only as long as what it sends meanwhile is read: else both could wait."""
        view = memoryview(data)
        while view:
            readable, writable, _ = select.select([self._connection], [self._connection], [])
            try:
                if writable:
                    view = view[self._connection.send(view, quick.socket.MSG_DONTWAIT) :]
                elif readable:
                    self._hear()
            except BrokenPipeError:  # who hung up may have said why before
                while self._code is None:
                    self._hear()
            if self._code is not None:
                return


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BrokenPipeError as error:
            raise _Deaf from error
