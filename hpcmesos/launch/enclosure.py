"""All processes of one attempt on this node, however they forked: signalled, killed, counted as one.

Two ways to know them: a cgroup (v2), or the shepherd's own tree, for it is a subreaper and whatever an attempt leaves
behind becomes its child.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Collection
from contextlib import suppress
from typing import Any, Protocol

from hpcmesos import procfs
from hpcmesos.launch import own_log
from hpcmesos.launch.limits import Limits, read, remove_group

UNKILLABLE = 10.0
"""Seconds of SIGKILL after which what remains (blocked in the kernel) is named and left."""

STEP_GRACE = 2.0
"""Seconds from SIGTERM to SIGKILL for the processes of a step that is ended alone."""

_ENTRY = "job"
"""The group of an attempt's own processes in a shared one; containers' names are longer."""

_FOR_ALL = frozenset({signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT})
"""These reach also what was set apart."""


class Enclosure(Protocol):
    """The processes of an attempt.

    ``procs``: the files by which a child joins, if any are needed. ``coming``: processes that somebody else was asked
    to make here, and may still make; it is not empty while there are any.
    """

    procs: tuple[str, ...]
    coming: int

    def pids(self) -> list[int]: ...
    def empty(self) -> bool: ...
    def set_apart(self) -> None:
        """What is there now, and whatever that starts, serves the job: signals for the job are not for it."""
        ...

    def own(self) -> list[int]:
        """As `pids`, without what was set apart."""
        ...

    def deserted(self) -> bool:
        """As `empty`, but for what was set apart."""
        ...

    def signal(self, number: int) -> None:
        """To the job's own processes; what stops or kills, to all."""
        ...

    def freeze(self, frozen: bool) -> None: ...
    def kill(self) -> None: ...
    def out_of_memory(self) -> bool:
        """Whether the kernel killed here because the job's memory did not do."""
        ...

    def usage(self) -> tuple[float, int]:
        """CPU seconds and peak bytes, 0 where not known."""
        ...

    def adopt(self, pid: int) -> None:
        """``pid`` was started for this attempt."""
        ...

    def remove(self) -> None: ...


async def clear(enclosure: Enclosure) -> list[int]:
    """Kills until nothing is left; answers what could not be killed."""
    deadline, pause = time.monotonic() + UNKILLABLE, 0.001
    while True:
        begun = time.monotonic()
        if enclosure.empty():
            return []
        enclosure.kill()
        if time.monotonic() > deadline:
            return enclosure.pids()
        # To look through all processes of a busy node takes long: the other jobs must have their turns.
        await asyncio.sleep(max(pause, 5 * (time.monotonic() - begun)))
        pause = min(pause * 2, 0.05)


async def clear_step(enclosure: Enclosure, step: str, leaders: Collection[int] = ()) -> None:
    """Ends what is left of a step: SIGTERM, two seconds, SIGKILL.

    What the kernel keeps us from knowing may be of it, and is waited for as long as what cannot be killed.
    """
    begun, pause, told = time.monotonic(), 0.002, set[int]()
    while time.monotonic() - begun < UNKILLABLE:
        left, unknown = await _of_step(enclosure, step, leaders)
        if not left and not unknown:
            return
        hard = time.monotonic() - begun > STEP_GRACE
        for pid in left if hard else set(left) - told:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL if hard else signal.SIGTERM)
        told.update(left)
        await asyncio.sleep(pause)
        pause = min(pause * 2, 0.05)


async def _of_step(enclosure: Enclosure, step: str, leaders: Collection[int]) -> tuple[list[int], bool]:
    """Those that belong to a session that one of ``leaders`` began, or name the step in their environment; and
    whether others may name it.
    """
    marker = f"HPCMESOS_STEP={step}".encode()
    pids = enclosure.pids()
    found = [pid for pid in pids if leaders and _session(pid) in leaders]
    told = await environments(set(pids).difference(found))
    return found + [
        pid for pid, entries in told.items() if entries and marker in entries
    ], None in told.values()


