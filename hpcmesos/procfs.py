"""Files of /proc that the kernel may keep back: ``environ``, ``cmdline`` and ``maps`` of other processes.

Whoever reads them takes a lock of that process: mmap_lock, for the first and the last exec_update_lock as well. One of
its threads may hold it until a file server answers, which may be never: mmap(2), munmap(2) and exec(2) can have
something to ask or to tell there. So they are read in threads for which nobody waits for long, and which end with this
process. ``stat``, ``status``, ``comm`` and ``cgroup`` take no such lock, nor do the links ``cwd`` and ``exe``.
Standard library only.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection, Iterable

PATIENCE = 1.0
"""Seconds that a call waits for what does not come, once the rest is read; later calls wait no more for that."""

_ROOT = "/proc"
_STALL = 0.02
"""Seconds without an answer after which more threads begin, if there is more to read."""
_MOST = 256
"""Threads that may be kept waiting; what finds none is not read."""

_underway: set[tuple[str, float]] = set()
"""What the threads of this process are at, and since when."""


def read_all(pids: Iterable[int], name: str) -> dict[int, bytes | None]:
    """``/proc/PID/name`` of each; empty: it has ended, or is not ours to read; None: it does not come."""
    now = time.monotonic()
    held = {path for path, since in tuple(_underway) if now - since > PATIENCE}
    paths = {pid: f"{_ROOT}/{pid}/{name}" for pid in pids}
    reading = _Reading([path for path in paths.values() if path not in held])
    reading.wait()
    return {pid: reading.answers.get(path) for pid, path in paths.items()}


def read(pid: int, name: str) -> bytes | None:
    """As `read_all`, of one."""
    return read_all([pid], name)[pid]


class _Reading:
    """Some files on their way; ``answers`` has those that have come."""

    def __init__(self, paths: Collection[str]) -> None:
        self.answers: dict[str, bytes] = {}
        self._wanted = len(paths)
        self._waiting = deque(paths)
        self._complete = threading.Event()

    def wait(self) -> None:
        """Until all have come, or the last ones have kept us waiting."""
        threads = 0
        while self._waiting and (room := _MOST - len(_underway)) > 0:
            more = min(threads or 1, room)
            for _ in range(more):
                threading.Thread(target=self._work, daemon=True).start()
            threads += more
            while self._moves():
                pass
        self._wanted -= len(self._waiting)  # no thread is left for them
        self._waiting.clear()
        if len(self.answers) < self._wanted:
            self._complete.wait(PATIENCE)

    def _moves(self) -> bool:
        """Whether something comes, and more is to be read."""
        before = len(self.answers)
        return not self._complete.wait(_STALL) and bool(self._waiting) and len(self.answers) > before

    def _work(self) -> None:
        while self._waiting:
            try:
                path = self._waiting.popleft()
            except IndexError:  # another thread was quicker
                return
            entry = (path, time.monotonic())
            _underway.add(entry)
            self.answers[path] = _content(path)
            _underway.discard(entry)
            if len(self.answers) == self._wanted:
                self._complete.set()


def _content(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError:
        return b""
