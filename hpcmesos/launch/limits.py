"""What an attempt may take of its node: memory, CPU time, number of processes, GPU devices; by cgroups.

Each limit goes into the attempt's own v2 group where that has the controller, else into a group of the v1 hierarchy
that is mounted beside it; a controller that is in neither when the agent starts is no limit, and the agent says so;
one that is not there later refuses the job. Devices are limited
through v1, for v2 has no file for them, or by the scope of systemd in which the group is made (`scopes`). Groups are
made for what is asked alone: a job of milliseconds pays for each.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from contextlib import suppress
from typing import Any

CONTROLLERS = ("cpu", "memory", "pids")
"""Those of v2 that hold a limit."""
Device = tuple[int, int]
"""Major and minor of a character device."""
_SHARES = 1024
"""cpu.shares of one CPU; cpu.weight of v2: a hundred."""
NVIDIA = 195
"""The driver's fixed major: /dev/nvidiaN has minor N; 254 and 255 are of no card (the kernel's devices.txt)."""
_MOST_CARDS = 64
"""More than any node has."""
_SMALL = 64 * 1024
"""Bytes, more than any file of a cgroup that is read here."""


def wanted(config: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """Controller -> limit, for this node's part of an attempt. ``config``: ``limits`` of CONFIG.json.

    Raises:
        ValueError: the device of a granted GPU is not known: the job could not open it.
    """
    member = spec["members"][spec["me"]]
    limits: dict[str, Any] = {}
    if config.get("memory") and member["mem"]:
        limits["memory"] = int(member["mem"])
    if config.get("cpu"):
        limits["cpu"] = max(1, int(member["cpus"]))
    if config.get("pids"):
        limits["pids"] = int(config["pids"])
    if config.get("devices"):
        minors = tuple(spec.get("minors") or ())
        if len(minors) != sum(not gpu["simulated"] for gpu in member["gpus"]):
            raise ValueError("NVML does not tell the devices of the granted GPUs")
        instances = _instances(config.get("caps"), spec)
        if not config.get("scopes"):
            closed = _other_instances(config.get("caps"), instances) if minors else []
            limits["devices"] = (tuple(config["devices"]), minors, closed)
    return limits


def descriptors(config: dict[str, Any], own: tuple[int, int]) -> tuple[int, int]:
    """Soft and hard limit of what a process started here may have open; ``own``: what the shepherd was given."""
    most = int(config.get("nofile") or own[1])
    return min(own[0], most), min(own[1], most)


def granted(config: dict[str, Any], spec: dict[str, Any]) -> tuple[Device, ...]:
    """The devices that this attempt may open and others may not. Raises ValueError as `wanted`."""
    cards = [(NVIDIA, minor) for minor in sorted(spec.get("minors") or ())]
    return (*cards, *_instances(config.get("caps"), spec))


def _instances(caps: dict[str, Any] | None, spec: dict[str, Any]) -> list[Device]:
    """Devices of granted MIG instances, /dev/nvidia-caps/nvidia-capN.

    ``caps``: their ``major``, the ``directory`` in which the driver tells their minors, and the file of all ``minors``
    that there can be; None: it has no MIG.

    Raises:
        ValueError: the device of a granted instance is not known.
    """
    if caps is None:
        return []
    told, minors = _told(caps), []
    for card, gpu, compute in spec.get("instances") or ():
        own = f"{caps['directory']}/gpu{card}/mig/gi{gpu}"
        for path in (f"{own}/access", f"{own}/ci{compute}/access"):
            if path not in told:
                raise ValueError(f"the driver does not tell the devices of the granted GPUs: {path}")
            minors.append(told[path])
    return [(int(caps["major"]), minor) for minor in sorted(minors)]


def _told(caps: dict[str, Any]) -> dict[str, int]:
    """The driver's file for each instance that there is, and for MIG's administration: the minor."""
    told = {}
    for directory, _, files in os.walk(caps["directory"]):
        for name in files:
            path = os.path.join(directory, name)
            words = read(path).split()
            if "mig" in path.split("/") and "DeviceFileMinor:" in words:
                told[path] = int(words[words.index("DeviceFileMinor:") + 1])
    return told


def _other_instances(caps: dict[str, Any] | None, own: list[Device]) -> list[Device]:
    """As `_instances`: all but ``own``, also those that are made while the job runs, and MIG's administration.

    The driver knows the minors of more cards than any host has; those of cards that are not here are left out.
    """
    if caps is None:
        return []
    minors = set(_told(caps).values())
    with suppress(FileNotFoundError), open(caps["minors"], encoding="ascii") as file:
        cards = set(os.listdir(caps["directory"]))
        for name, minor in map(str.split, file):
            card = name.partition("/")[0]
            if card in cards or not card.startswith("gpu"):
                minors.add(int(minor))
    return sorted({(int(caps["major"]), minor) for minor in minors} - set(own))


def hand_down(directory: str, controllers: Collection[str] = CONTROLLERS) -> None:
    """Lets groups below a directory of v2 have these controllers, as far as the levels above it have them.

    What cannot be handed down is left out: a level may be another's, or hold processes itself.
    """
    present = _words(directory, "cgroup.controllers")
    if os.path.isdir(directory) and not present.issuperset(controllers):
        above = os.path.dirname(directory)
        if os.path.exists(os.path.join(above, "cgroup.controllers")):
            hand_down(above, controllers)
            present = _words(directory, "cgroup.controllers")
    given = _words(directory, "cgroup.subtree_control")
    if missing := [f"+{name}" for name in controllers if name in present - given]:
        with suppress(OSError):
            _write(os.path.join(directory, "cgroup.subtree_control"), " ".join(missing))


def _words(directory: str, file: str) -> set[str]:
    return set(read(os.path.join(directory, file)).split())


class Limits:
    """The groups of one attempt. ``procs``: files by which a child joins those beside ``directory``."""

    def __init__(
        self, directory: str, v1: dict[str, str], limits: dict[str, Any], *, alone: bool = False
    ) -> None:
        """``alone``: nobody has made, or makes, groups of this name in v1 but we, now.

        Raises OSError: one of the limits cannot be set.
        """
        self._directory = directory
        name = os.path.basename(directory)
        places = {controller: os.path.join(parent, name) for controller, parent in v1.items()}
        self._places = places
        self._event = -1
        # Those of an earlier shepherd are removed with the others.
        self._groups = (
            {} if alone else {name: group for name, group in places.items() if os.path.isdir(group)}
        )
        self._alone = alone
        try:
            for controller, value in limits.items():
                self._set(controller, value, places.get(controller))
        except BaseException:
            self.remove()
            raise

    @property
    def procs(self) -> tuple[str, ...]:
        return tuple(os.path.join(group, "cgroup.procs") for group in self._groups.values())

    def _set(self, controller: str, value: Any, group: str | None) -> None:
        if self._set_in_v2(controller, value):
            return
        if group is None:
            # The levels above were made anew since the agent began: nothing was handed down to them.
            hand_down(os.path.dirname(self._directory), (controller,))
            if self._set_in_v2(controller, value):
                return
            raise OSError(errno.EOPNOTSUPP, f"its cgroup has no {controller} controller", self._directory)
        os.makedirs(group, 0o755, exist_ok=True)
        self._groups[controller] = group
        for file, texts in _in_v1(controller, value):
            path = os.path.join(group, file)
            if os.path.exists(path):  # memory.memsw is a matter of how the kernel was started
                _write(path, *texts)

    def _set_in_v2(self, controller: str, value: Any) -> bool:
        """False: the group has no such controller."""
        for file, text in _in_v2(controller, value):
            path = os.path.join(self._directory, file)
            if os.path.exists(path):
                _write(path, text)
                swap = os.path.join(self._directory, "memory.swap.max")
                if controller == "memory" and os.path.exists(swap):
                    _write(swap, "0")
                return True
        return False

    def watch_below(self) -> None:
        """Others make groups in ours: what is killed there for our limit counts as well.

        v2 counts so by itself. v1 counts in the group of who was killed alone, which is gone when we come to look; but
        it tells whoever asks that a limit was hit (the kernel's cgroup-v1/memory.rst, "OOM Control").

        Raises:
            OSError: the kernel has no such events.
        """
        if (group := self._groups.get("memory")) is None:
            return
        control = os.open(os.path.join(group, "memory.oom_control"), os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            _write(os.path.join(group, "cgroup.event_control"), f"{self._event} {control}")
        finally:
            os.close(control)

    def out_of_memory(self) -> bool:
        """True when the kernel killed for memory here."""
        words = self._memory("memory.events", "memory.oom_control").split()
        return self._told() or ("oom_kill" in words and words[words.index("oom_kill") + 1] != "0")

    def _told(self) -> bool:
        """Whether the event has come; it says so again and again."""
        if self._event < 0:
            return False
        with suppress(BlockingIOError):
            os.eventfd_write(self._event, os.eventfd_read(self._event))
            return True
        return False

    def peak(self) -> int:
        """Bytes of memory, 0 where not known."""
        text = self._memory("memory.peak", "memory.max_usage_in_bytes").strip()
        return int(text) if text.isdigit() else 0

    def _memory(self, v2: str, v1: str) -> str:
        """The file of the hierarchy that counts this attempt's memory; empty: none does."""
        if group := self._groups.get("memory"):
            return read(os.path.join(group, v1))
        return read(os.path.join(self._directory, v2))

    def remove(self) -> bool:
        """Also what others have made in hierarchies in which we have nothing. Whether nothing is left."""
        if self._event >= 0:
            os.close(self._event)
            self._event = -1
        places = self._groups if self._alone else self._places
        return not [group for group in places.values() if not remove_group(group)]


def remove_group(group: str) -> bool:
    """A group without processes, and those that a job, or Docker for it, has made inside. Whether it is gone."""
    try:
        os.rmdir(group)
    except FileNotFoundError:
        return True
    except OSError:
        for directory, _, _ in os.walk(group, topdown=False):
            with suppress(OSError):
                os.rmdir(directory)
        return not os.path.isdir(group)
    return True


def _in_v2(controller: str, value: Any) -> list[tuple[str, str]]:
    return {
        "memory": [("memory.max", str(value))],
        "cpu": [("cpu.weight", str(min(10_000, 100 * value)) if controller == "cpu" else "")],
        "pids": [("pids.max", str(value))],
    }.get(controller, [])


def _in_v1(controller: str, value: Any) -> list[tuple[str, list[str]]]:
    """Files, and what is written into each, one after the other."""
    match controller:
        case "memory":
            return [("memory.limit_in_bytes", [str(value)]), ("memory.memsw.limit_in_bytes", [str(value)])]
        case "cpu":
            return [("cpu.shares", [str(_SHARES * value)])]
        case "pids":
            return [("pids.max", [str(value)])]
    majors, granted, closed = value
    # To make a node (m) is root's affair and opens nothing. Denied, it would keep Docker from making groups in ours: a
    # group is not given what the one above it lacks, and Docker gives all of them "c *:* m".
    if not granted:
        return [("devices.deny", [f"c {major}:* rw" for major in majors])]
    # An allowed minor cannot be taken out of a denied range, so the others are denied one by one.
    denied = [*((NVIDIA, m) for m in range(_MOST_CARDS) if m not in granted), *closed]
    return [("devices.deny", [f"c {major}:{minor} rw" for major, minor in denied])]


def _write(path: str, *texts: str) -> None:
    with open(path, "wb", buffering=0) as file:
        for text in texts:
            file.write(text.encode("ascii"))


def read(path: str) -> str:
    """What a small file of the kernel says; empty when it cannot be read. Several for each attempt: no file object."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, _SMALL).decode("ascii", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)
