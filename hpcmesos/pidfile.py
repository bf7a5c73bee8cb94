"""Pid files that tell a living daemon from a stale file.

Locked while the daemon lives. Content: JSON ``{"pid": N, "start_time": TICKS}``; the start time (field 22 of
/proc/PID/stat, proc(5)) guards against a reused pid. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
from typing import NamedTuple

from hpcmesos import procfs


class Daemon(NamedTuple):
    """A living process, safe to signal."""

    pid: int
    start_time: int


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which ``pid`` started; None: there is no such process, or it has ended.

    What has given back its memory has ended: it runs nothing more, though it may wait for ever for a file server that
    is to close a file, and keep its descriptors, locks and listening sockets meanwhile.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") or fields[20] == b"0" else int(fields[19])


def hold(path: str) -> int | None:
    """Writes this process into ``path`` and locks it; the descriptor must stay open. None: another daemon holds it."""
    descriptor = _lock(path)
    if descriptor is None and _is_left(path):
        descriptor = _lock_anew(path)
    if descriptor is None:
        return None
    content = json.dumps({"pid": os.getpid(), "start_time": start_time(os.getpid())}).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)
    return descriptor


def _lock(path: str) -> int | None:
    """The locked file; None: somebody else has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _is_left(path: str) -> bool:
    """Whether the lock is held by a process that has ended and cannot close its files; see `start_time`."""
    try:
        status = os.stat(path)
        with open("/proc/locks", encoding="ascii") as file:
            locks = [line.split() for line in file]
    except OSError:
        return False
    name = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    holders = [int(words[4]) for words in locks if words[1] == "FLOCK" and words[5] == name]
    return bool(holders) and all(start_time(pid) is None for pid in holders)


def _lock_anew(path: str) -> int | None:
    """A new file in the place of one whose lock is left; of several who try, one gets it."""
    with open(f"{path}.next", "wb") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if _is_left(path):
            os.unlink(path)
        return _lock(path)


def living(path: str) -> Daemon | None:
    """The daemon that wrote ``path``, if that very process still lives."""
    try:
        with open(path) as file:
            content = json.load(file)
        daemon = Daemon(int(content["pid"]), int(content["start_time"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return daemon if start_time(daemon.pid) == daemon.start_time else None


def with_words(*words: str) -> list[Daemon]:
    """Living processes, of this user or to root of anybody, in whose command line these words stand side by side.

    So a daemon is found that was started and has yet to write its file. One whose command line the kernel keeps back
    (see `hpcmesos.procfs`) is not found.
    """
    wanted = b"\0".join((b"", *map(os.fsencode, words), b""))
    pids = filter(_is_ours, map(int, filter(str.isdigit, os.listdir("/proc"))))
    lines = procfs.read_all(pids, "cmdline")
    return [
        Daemon(pid, started)
        for pid, line in lines.items()
        if line and wanted in line and (started := start_time(pid)) is not None
    ]


def _is_ours(pid: int) -> bool:
    try:
        return os.geteuid() in (0, os.stat(f"/proc/{pid}").st_uid)
    except OSError:
        return False


def stop(path: str, term_timeout: float, kill_timeout: float = 5.0) -> bool:
    """``end`` for the daemon of ``path``; True when it is gone or never was."""
    daemon = living(path)
    return daemon is None or end(daemon, term_timeout, kill_timeout)


def end(daemon: Daemon, term_timeout: float, kill_timeout: float = 5.0) -> bool:
    """SIGTERM, SIGKILL after ``term_timeout`` seconds; True when the daemon is gone.

    A pidfd names the process, so that no other process can be hit.
    """
    try:
        descriptor = os.pidfd_open(daemon.pid)
    except ProcessLookupError:
        return True
    try:
        if start_time(daemon.pid) != daemon.start_time:
            return True
        for number, timeout in ((signal.SIGTERM, term_timeout), (signal.SIGKILL, kill_timeout)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if poll.poll(timeout * 1000):
                return True
        return False
    finally:
        os.close(descriptor)
