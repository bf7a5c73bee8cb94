"""A person at a terminal: a program under a pty of its own, what it shows, and what is typed to it."""

from __future__ import annotations

import fcntl
import os
import pwd
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path

_SHELL_WITH_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    " os.execvp(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """``command`` as ``user``, with a controlling terminal of ``rows`` and ``columns``."""

    def __init__(
        self,
        command: list[str],
        environ: Mapping[str, str],
        cwd: Path,
        user: str | None,
        rows: int = 24,
        columns: int = 80,
    ) -> None:
        self._master, slave = os.openpty()
        self.shown = b""
        self.resize(rows, columns, tell=False)
        identity: dict[str, object] = {}
        environment = {**environ, "TERM": "xterm"}
        if user:
            entry = pwd.getpwnam(user)
            os.fchown(slave, entry.pw_uid, entry.pw_gid)
            identity = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
            environment |= {"HOME": entry.pw_dir, "USER": user, "LOGNAME": user, "SHELL": entry.pw_shell}
        self.process = subprocess.Popen(
            [sys.executable, "-IS", "-c", _SHELL_WITH_TERMINAL, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            cwd=cwd,
            env=environment,
            **identity,  # type: ignore[call-overload]  # of Popen's many
        )
        os.close(slave)

    def resize(self, rows: int, columns: int, tell: bool = True) -> None:
        """The kernel tells the foreground process by SIGWINCH."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, text: str, timeout: float = 30.0) -> str:
        """Reads until ``text`` is shown; what came before it, and is not shown again to the next call."""
        deadline = time.monotonic() + timeout
        while text.encode() not in self.shown:
            left = deadline - time.monotonic()
            assert left > 0, f"not shown within {timeout:g} s: {text!r}; shown: {self.shown!r}"
            if not self._read(left):
                raise AssertionError(f"ended without {text!r}; shown: {self.shown!r}")
        before, _, self.shown = self.shown.partition(text.encode())
        return before.decode(errors="replace")

    def wait(self, timeout: float = 30.0) -> int:
        """The exit code of the program; what it shows until then is in ``shown``."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still there after {timeout:g} s; shown: {self.shown!r}"
            self._read(0.05)
        while self._read(0.05):
            pass
        return self.process.returncode

    def kill(self) -> None:
        """As if the machine of the client were gone: no word of good-bye."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        os.close(self._master)

    def _read(self, timeout: float) -> bool:
        """False: nothing more is coming, or nothing came in time."""
        if not select.select([self._master], [], [], timeout)[0]:
            return self.process.poll() is None
        try:
            data = os.read(self._master, 65536)
        except OSError:
            return False
        self.shown += data
        return bool(data)