def _session(pid: int) -> int:
    """0 for what has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[3])


class _Members(ABC):
    """What is the same however they are known."""

    coming: int
    _servants: frozenset[int] = frozenset()

    @abstractmethod
    def pids(self) -> list[int]: ...

    @abstractmethod
    def empty(self) -> bool: ...

    def set_apart(self) -> None:
        self._servants = frozenset(self.pids())

    def own(self) -> list[int]:
        found = self.pids()
        if not self._servants:
            return found
        table = process_table()
        return [pid for pid in found if not _descends(pid, self._servants, table)]

    def deserted(self) -> bool:
        return self.empty() or bool(self._servants and not self.coming and not self.own())

    def signal(self, number: int) -> None:
        for pid in self.pids() if number in _FOR_ALL else self.own():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)


def _below(pid: int, children: dict[int, list[int]]) -> list[int]:
    """Its descendants."""
    found = list(children.get(pid, ()))
    for one in found:  # grows meanwhile
        found += children.get(one, ())
    return found


def _descends(pid: int, ancestors: Collection[int], table: dict[int, tuple[int, int]]) -> bool:
    """Whether it is one of them, or they have made it."""
    while pid in table and pid not in ancestors:
        pid = table[pid][0]
    return pid in ancestors


class Cgroup(_Members):
    """A directory of the v2 hierarchy, made here; ``limits`` may have groups of v1 beside it.

    ``shared``: others make groups in it, too, so our processes are in one of their own: no group of v2 that hands
    controllers down has processes itself (cgroups(7)). ``directory`` is the whole, ``entry`` where ours are started.
    """

    def __init__(
        self,
        parent: str,
        name: str,
        v1: dict[str, str],
        limits: dict[str, Any],
        *,
        shared: bool = False,
    ) -> None:
        self.directory = os.path.join(parent, name)
        self.entry = os.path.join(self.directory, _ENTRY) if shared else self.directory
        self.coming = 0
        self._removed = False
        alone = not shared
        try:
            os.mkdir(self.directory, 0o755)
        except FileNotFoundError:
            # The unit that keeps the jobs' part of the tree was stopped and started.
            os.makedirs(self.directory, 0o755)
        except FileExistsError:  # of an earlier shepherd
            alone = False
        try:
            self.limits = Limits(self.directory, v1, limits, alone=alone)
            if shared:
                os.makedirs(self.entry, 0o755, exist_ok=True)
                self.limits.watch_below()
        except OSError:
            remove_group(self.directory)
            raise
        self.procs = (os.path.join(self.entry, "cgroup.procs"), *self.limits.procs)

    def pids(self) -> list[int]:
        found: list[int] = []
        for directory, _, _ in os.walk(self.directory):
            with suppress(OSError), open(os.path.join(directory, "cgroup.procs"), encoding="ascii") as file:
                found += [int(line) for line in file]
        return found

    def empty(self) -> bool:
        if self.coming:
            return False
        return "populated 0" in self._read("cgroup.events") or not os.path.isdir(self.directory)

    def freeze(self, frozen: bool) -> None:
        """Stops all processes, also those that are born meanwhile, or lets them go on."""
        try:
            with open(os.path.join(self.directory, "cgroup.freeze"), "w", encoding="ascii") as file:
                file.write("1" if frozen else "0")
        except OSError:  # Linux before 5.2
            self.signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def kill(self) -> None:
        try:
            with open(os.path.join(self.directory, "cgroup.kill"), "w", encoding="ascii") as file:
                file.write("1")
        except OSError:  # Linux before 5.14
            self.signal(signal.SIGKILL)

    def out_of_memory(self) -> bool:
        return self.limits.out_of_memory()

    def usage(self) -> tuple[float, int]:
        words = self._read("cpu.stat").split()
        cpu = int(words[words.index("usage_usec") + 1]) / 1e6 if "usage_usec" in words else 0.0
        return cpu, self.limits.peak()

    def adopt(self, pid: int) -> None:
        pass

    def remove(self) -> None:
        if not self._removed:
            gone = remove_group(self.directory)
            self._removed = self.limits.remove() and gone

    def _read(self, name: str) -> str:
        return read(os.path.join(self.directory, name))


class Trees:
    """The live attempts of a shepherd without cgroups, and who belongs to which."""

    def __init__(self, marker: str) -> None:
        self.marker = marker
        """``NAME=VALUE`` that stands in the environment of this shepherd's processes and of no other's."""
        self.live: dict[str, Tree] = {}

    def owner_of(self, pid: int) -> str | None:
        """The attempt that ``pid`` belongs to."""
        if not self.live:  # all are known by their cgroups; anybody may have us ask
            return None
        table = process_table()
        for attempt, tree in self.live.items():
            if pid in tree.members(table):
                return attempt
        return None


class Tree(_Members):
    """The part of the shepherd's tree that belongs to one attempt.

    Evidence, in this order: HPCMESOS_ATTEMPT in the environment, an ancestor or a session that is known. An orphan
    without any is taken by the last attempt of its user.
    """

    def __init__(self, trees: Trees, attempt: str, uid: int) -> None:
        self.procs: tuple[str, ...] = ()
        self.coming = 0
        self._trees = trees
        self._attempt = attempt
        self._uid = uid
        self._sessions: set[int] = set()
        trees.live[attempt] = self

    def adopt(self, pid: int) -> None:
        for tree in self._trees.live.values():
            tree._sessions.discard(pid)  # a number that came round again
        self._sessions.add(pid)

    def pids(self) -> list[int]:
        return sorted(self.members(process_table()))

    def members(self, table: dict[int, tuple[int, int]]) -> set[int]:
        """Of the whole process table (pid: parent, session) those that are this attempt's."""
        children: dict[int, list[int]] = {}
        for pid, (parent, _) in table.items():
            children.setdefault(parent, []).append(pid)
        told = _environments(_below(os.getpid(), children))
        found: set[int] = set()
        waiting = [(pid, False, True) for pid in children.get(os.getpid(), ())]
        while waiting:
            pid, inherited, orphan = waiting.pop()
            named = attempt_named(told[pid] or (), self._trees.marker)
            ours = self._evidence(pid, named, table[pid][1], inherited, orphan)
            if ours:
                found.add(pid)
            waiting += [(child, ours, False) for child in children.get(pid, ())]
        self._sessions |= {table[pid][1] for pid in found} - {os.getsid(0)}
        return found

    def _evidence(self, pid: int, name: str | None, session: int, inherited: bool, orphan: bool) -> bool:
        named = self._trees.live.get(name or "")
        if named and named._uid == _uid(pid):  # anybody may write another's attempt into his environment
            return named is self
        if inherited or session in self._sessions or pid in self._sessions:
            return True
        return orphan and self._last_of_user(pid)

    def _last_of_user(self, pid: int) -> bool:
        uid = _uid(pid)
        others = [t for t in self._trees.live.values() if t is not self and t._uid == self._uid]
        known = any(pid in t._sessions for t in others)
        return uid == self._uid and not others and not known

    def empty(self) -> bool:
        return not self.coming and not self.pids()

    def freeze(self, frozen: bool) -> None:
        self.signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def out_of_memory(self) -> bool:
        return False

    def usage(self) -> tuple[float, int]:
        return 0.0, 0

    def remove(self) -> None:
        self._trees.live.pop(self._attempt, None)


