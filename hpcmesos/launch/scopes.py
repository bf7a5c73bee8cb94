"""GPU devices where only cgroup v2 is: the attempts with the same GPUs run below one transient scope of systemd's.

cgroup v2 has no file for devices; the kernel asks a BPF program, and systemd writes one from DeviceAllow
(systemd.resource-control(5)). What lies below a scope is held by it too, so our own groups are made there. A scope is
made when the first attempt with its GPUs comes, anew when the drivers are others than before, and goes with its
shepherd or, where there are many, unused for longest: a process in it waits for that.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass

from hpcmesos.launch.limits import NVIDIA, Device, hand_down
from hpcmesos.launch.owners import Owner
from hpcmesos.launch.processes import Children, Launch
from hpcmesos.launch.settings import Config, Refusal

COMMAND = ("systemd-run", "--scope", "--quiet", "--collect")
HOLDER = "holder"
"""The group of the process that keeps a scope; attempts' names look otherwise."""
_HOLD = f"""
place=$1$(sed -n s/^0:://p /proc/self/cgroup)
mkdir "$place/{HOLDER}" && echo $$ >"$place/{HOLDER}/cgroup.procs" || exit
echo "$place"
exec cat >/dev/null"""
"""Ends with its standard input, whose other end the shepherd has."""
_PATIENCE = 20.0
_MOST = 64
"""Scopes of no attempt go beyond so many."""
_INSTANCES = "nvidia-caps"
"""The driver's name for the devices of MIG instances: as its cards', each is one job's."""
_CONTROL = (254, 255)
"""Minors of nvidia-modeset and nvidiactl."""


def allowed(devices: str, majors: Collection[int], granted: Collection[Device]) -> list[str]:
    """Values of DeviceAllow: everything but the NVIDIA driver's ``majors``, and of its devices what a job needs.

    ``devices``: the text of /proc/devices; it may tell more of the driver than ``majors``, for its modules are loaded
    one by one. ``granted``: cards and MIG instances.
    """
    lines = devices.partition("Block devices:")[0].splitlines()
    drivers = [
        (int(words[0]), words[1]) for words in map(str.split, lines) if words[1:] and words[0].isdigit()
    ]
    majors = {*majors, *(major for major, name in drivers if name.startswith("nvidia"))}
    own = {NVIDIA, *(major for major, name in drivers if name == _INSTANCES)}
    ours = [name for major, name in drivers if major in majors and major not in own] if granted else []
    names = [name for major, name in drivers if major not in majors] + ours
    control = [(NVIDIA, minor) for minor in _CONTROL] if granted else []
    nodes = [f"/dev/char/{major}:{minor} rwm" for major, minor in (*granted, *control)]
    return ["block-* rwm", *(f"char-{name} rwm" for name in dict.fromkeys(names)), *nodes]


def policy(values: Iterable[str]) -> list[str]:
    """Words for systemd-run: these devices and no others."""
    return [
        "-p",
        "DevicePolicy=strict",
        *(word for value in values for word in ("-p", f"DeviceAllow={value}")),
    ]


def directories(config: Config) -> list[str]:
    """Those below which attempts' cgroups may be: the node's own, and its scopes, also of earlier shepherds."""
    found = [config.cgroup] if config.cgroup else []
    if settings := config.limits.get("scopes"):
        with suppress(FileNotFoundError):
            entries = os.scandir(settings["directory"])
            found += [entry.path for entry in entries if entry.name.endswith(".scope")]
    return found


@dataclass(frozen=True, slots=True)
class _Scope:
    """``keeping``: while it is open, the holder lives."""

    directory: str
    keeping: int

    def idle(self) -> bool:
        """No attempt has its group here."""
        with suppress(FileNotFoundError), os.scandir(self.directory) as entries:
            return not any(entry.is_dir() and entry.name != HOLDER for entry in entries)
        return True


class Scopes:
    """Those of one shepherd; none where devices are held otherwise, or not at all."""

    def __init__(self, config: Config, children: Children, devices: str = "/proc/devices") -> None:
        self._settings = config.limits.get("scopes")
        self._majors = config.limits.get("devices") or []
        self._children = children
        self._devices = devices
        self._made: dict[tuple[str, ...], _Scope] = {}
        """By what they allow; last the one that was used last."""
        self._count = 0
        self._one_by_one = asyncio.Lock()

    @property
    def wanted(self) -> bool:
        return bool(self._settings and self._majors)

    def known(self, granted: tuple[Device, ...]) -> str | None:
        """The directory for attempts with these devices; None: there is none, or not any more."""
        return self._known(self._values(granted)) if self._made else None

    def _values(self, granted: tuple[Device, ...]) -> tuple[str, ...]:
        with open(self._devices, encoding="ascii") as file:
            return tuple(allowed(file.read(), self._majors, granted))

    def _known(self, values: tuple[str, ...]) -> str | None:
        if (found := self._made.pop(values, None)) is None:
            return None
        if not os.path.isdir(found.directory):
            os.close(found.keeping)
            return None
        self._made[values] = found
        return found.directory

    async def make(self, granted: tuple[Device, ...]) -> str:
        """As `known`, made if need be.

        Raises:
            Refusal: systemd does not do it; says why.
        """
        async with self._one_by_one:
            values = self._values(granted)
            if found := self._known(values):
                return found
            self._give_back()
            self._made[values] = made = await self._hold(values)
        return made.directory

    def _give_back(self) -> None:
        """Makes room for one more; systemd removes what has no process."""
        for values, scope in list(self._made.items()):
            if len(self._made) < _MOST:
                return
            if scope.idle():
                os.close(self._made.pop(values).keeping)

    async def _hold(self, values: tuple[str, ...]) -> _Scope:
        assert self._settings is not None
        self._count += 1
        name = f"hpcmesos-{os.getpid()}-{self._count}"
        words = [*COMMAND, f"--slice={self._settings['slice']}", f"--unit={name}", "-p", "Delegate=yes"]
        words += [*policy(values), "sh", "-c", _HOLD, "sh", self._settings["root"]]
        stdin, keeping = os.pipe()
        output, theirs = os.pipe()
        try:
            _, report = self._children.spawn(_launch(words, stdin, theirs), lambda _status, _usage: None)
            report.close()
        except OSError as error:
            os.close(output)
            os.close(keeping)
            raise Refusal(f"cannot start {words[0]}: {error.strerror}") from error
        finally:
            os.close(stdin)
            os.close(theirs)
        said = await _first_line(output)
        if not os.path.isdir(said):
            os.close(keeping)
            raise Refusal(f"systemd makes no scope to hold the GPU devices: {said or 'no answer'}")
        hand_down(said)
        return _Scope(said, keeping)


def _launch(words: list[str], stdin: int, output: int) -> Launch:
    return Launch(
        program=words[0],
        argv=words,
        environ={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        directories=("/",),
        owner=Owner("", 0, 0, (), "/", "", switch=False),
        umask=0o022,
        cgroups=(),
        stdio=(stdin, output, output),
    )


async def _first_line(fd: int) -> str:
    """What comes from ``fd``, empty after some seconds of nothing."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", 0)
    )
    try:
        async with asyncio.timeout(_PATIENCE):
            return (await reader.readline()).decode(errors="replace").strip()
    except (TimeoutError, ValueError):
        return ""
    finally:
        transport.close()
