"""GPU devices where only cgroup v2 is: the attempts with the same GPUs run below one transient scope of systemd's.

cgroup v2 has no file for devices; the kernel asks a BPF program, and systemd writes one from DeviceAllow
(systemd.resource-control(5)). What lies below a scope is held by it too, so our own groups are made there. A scope is
made when the first attempt with its GPUs comes, and goes with its shepherd: a process in it waits for that.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Iterable
from contextlib import suppress

from hpcmesos.launch.limits import NVIDIA, Device
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
_CONTROLLERS = ("cpu", "memory", "pids")
_INSTANCES = "nvidia-caps"
"""The driver's name for the devices of MIG instances: as its cards', each is one job's."""
_CONTROL = (254, 255)
"""Minors of nvidia-modeset and nvidiactl."""


def allowed(devices: str, majors: Collection[int], granted: Collection[Device]) -> list[str]:
    """Values of DeviceAllow: everything but the NVIDIA driver's ``majors``, and of its devices what a job needs.

    ``devices``: the text of /proc/devices. ``granted``: cards and MIG instances.
    """
    lines = devices.partition("Block devices:")[0].splitlines()
    drivers = [
        (int(words[0]), words[1]) for words in map(str.split, lines) if words[1:] and words[0].isdigit()
    ]
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


class Scopes:
    """Those of one shepherd; none where devices are held otherwise, or not at all."""

    def __init__(self, config: Config, children: Children) -> None:
        self._settings = config.limits.get("scopes")
        self._majors = config.limits.get("devices") or []
        self._children = children
        self._made: dict[tuple[Device, ...], str] = {}
        self._keeping: list[int] = []
        self._one_by_one = asyncio.Lock()

    @property
    def wanted(self) -> bool:
        return bool(self._settings and self._majors)

    def known(self, granted: tuple[Device, ...]) -> str | None:
        """The directory for attempts with these devices; None: there is none, or not any more."""
        found = self._made.get(granted)
        return found if found and os.path.isdir(found) else None

    async def make(self, granted: tuple[Device, ...]) -> str:
        """As `known`, made if need be.

        Raises:
            Refusal: systemd does not do it; says why.
        """
        async with self._one_by_one:
            if (found := self.known(granted)) is None:
                found = self._made[granted] = await self._hold(granted)
        return found

    async def _hold(self, granted: tuple[Device, ...]) -> str:
        assert self._settings is not None
        with open("/proc/devices", encoding="ascii") as file:
            values = allowed(file.read(), self._majors, granted)
        name = f"hpcmesos-{os.getpid()}-{len(self._keeping)}"
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
        self._keeping.append(keeping)
        _delegate(said)
        return said


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


def _delegate(directory: str) -> None:
    """Hands down to the attempts what systemd has handed to the scope."""
    with open(os.path.join(directory, "cgroup.controllers"), encoding="ascii") as file:
        present = file.read().split()
    with open(os.path.join(directory, "cgroup.subtree_control"), "w", encoding="ascii") as file:
        file.write(" ".join(f"+{name}" for name in _CONTROLLERS if name in present))


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
