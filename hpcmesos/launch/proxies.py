"""Hydra's proxies, started by the remote shell: what its mpiexec does not see, and what killed MPICH leaves behind."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import time
from collections.abc import Callable
from contextlib import suppress

_PROXY = "hydra_pmi_proxy"
_FILES = ("/tmp", "hydra_hwloc_xmlfile_")  # noqa: S108  (the path is fixed in Hydra)
_MEMORY = ("/dev/shm", "mpich_shm_")  # noqa: S108  (where shm_open keeps it)
_MAKERS = (_PROXY, "mpiexec", "mpiexec.hydra", "mpirun")
_KEEP = "HPCMESOS_STRAGGLERS"


def is_proxy(command: str) -> bool:
    """Of MPICH or Intel MPI."""
    return _PROXY in command or "hydra_bstrap_proxy" in command


class Watch:
    """The launches of one attempt that did not go through the front.

    Hydra does not see a rank that left without MPI_Finalize on another host: that host's proxy ends, the others run
    on. Where that lasts ``patience`` seconds the launcher is ended, unless the job has set HPCMESOS_STRAGGLERS=wait.
    """

    def __init__(self, patience: float, members: Callable[[], list[int]], say: Callable[[str], None]) -> None:
        """``members``: the attempt's processes; nobody else's is ended, whoever a caller's parent may be."""
        self._patience = patience
        self._members = members
        self._say = say
        self._alive: dict[int, list[str]] = {}  # launcher: hosts of the proxies that run

    def begin(self, caller: int, host: str, environ: dict[str, str]) -> int:
        """A proxy starts on ``host``; answers the launcher, 0 for one that is not watched."""
        if environ.get("HPCMESOS_STEP") or environ.get(_KEEP) == "wait":
            return 0
        launcher = _parent(caller)
        self._alive.setdefault(launcher, []).append(host)
        return launcher

    def end(self, launcher: int, host: str) -> None:
        """That proxy has ended."""
        hosts = self._alive.get(launcher, [])
        if host in hosts:
            hosts.remove(host)
        if hosts:
            begun = _ticks(launcher)
            asyncio.get_running_loop().call_later(self._patience, self._judge, launcher, begun, host)
        else:
            self._alive.pop(launcher, None)

    def _judge(self, launcher: int, begun: int, host: str) -> None:
        hosts = self._alive.get(launcher)
        if hosts and begun and _ticks(launcher) == begun and launcher in self._members():
            self._say(
                f"hpcmesos: the ranks on {host} ended {self._patience:g} s ago, those on {' '.join(hosts)} run on: "
                f"the launch is ended (with {_KEEP}=wait it would go on)"
            )
            with suppress(ProcessLookupError):
                os.kill(launcher, signal.SIGTERM)


def clean(uid: int, since: float) -> None:
    """Removes what killed proxies and ranks left: files of those names and that owner, not older than ``since``.

    A file that a living proxy of the owner may have made, for it was there before the file, stays; so does memory that
    a living process of the owner has mapped.
    """
    living = _living(uid)
    oldest = min((_start_time(pid) for pid in living if _name(pid) in _MAKERS), default=time.time())
    for path, changed in _litter(*_FILES, uid, since):
        if changed < oldest:
            _unlink(path)
    if memory := _litter(*_MEMORY, uid, since):
        mapped = {path for pid in living for path in _mapped(pid)}
        for path, _ in memory:
            if path not in mapped:
                _unlink(path)


def _litter(directory: str, prefix: str, uid: int, since: float) -> list[tuple[str, float]]:
    """(path, time of the last change) of each candidate."""
    found = []
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(prefix):
                status = entry.stat(follow_symlinks=False)
                if status.st_uid == uid and stat.S_ISREG(status.st_mode) and status.st_mtime >= since:
                    found.append((entry.path, status.st_mtime))
    return found


def _unlink(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def _mapped(pid: int) -> set[str]:
    """The shared memory that a process has mapped."""
    with suppress(OSError), open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
        return {line.split()[5] for line in file if _MEMORY[0] in line}
    return set()


def _living(uid: int) -> list[int]:
    """The processes of that user."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if os.stat(f"/proc/{name}").st_uid == uid:
                found.append(int(name))
    return found


def _name(pid: int) -> str:
    with suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        return file.read().strip()
    return ""


def _stat(pid: int) -> list[bytes]:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()


def _parent(pid: int) -> int:
    with suppress(OSError):
        return int(_stat(pid)[1])
    return 0


def _ticks(pid: int) -> int:
    """When it began, in the kernel's own count; 0 for what has ended."""
    try:
        return int(_stat(pid)[19])
    except OSError:
        return 0


def _start_time(pid: int) -> float:
    """The same in seconds since the epoch."""
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return booted + _ticks(pid) / os.sysconf("SC_CLK_TCK")
