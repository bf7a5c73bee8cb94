"""What this node has: found on the machine, or declared; and which GPUs are this agent's alone."""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import re
import socket
import stat
import uuid
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from hpcmesos import wire
from hpcmesos.config import AgentSettings
from hpcmesos.errors import ConfigError, StateError
from hpcmesos.model import CONTAINERS, DOCKER_IN_JOBS, MIG_FEATURE, SIMULATED_PREFIX

log = logging.getLogger(__name__)

_DOCKER_SOCKET = Path("/var/run/docker.sock")
_NAMESPACE = uuid.UUID("5f8a5d3e-6b0e-5c5c-9c4b-0d8f6f1f6a10")  # any fixed one: seeds simulated GPU ids


def collect(settings: AgentSettings, cluster: str) -> wire.Inventory:
    """CPUs, memory and simulated GPUs; real ones come from the probe.

    Raises:
        ConfigError: ``gpus`` is none of its forms, or ``features`` has one that only MIG instances give.
    """
    if wrong := [feature for feature in settings.features if feature.startswith(MIG_FEATURE)]:
        raise ConfigError(
            f"features: '{wrong[0]}': names that begin with {MIG_FEATURE} are for MIG instances: give it another"
        )
    return wire.Inventory(
        cpus=settings.cpus if settings.cpus is not None else cpus(),
        memory=settings.memory if settings.memory is not None else memory(),
        gpus=simulated(settings.gpus, cluster, settings.node),
        declared=settings.cpus is not None or settings.memory is not None,
        features=(*settings.features, *_of_docker(settings)),
        os=_os(),
        hostname=socket.gethostname(),
    )


def _of_docker(settings: AgentSettings) -> tuple[str, ...]:
    if not docker_engine(settings.docker):
        return ()
    return (CONTAINERS, DOCKER_IN_JOBS) if settings.docker_in_jobs else (CONTAINERS,)


def simulated(setting: str, cluster: str, node: str) -> tuple[wire.Gpu, ...]:
    """The GPUs of ``simulated:N``; the same ids after every restart."""
    if wants_probe(setting) or setting == "none":
        return ()
    kind, _, count = setting.partition(":")
    if kind != "simulated" or not count.isdigit():
        raise ConfigError(
            f'gpus: \'{setting}\' is none of "none", "auto", "simulated:N", "uuid:GPU-...,GPU-...", "mig:PROFILE"'
        )
    return tuple(
        wire.Gpu(
            uuid=f"{SIMULATED_PREFIX}{uuid.uuid5(_NAMESPACE, f'{cluster}/{node}/{index}')}",
            index=index,
            model="Simulated GPU",
            simulated=True,
        )
        for index in range(int(count))
    )


def wants_probe(setting: str) -> bool:
    """Whether the setting means real GPUs."""
    return setting == "auto" or setting.startswith(("uuid:", "mig:"))


def choose(
    setting: str, found: Sequence[wire.Gpu], profile: str | None = None, held: Collection[str] = ()
) -> tuple[list[wire.Gpu], str]:
    """The real GPUs that the setting means, all of one kind; and which others it meant, or "".

    Jobs name kinds by a feature of nodes, so a node has whole cards, or MIG instances of one profile: of ``profile``
    ("": whole cards) if it is given; else of that which a job has (``held``: UUIDs); else of several kinds the cards
    count, else the profile of which there is most. A card's UUID stands for its instances as well.
    """
    kind, _, rest = setting.partition(":")
    words = rest.split(",")
    named = {"auto": [], "uuid": ["uuid", "parent"], "mig": ["profile"]}[kind]
    asked = [gpu for gpu in found if not named or any(getattr(gpu, name) in words for name in named)]
    profiles = Counter(gpu.profile for gpu in asked)
    kinds = Counter(gpu.profile for gpu in asked if gpu.uuid in held) or profiles
    if profile is None and kinds:
        profile = "" if "" in kinds else max(kinds, key=lambda name: (kinds[name], name))
    others = ", ".join(
        f"{count} x {name or 'whole card'}" for name, count in sorted(profiles.items()) if name != profile
    )
    return [gpu for gpu in asked if gpu.profile == profile], others


