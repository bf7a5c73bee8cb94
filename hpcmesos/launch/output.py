"""The output files of a script, as the shepherd holds them: to read for people far away, and to add a line."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from hpcmesos.launch.processes import Report

TAIL = 64 * 1024
"""Bytes of each stream that travel with the end report."""


class Output:
    """Descriptors that the script's own process opened as its owner: no path is followed with our rights."""

    def __init__(self) -> None:
        self.opened = Report()
        self.closed = False

    def size(self, stream: str) -> int:
        """Bytes written so far; 0 for what is no regular file, is joined to the other stream, or is not open."""
        return _regular_size(self._fd(stream)) or 0

    def read(self, stream: str, offset: int, size: int) -> bytes:
        fd = self._fd(stream)
        if fd is None or self.size(stream) <= offset:
            return b""
        with suppress(OSError):
            return os.pread(fd, size, offset)
        return b""

    def tail(self, stream: str) -> bytes:
        return self.read(stream, max(0, self.size(stream) - TAIL), TAIL)

    def note(self, line: str, stream: str = "stderr") -> None:
        """Adds a line where the job's errors (output) go; what cannot take it must not hinder the end.

        Regular files only: a pipe that nobody reads would stop this process, and every job of the node with it.
        """
        other = "stdout" if stream == "stderr" else "stderr"
        fd = self._fd(stream) if self._fd(stream) is not None else self._fd(other)
        if fd is not None and _regular_size(fd) is not None:
            with suppress(OSError):
                os.write(fd, f"{line}\n".encode())

    def close(self) -> None:
        self.closed = True
        for fd in (self.opened.stdout, self.opened.stderr):
            if fd is not None:
                os.close(fd)
        self.opened.stdout = self.opened.stderr = None

    def _fd(self, stream: str) -> int | None:
        return self.opened.stdout if stream == "stdout" else self.opened.stderr


def _regular_size(fd: int | None) -> int | None:
    """None for what is no regular file, or is gone: a file server may have forgotten it (ESTALE)."""
    with suppress(OSError):
        if fd is not None and stat.S_ISREG((status := os.fstat(fd)).st_mode):
            return status.st_size
    return None
