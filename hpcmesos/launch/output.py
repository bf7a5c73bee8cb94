"""The output files of a script, as the shepherd holds them: to read for people far away, and to add a line.

A file server that does not answer blocks whoever reads, writes or even closes a file of it, and this process serves
every job of the node. So what lies on a file system of another machine is touched in threads, with some patience.
A process that the shepherd itself forks still has to close its copies of such descriptors at exec, and waits there.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from hpcmesos.launch import trimming
from hpcmesos.launch.processes import Report

T = TypeVar("T")

TAIL = 64 * 1024
"""Bytes of each stream that travel with the end report."""
PATIENCE = 5.0
"""Seconds for a file server to answer; then the end is told without what it holds."""
_LOCAL = frozenset(
    {
        "bcachefs",
        "btrfs",
        "devpts",
        "devtmpfs",
        "ext2",
        "ext3",
        "ext4",
        "f2fs",
        "jfs",
        "overlay",
        "ramfs",
        "tmpfs",
    }
    | {"xfs", "zfs"}
)
_MOST_WAITING = 4
"""Threads of one attempt that a file server keeps, besides those that close."""
_KNOWN_FOR = 10.0
"""Seconds that the table of mounts is believed."""


class Output:
    """Descriptors that the script's own process opened as its owner: no path is followed with our rights."""

    def __init__(self) -> None:
        self.opened = Report()
        self.closed = False
        self.sink: Callable[[str], None] | None = None
        """Where notes go instead of into the files: the terminal of an interactive job."""
        self.spool, self.limit = "", 0
        """Streams below this directory keep so many bytes; 0: all."""
        self._far: bool | None = None
        self._waiting = 0  # threads that a file server keeps

    def size(self, stream: str) -> int:
        """Bytes written so far; 0 for what is no regular file, is joined to the other stream, or is not open."""
        return _regular_size(self._fd(stream)) or 0

    def read(self, stream: str, offset: int, size: int) -> bytes:
        """At most ``size`` bytes from ``offset`` on; empty for what is not there, or cannot be read."""
        fd = self._fd(stream)
        return self._read(fd, offset, size) if self.size(stream) > offset else b""

    @staticmethod
    def _read(fd: int | None, offset: int, size: int) -> bytes:
        with suppress(OSError):
            return b"" if fd is None else os.pread(fd, size, offset)
        return b""

    def trim(self) -> None:
        """What lies on this node alone takes no more room than it may."""
        for fd in self._spooled():
            with suppress(OSError):  # a file system that knows no holes: it is cut once the job is over
                trimming.punch(fd, self.limit)

    def after_gap(self, stream: str, offset: int) -> int:
        """Where reading goes on: behind what is left out, if the offset lies in there."""
        fd = self._fd(stream)
        hole = trimming.gap(self.size(stream), self.limit) if fd in self._spooled() else None
        return hole[1] if hole and hole[0] <= offset < hole[1] else offset

    def overflows(self) -> bool:
        """Whether a stream that lies on this node alone has more than it may keep."""
        return any(trimming.gap(os.fstat(fd).st_size, self.limit) for fd in self._spooled())

    def close_gaps(self) -> int:
        """Once the script is over; answers how many bytes are left out."""
        left_out = 0
        for fd in self._spooled():
            with suppress(OSError):
                left_out += trimming.close_gap(fd, self.limit)
        return left_out

    def _spooled(self) -> list[int]:
        opened = self.opened
        both = (opened.stdout, opened.stdout_path), (opened.stderr, opened.stderr_path)
        inside = [fd for fd, path in both if fd is not None and path.startswith(f"{self.spool}/")]
        return [fd for fd in inside if self.spool and self.limit and _regular_size(fd) is not None]

    def tails(self) -> tuple[bytes, bytes, int]:
        """Of stdout and stderr; and the larger size of both."""
        largest, found = 0, [b"", b""]
        for place, fd in enumerate((self.opened.stdout, self.opened.stderr)):
            if size := _regular_size(fd):
                largest = max(largest, size)
                found[place] = self._read(fd, max(0, size - TAIL), TAIL)
        return found[0], found[1], largest

    async def patiently(self, action: Callable[[], T], default: T) -> T:
        """What ``action`` answers, or ``default`` when the file server does not within `PATIENCE`."""
        if not self._is_far():
            return action()
        if self._waiting >= _MOST_WAITING:
            return default
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def told(value: T) -> None:
            if not answer.done():
                answer.set_result(value)

        if not self._in_thread(lambda: loop.call_soon_threadsafe(told, action())):
            return default
        try:
            async with asyncio.timeout(PATIENCE):
                return await answer
        except TimeoutError:
            return default

    def note(self, line: str, stream: str = "stderr") -> None:
        """Adds a line where the job's errors (output) go; what cannot take it must not hinder the end.

        Regular files only: a pipe that nobody reads would stop this process, and every job of the node with it.
        """
        if self.sink:
            self.sink(line)
            return
        other = "stdout" if stream == "stderr" else "stderr"
        fd = self._fd(stream) if self._fd(stream) is not None else self._fd(other)
        if fd is None:
            return
        if not self._is_far():
            _add(fd, line)
        elif self._waiting < _MOST_WAITING:
            self._in_thread(lambda: _add(fd, line))

    def append(self, text: bytes, stream: str) -> None:
        """As `note`, whole bytes."""
        if text and self.sink is None:
            self.note(text.decode("utf-8", "surrogateescape").removesuffix("\n"), stream)
        elif text and self.sink:
            self.sink(text.decode(errors="replace"))

    def close(self) -> None:
        """Closes the descriptors; in threads where a file server may keep us waiting."""
        self.closed = True
        fds = [fd for fd in (self.opened.stdout, self.opened.stderr) if fd is not None]
        far = self._is_far()
        self.opened.stdout = self.opened.stderr = None
        for fd in fds:
            if far:
                self._in_thread(lambda fd=fd: os.close(fd))  # type: ignore[misc]  # bound now
            else:
                os.close(fd)

    def _fd(self, stream: str) -> int | None:
        return self.opened.stdout if stream == "stdout" else self.opened.stderr

    def _is_far(self) -> bool:
        """Whether a file lies where another machine may keep us waiting; asked of /proc, which never does."""
        if self._far is None:
            fds = [fd for fd in (self.opened.stdout, self.opened.stderr) if fd is not None]
            if not fds:
                return False
            self._far = any(_mounts.kind(fd) not in _LOCAL for fd in fds)
        return self._far

    def _in_thread(self, action: Callable[[], object]) -> bool:
        """A thread that nobody waits for, at the end of this process neither; False: none can be started."""

        def run() -> None:
            try:
                with suppress(OSError, RuntimeError):  # RuntimeError: the loop is closed
                    action()
            finally:
                self._waiting -= 1

        self._waiting += 1
        try:
            threading.Thread(target=run, daemon=True).start()
        except RuntimeError:
            self._waiting -= 1
            return False
        return True


