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


class Daemon(NamedTuple):
    """A living process, safe to signal."""

    pid: int
    start_time: int


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which ``pid`` started; None: there is no such process (or only its zombie)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def hold(path: str) -> int | None:
    """Writes this process into ``path`` and locks it; the descriptor must stay open. None: another daemon holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    content = json.dumps({"pid": os.getpid(), "start_time": start_time(os.getpid())}).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)
    return descriptor


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

    So a daemon is found that was started and has yet to write its file.
    """
    wanted = b"\0".join((b"", *map(os.fsencode, words), b""))
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.geteuid() not in (0, os.stat(f"/proc/{name}").st_uid):
                continue
            with open(f"/proc/{name}/cmdline", "rb") as file:
                meant = wanted in file.read()
        except OSError:
            continue
        if meant and (started := start_time(int(name))) is not None:
            found.append(Daemon(int(name), started))
    return found


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
