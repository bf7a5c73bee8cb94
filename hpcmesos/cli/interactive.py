"""``qsub -I``: submits the job, waits for its turn, and is its terminal until it ends."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from hpcmesos.cli import display
from hpcmesos.cli.connect import connect
from hpcmesos.cli.pbs_commands import submit_interactive
from hpcmesos.client import Client
from hpcmesos.errors import HpcmesosError, MasterUnreachable, ProtocolError, leaves

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

_PATIENCE = 30.0
"""Seconds in which a connection that broke is made again; as long as the shepherd waits for its client."""
_PAUSE = 0.2
_QUESTION = "Do you wish to terminate the job and exit (y|[n])? "
_SIGNALS = (signal.SIGWINCH, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Escape:
    """``~.`` at the beginning of a line hangs up, as in Torque's qsub and in ssh."""

    def __init__(self) -> None:
        self._fresh = True  # at the beginning of a line
        self._held = False  # a ~ that has not been sent

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What is to be sent of ``data``, and whether to hang up."""
        sent = bytearray()
        for byte in data:
            if self._held and byte == ord("."):
                return bytes(sent), True
            if self._held:
                sent += b"~"
            self._held = self._fresh and not self._held and byte == ord("~")
            if not self._held:
                sent.append(byte)
            self._fresh = byte in b"\r\n"
        return bytes(sent), False


@click.command(
    hidden=True,
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("personality")
@click.argument("argv", nargs=-1, type=click.UNPROCESSED)
def qsub_terminal(personality: str, argv: tuple[str, ...]) -> None:
    """What qsub -I is at a terminal; exits with the job's Exit_status & 255, 3 when it was deleted before it ran."""
    try:
        client = connect()
        reply = submit_interactive(client, list(argv), personality)
        job = reply.stdout.strip()
        if reply.code or reply.then or not job or "\n" in job:  # no job: it was a question, or a dry run
            sys.stdout.write(reply.stdout)
            sys.stderr.write(reply.stderr)
            sys.exit(reply.code)
        sys.exit(Session(client, job).run())
    except HpcmesosError as error:
        click.echo(f"qsub: {error}", err=True)
        sys.exit(error.exit_code)