class _Mounts:
    """Kinds of file systems by the number of the mount."""

    def __init__(self) -> None:
        self._kinds: dict[bytes, str] = {}
        self._read_at = -_KNOWN_FOR

    def kind(self, fd: int) -> str:
        """The type of the file system on which an open file lies; empty when that is not known."""
        info = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            number = os.read(info, 4096).partition(b"mnt_id:")[2].split(None, 1)[0]
        finally:
            os.close(info)
        now = time.monotonic()
        if now - self._read_at > _KNOWN_FOR or number not in self._kinds:
            self._kinds, self._read_at = _read_mounts(), now
        return self._kinds.get(number, "")


def _read_mounts() -> dict[bytes, str]:
    kinds = {}
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            kinds[line.split(None, 1)[0]] = line.partition(b" - ")[2].split(None, 1)[0].decode()
    return kinds


_mounts = _Mounts()


def _add(fd: int, line: str) -> None:
    if _regular_size(fd) is not None:
        with suppress(OSError):
            os.write(fd, f"{line}\n".encode("utf-8", "surrogateescape"))


def _regular_size(fd: int | None) -> int | None:
    """None for what is no regular file, or is gone: a file server may have forgotten it (ESTALE)."""
    with suppress(OSError):
        if fd is not None and stat.S_ISREG((status := os.fstat(fd)).st_mode):
            return status.st_size
    return None