def docker_engine(setting: str) -> str | None:
    """The URL of the Docker Engine for containers of jobs; None: this node serves none.

    Only root may enter another user's container. Whether the Engine answers is seen when a job comes: it may be
    started later, or restarted.
    """
    if setting == "none" or os.geteuid() != 0 or find_spec("docker") is None:
        return None
    if setting != "auto":
        return setting
    if given := os.environ.get("DOCKER_HOST"):
        return given
    return f"unix://{_DOCKER_SOCKET}" if _DOCKER_SOCKET.exists() else None


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def cpus() -> int:
    """CPUs that this process may use: its affinity, less where its cgroup's quota allows less."""
    count = len(os.sched_getaffinity(0))
    for quota, period in _quotas():
        if quota > 0 and period > 0:
            count = min(count, max(1, quota // period))
    return count


def memory() -> int:
    """Bytes of memory: the machine's, less where the cgroup's limit is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for directory in _cgroups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(directory / name)
            if text.isdigit() and int(text) > 0:
                total = min(total, int(text))
    return total


def load() -> tuple[float, int]:
    """The machine's load of the last minute and its available memory in bytes."""
    available = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    return os.getloadavg()[0], int(available[1]) * 1024 if available else 0


class Claims:
    """The GPUs that this agent holds against all other agents of the host, by one locked file for each."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory or _claims_directory()
        self._held: dict[str, tuple[int, int]] = {}  # by UUID: descriptor, LOCK_SH or LOCK_EX

    def claim(self, gpu: str, parent: str = "") -> bool:
        """False: another living agent of this host has it, or its ``parent``, the card of a MIG instance; agents share
        the card if all of them have instances of it.

        Raises StateError when somebody else has the directory of the locks.
        """
        had = parent in self._held
        if parent and not self._lock(parent, fcntl.LOCK_SH):
            return False
        if self._lock(gpu, fcntl.LOCK_EX):
            return True
        if parent and not had:
            os.close(self._held.pop(parent)[0])
        return False

    def _lock(self, gpu: str, kind: int) -> bool:
        """A lock that is shared stays so: flock(2) gives up the old one before it tries the new one."""
        if gpu in self._held:
            return self._held[gpu][1] in (kind, fcntl.LOCK_EX)
        _make_private(self._directory)
        path = self._directory / gpu
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._held[gpu] = descriptor, kind
        return True

    def close(self) -> None:
        for descriptor, _ in self._held.values():
            os.close(descriptor)
        self._held.clear()


class Ours:
    """Which GPUs of the probe's answers are this agent's. Their kind is that of the first answer that has any, for the
    life of the agent: a card that does not answer for a while must not make strangers of those that jobs have.
    """

    def __init__(self, setting: str, claims: Claims) -> None:
        self._setting = setting
        self._claims = claims
        self._profile: str | None = None
        self._said: set[str] = set()

    def close(self) -> None:
        self._claims.close()

    def of(self, found: Sequence[wire.Gpu], held: Collection[str]) -> set[str]:
        """Their UUIDs; ``held``: those of GPUs that jobs have here."""
        meant, others = choose(self._setting, found, self._profile, held)
        if others:
            self._say_once(f'left out: {others}: an agent with gpus = "mig:PROFILE" or "uuid:..." takes them')
        ours = set()
        for gpu in meant:
            self._profile = gpu.profile
            if self._claims.claim(gpu.uuid, gpu.parent):
                ours.add(gpu.uuid)
            else:
                self._say_once(f"GPU {gpu.uuid} belongs to another agent of this host: left out here")
        return ours

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            log.warning("%s", text)


def _claims_directory() -> Path:
    if os.geteuid() == 0:
        return Path("/run/lock/hpcmesos")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime or "/tmp") / f"hpcmesos-gpus-{os.geteuid()}"  # noqa: S108  (its owner is checked)


def _make_private(directory: Path) -> None:
    """/run/lock and /tmp are everybody's: whoever makes a directory there first could take all GPUs from us."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        found = directory.lstat()
    except OSError as error:
        raise StateError(
            f"cannot use {directory}, the directory of the GPUs' locks: {error.strerror}"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise StateError(f"{directory}, the directory of the GPUs' locks, is not ours alone: remove it")


def _quotas() -> list[tuple[int, int]]:
    """(quota, period) in microseconds of every cgroup that limits this process."""
    found = []
    for directory in _cgroups("cpu"):
        text = _read(directory / "cpu.max").split()
        if len(text) == 2 and text[0].isdigit():
            found.append((int(text[0]), int(text[1])))
        quota, period = _read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():
            found.append((int(quota), int(period)))
    return found


def _cgroups(controller: str) -> list[Path]:
    """Directories of this process's cgroups, v2 and the v1 of ``controller``, each with all above it."""
    directories = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root = Path("/sys/fs/cgroup")
        elif controller in controllers.split(","):
            root = Path("/sys/fs/cgroup") / controllers
        else:
            continue
        own = root / path.lstrip("/")
        directories += [d for d in (own, *own.parents) if d.is_relative_to(root)]
    return directories


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _os() -> str:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        name = "Linux"
    return f"{name}, {os.uname().sysname} {os.uname().release}"