class Session:
    """One job and this terminal. The main thread shows what comes, another one sends what is typed and the signals."""

    def __init__(self, client: Client, job: str) -> None:
        self._client = client
        self._job = job
        self._socket: ClientConnection | None = None
        self._ready = threading.Event()
        self._seen = {"attempt": 0, "offset": 0}
        self._wake, self._woken = os.pipe()
        self._cooked = termios.tcgetattr(0)
        self._gone = False
        self._waited = False

    def run(self) -> int:
        """Until the job has ended, or this end hangs up; answers the exit code."""
        with self._listening():
            threading.Thread(target=self._type, daemon=True).start()
            try:
                ended = self._follow()
            finally:
                termios.tcsetattr(0, termios.TCSADRAIN, self._cooked)
        if ended is None:
            print(f"\nqsub: job {self._job} terminated", flush=True)
            return 128 + signal.SIGHUP
        print(f"\nqsub: job {self._job} completed", flush=True)
        status = ended.get("exit_status")
        if status is None or status < 0 or status in (265, 271):
            click.echo(f"qsub: {ended.get('comment') or 'the job was deleted'}", err=True)
        return 3 if status is None else int(status) & 255

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Signals wake the thread that sends."""
        os.set_blocking(self._woken, False)
        before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        wakeup = signal.set_wakeup_fd(self._woken)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)

    # --- what comes ---------------------------------------------------------------------------------------------

    def _follow(self) -> dict[str, Any] | None:
        """How the job ended; None: this end has hung up."""
        from websockets.exceptions import WebSocketException

        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                size = os.get_terminal_size(0)
                window = {"rows": size.lines, "columns": size.columns}
                with self._client.terminal(self._job, **window, **self._seen) as socket:
                    self._socket = socket
                    for message in socket:
                        deadline = time.monotonic() + _PATIENCE
                        if (ended := self._take(message)) is not None:
                            return ended
            except (OSError, WebSocketException) as error:
                if time.monotonic() > deadline and not self._gone:
                    raise MasterUnreachable(
                        f"the connection to job {self._job} was lost ({error})"
                    ) from error
            finally:
                self._socket = None
            if self._gone:
                return None
            time.sleep(_PAUSE)

    def _take(self, message: str | bytes) -> dict[str, Any] | None:
        if isinstance(message, bytes):
            self._seen["offset"] += len(message)
            _write(message)
            return None
        value = json.loads(message)
        event = value.get("event")
        if event == "refused":
            raise leaves().get(value["code"], ProtocolError)(value["message"])
        if event == "ready" and value["attempt"] != self._seen["attempt"]:
            self._seen = {"attempt": value["attempt"], "offset": 0}
            print(f"qsub: job {self._job} ready\n", flush=True)
            tty.setraw(0, termios.TCSADRAIN)
            self._ready.set()
            os.write(self._woken, b"\0")
        elif event == "display":
            threading.Thread(target=self._display, args=(value,), daemon=True).start()
        elif event == "waiting" and (not self._waited or self._ready.is_set()):
            if self._ready.is_set():  # a failed start, or a lost node: once more
                self._ready.clear()
                self._seen = {"attempt": 0, "offset": 0}
                termios.tcsetattr(0, termios.TCSADRAIN, self._cooked)
                print()
            self._waited = True
            print(f"qsub: waiting for job {self._job} to start", flush=True)
        return value if event == "ended" else None

    def _display(self, connection: dict[str, Any]) -> None:
        """A program of the job has a connection for the X server here."""
        from websockets.exceptions import WebSocketException

        attempt, number = int(connection["attempt"]), int(connection["connection"])
        try:
            with connect().terminal(self._job, "display", attempt=attempt, connection=number) as socket:

                def answer(data: bytes) -> None:
                    with suppress(WebSocketException):
                        socket.send(data) if data else socket.close()

                incoming = (message for message in socket if isinstance(message, bytes))
                display.forward(os.environ.get("DISPLAY", ""), incoming, answer)
        except (WebSocketException, HpcmesosError):
            return  # the program is gone, or the job
        except (OSError, ValueError) as error:
            _write(f"\r\nqsub: the X server cannot be reached: {error}\r\n".encode())

    # --- what goes ----------------------------------------------------------------------------------------------

    def _type(self) -> None:
        escape = Escape()
        while not self._gone:
            watched = [self._wake, 0] if self._ready.is_set() else [self._wake]
            for source in select.select(watched, [], [])[0]:
                if source == self._wake:
                    self._on_signals(os.read(self._wake, 64))
                elif self._ready.is_set():
                    self._on_keys(escape)

    def _on_signals(self, numbers: bytes) -> None:
        if signal.SIGWINCH in numbers:
            size = os.get_terminal_size(0)
            self._send(json.dumps({"rows": size.lines, "columns": size.columns}))
        if signal.SIGTERM in numbers or signal.SIGHUP in numbers:
            self._hang_up()
        elif signal.SIGINT in numbers and not self._ready.is_set():
            self._ask()

    def _on_keys(self, escape: Escape) -> None:
        try:
            data = os.read(0, 65536)
        except OSError:  # the terminal is gone
            data = b""
        sent, hang_up = escape.feed(data)
        if sent:
            self._send(sent)
        if hang_up or not data:
            self._hang_up()

    def _ask(self) -> None:
        """Ctrl-C while the job waits."""
        print(f"\n{_QUESTION}", end="", flush=True)
        if sys.stdin.readline().strip().lower().startswith("y"):
            self._send(json.dumps({"delete": True}))

    def _send(self, data: bytes | str) -> None:
        from websockets.exceptions import WebSocketException

        if socket := self._socket:
            with suppress(WebSocketException, OSError):
                socket.send(data)

    def _hang_up(self) -> None:
        self._gone = True
        if socket := self._socket:
            socket.close()


def _write(data: bytes) -> None:
    """All of it to the terminal."""
    while data:
        data = data[os.write(1, data) :]
