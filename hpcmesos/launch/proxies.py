"""What launchers called by their path do not see: lost remote shells, Hydra's lonely proxies; and MPICH's litter."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from hpcmesos import procfs
from hpcmesos.launch import programs

_PROXY = "hydra_pmi_proxy"
_FILES = ("/tmp", "hydra_hwloc_xmlfile_")  # noqa: S108  (the path is fixed in Hydra)
_MEMORY = ("/dev/shm", "mpich_shm_")  # noqa: S108  (where shm_open keeps it)
_MAKERS = (_PROXY, "mpiexec", "mpiexec.hydra", "mpirun")
_KEEP = "HPCMESOS_STRAGGLERS"
_MAKING = 10.0
"""Seconds from the start of a proxy within which its file is made, at the latest."""
_AGAIN = (0.25, 0.5, 1.0, 2.0, 4.0, *[8.0] * 8, *[60.0] * 60)
_HANG, _GRACE = 5.0, 5.0
"""Seconds that a launcher may take to see that it lost a remote shell, and from its SIGTERM to its SIGKILL."""


def is_proxy(command: str) -> bool:
    """Of MPICH or Intel MPI."""
    return _PROXY in command or "hydra_bstrap_proxy" in command


class Watch:
    """The launches of one attempt that did not go through the front.

    No launcher sees that a remote shell was killed; and where a proxy was, Open MPI and Intel MPI, which the remote
    shell then asks to end, may wait on: they are ended for that.
    Hydra does not see a rank that left without MPI_Finalize on another host: that host's proxy ends, the others run
    on. Where that lasts ``patience`` seconds the launcher is ended, unless the job has set HPCMESOS_STRAGGLERS=wait.
    """

    def __init__(self, patience: float, members: Callable[[], list[int]], say: Callable[[str], None]) -> None:
        """``members``: the attempt's processes; nobody else's is ended, whoever a caller's parent may be."""
        self._patience = patience
        self._members = members
        self._say = say
        self._alive: dict[int, list[str]] = {}  # launcher: hosts of the proxies that run

    def launcher(self, caller: int, environ: Mapping[str, str]) -> int:
        """The launcher that has called a remote shell; 0 for one behind the front, and for any other program."""
        parent = 0 if environ.get("HPCMESOS_STEP") else _parent(caller)
        return parent if parent and _name(parent).startswith(programs.LAUNCHERS) else 0

    def begin(self, launcher: int, host: str) -> None:
        """One of Hydra's proxies starts on ``host``."""
        self._alive.setdefault(launcher, []).append(host)

    def end(self, launcher: int, host: str, environ: Mapping[str, str]) -> None:
        """That proxy has ended."""
        hosts = self._alive.get(launcher, [])
        if host in hosts:
            hosts.remove(host)
        if not hosts:
            self._alive.pop(launcher, None)
        elif environ.get(_KEEP) != "wait":
            self._later(self._patience, self._judge, launcher, _ticks(launcher), host)

    def lose(self, launcher: int, reason: str) -> None:
        """One of its remote shells or proxies was killed."""
        self._later(_HANG, self._give_up, launcher, _ticks(launcher), reason)

    def _later(self, seconds: float, what: Callable[..., None], *about: object) -> None:
        asyncio.get_running_loop().call_later(seconds, what, *about)

    def _judge(self, launcher: int, begun: int, host: str) -> None:
        if (hosts := self._alive.get(launcher)) and self._is(launcher, begun):
            self._say(
                f"hpcmesos: the ranks on {host} ended {self._patience:g} s ago, those on {' '.join(hosts)} run on: "
                f"the launch is ended (with {_KEEP}=wait it would go on)"
            )
            self._end(launcher, begun)

    def _give_up(self, launcher: int, begun: int, reason: str) -> None:
        if self._is(launcher, begun):
            self._say(f"hpcmesos: {reason}: the launch is ended")
            self._end(launcher, begun)

    def _end(self, launcher: int, begun: int) -> None:
        _signal(launcher, signal.SIGTERM)
        self._later(_GRACE, self._kill, launcher, begun)

    def _kill(self, launcher: int, begun: int) -> None:
        if self._is(launcher, begun):
            _signal(launcher, signal.SIGKILL)

    def _is(self, launcher: int, begun: int) -> bool:
        """It runs, is the one that began then, and ours."""
        return begun != 0 and _ticks(launcher) == begun and launcher in self._members()


def clean(uid: int, since: float, until: float) -> bool:
    """Removes what killed proxies and ranks left between the two times: files of those names and that owner.

    What may belong to a living process of the owner stays: a file made soon after a proxy began, and memory that is
    mapped. Answers whether nothing had to stay.
    """
    files, memory = (_litter(*place, uid, since, until) for place in (_FILES, _MEMORY))
    if not (files or memory):
        return True
    living = _living(uid)
    begun = [_start_time(pid) for pid in living if _name(pid) in _MAKERS]
    kept = {path for path, changed in files if any(0 <= changed - start + 1 <= _MAKING for start in begun)}
    if memory:
        mapped = _mapped(living)
        kept |= {path for path, _ in memory if mapped is None or path in mapped}
    for path, _ in (*files, *memory):
        if path not in kept:
            _unlink(path)
    return not kept


async def clean_again(uid: int, since: float, until: float) -> None:
    """After `clean` had to leave something: jobs that end together keep each other's files until the last is over."""
    for pause in _AGAIN:
        await asyncio.sleep(pause)
        if clean(uid, since, until):
            return


def _litter(directory: str, prefix: str, uid: int, since: float, until: float) -> list[tuple[str, float]]:
    """(path, time of the last change) of each candidate."""
    found = []
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(prefix):
                status = entry.stat(follow_symlinks=False)
                ours = status.st_uid == uid and since <= status.st_mtime <= until
                if ours and stat.S_ISREG(status.st_mode):
                    found.append((entry.path, status.st_mtime))
    return found


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _unlink(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def _mapped(pids: list[int]) -> set[str] | None:
    """The shared memory that they have mapped; None: of one the kernel does not tell it now."""
    found = set()
    for content in procfs.read_all(pids, "maps").values():
        if content is None:
            return None
        lines = content.decode("utf-8", "replace").splitlines()
        found |= {line.split()[5] for line in lines if _MEMORY[0] in line}
    return found


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