def _content(path: str) -> bytes:
    """As open() and read(), at half the price: a busy node has thousands of processes. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def _uid(pid: int) -> int:
    """Whose process it is; -1 when it has ended."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1


def process_table() -> dict[int, tuple[int, int]]:
    """Every process that has not ended: pid -> (parent, session)."""
    table = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            fields = _content(f"/proc/{name}/stat").rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[0] not in (b"Z", b"X"):
            table[int(name)] = (int(fields[1]), int(fields[3]))
    return table


async def environments(pids: Collection[int]) -> dict[int, list[bytes] | None]:
    """``NAME=VALUE`` of each as it was at its exec; empty when it is gone or another user's.

    None: the kernel keeps it back, which the log says; the loop does not wait for it. See `hpcmesos.procfs`.
    """
    if not pids:
        return {}
    try:
        contents = await asyncio.to_thread(procfs.read_all, pids, "environ")
    except RuntimeError:  # no thread can be started
        contents = dict.fromkeys(pids)
    return _entries(contents)


def _environments(pids: Collection[int]) -> dict[int, list[bytes] | None]:
    """As `environments`, at once."""
    return _entries(procfs.read_all(pids, "environ"))


def _entries(contents: dict[int, bytes | None]) -> dict[int, list[bytes] | None]:
    late = {pid for pid, content in contents.items() if content is None}
    if new := late - _kept_back:
        words = " ".join(map(str, sorted(new)))
        own_log.write(f"the kernel keeps back the environment of {words}: to be read later")
    _kept_back.difference_update(contents)
    _kept_back.update(late)
    return {pid: None if content is None else content.split(b"\0") for pid, content in contents.items()}


_kept_back: set[int] = set()
"""Processes of which the log has said it."""


def attempt_named(entries: Collection[bytes], marker: str) -> str | None:
    """HPCMESOS_ATTEMPT in the environment of a process that carries this shepherd's marker."""
    if os.fsencode(marker) not in entries:
        return None
    for entry in entries:
        if entry.startswith(b"HPCMESOS_ATTEMPT="):
            return os.fsdecode(entry.partition(b"=")[2])
    return None
