"""Files of /proc that the kernel may keep back: ``environ``, ``cmdline`` and ``maps`` of other processes.

Whoever reads them takes a lock of that process: mmap_lock, for the first and the last exec_update_lock as well. One of
its threads may hold it until a file server answers, which may be never: mmap(2), munmap(2) and exec(2) can have
something to ask or to tell there. So they are read in threads for which nobody waits for long, and which end with this
process. ``stat``, ``status``, ``comm`` and ``cgroup`` take no such lock, nor do the links ``cwd`` and ``exe``.
Standard library only.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Collection, Iterable
from contextlib import suppress

PATIENCE = 1.0
"""Seconds that a call waits for what does not come, once the rest is read; later calls wait no more for that."""

_ROOT = "/proc"
_STALL = 0.02
"""Seconds without an answer after which more threads begin, if there is more to read."""
_MOST = 256
"""Threads that processes of one user may keep waiting: he blinds us for his own alone. What finds none is not read."""

_underway: set[tuple[str, float]] = set()
"""What the threads of this process are at, and since when."""
_threads: Counter[int] = Counter()
"""How many are there for each user."""
_counting = threading.Lock()


def read_all(pids: Iterable[int], name: str) -> dict[int, bytes | None]:
    """``/proc/PID/name`` of each; empty: it has ended, or is not ours to read; None: it does not come."""
    now = time.monotonic()
    held = {path for path, since in tuple(_underway) if now - since > PATIENCE}
    paths = {pid: f"{_ROOT}/{pid}/{name}" for pid in pids}
    owned: dict[int, list[str]] = {}
    for pid, path in paths.items():
        if path not in held:
            owned.setdefault(_owner(pid), []).append(path)
    readings = [_Reading(owner, some) for owner, some in owned.items()]
    for reading in readings:
        reading.begin()
    deadline = time.monotonic() + PATIENCE
    answers: dict[str, bytes] = {}
    for reading in readings:
        reading.complete.wait(max(0.0, deadline - time.monotonic()))
        answers |= reading.answers.copy()
    return {pid: answers.get(path) for pid, path in paths.items()}


def read(pid: int, name: str) -> bytes | None:
    """As `read_all`, of one."""
    return read_all([pid], name)[pid]


def _owner(pid: int) -> int:
    """Its user; -1: it has ended."""
    try:
        return os.stat(f"{_ROOT}/{pid}").st_uid
    except OSError:
        return -1


class _Reading:
    """Files of one user's processes on their way; ``answers`` has those that have come."""

    def __init__(self, owner: int, paths: Collection[str]) -> None:
        self.answers: dict[str, bytes] = {}
        self.complete = threading.Event()
        self._owner = owner
        self._lock = threading.Lock()  # of the two below
        self._waiting = deque(paths)
        self._wanted = len(paths)

    def begin(self) -> None:
        """Until a thread is at each of them, or no more threads may be and nothing has come for long."""
        threads, come, since = 0, 0, time.monotonic()
        while self._waiting:
            now = time.monotonic()
            if len(self.answers) > come:
                come, since = len(self.answers), now
            elif begun := self._more(min(threads or 1, _MOST - _threads[self._owner])):
                threads += begun
            elif not threads or now - since > PATIENCE:
                break
            self.complete.wait(_STALL)
        with self._lock:
            self._wanted -= len(self._waiting)  # no thread is left for them
            self._waiting.clear()
            self._look()

    def _more(self, count: int) -> int:
        """How many threads have begun: fewer than ``count`` where the system has no more for us."""
        begun = 0
        with suppress(RuntimeError):
            while begun < count:
                threading.Thread(target=self._work, daemon=True).start()
                begun += 1
                with _counting:
                    _threads[self._owner] += 1
        return begun

    def _work(self) -> None:
        while path := self._next():
            entry = (path, time.monotonic())
            _underway.add(entry)
            content = _content(path)
            with self._lock:
                self.answers[path] = content
                self._look()
            _underway.discard(entry)
        with _counting:
            _threads[self._owner] -= 1

    def _next(self) -> str:
        with self._lock:
            return self._waiting.popleft() if self._waiting else ""

    def _look(self) -> None:
        if len(self.answers) == self._wanted:
            self.complete.set()


def _content(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError:
        return b""
