"""Where the cgroups of attempts are made: a directory of the v2 hierarchy, also where it is mounted beside v1; and
which limits can be set there, or in v1's hierarchies.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hpcmesos.errors import ConfigError
from hpcmesos.launch import scopes
from hpcmesos.launch.limits import CONTROLLERS, hand_down

log = logging.getLogger(__name__)

_LIMITS = (*CONTROLLERS, "devices", "nofile")
_NUMBERED = ("pids", "nofile")
_LEAST_DESCRIPTORS = 256
"""What our own programs inside a job may need."""
_SYSTEMD = Path("/run/systemd/system")
"""There where systemd runs the host (sd_booted(3))."""
_HELD = 11
_TRIAL = f"(: </dev/zero) 2>/dev/null && exit 10; exit {_HELD}"
_PATIENCE = 20.0


def choose(
    setting: str, cluster: str, node: str, mountinfo: Path = Path("/proc/self/mountinfo")
) -> Path | None:
    """The directory under which the shepherd makes a cgroup for each attempt; None: it tracks processes without.

    ``setting``: "auto" (``V2/hpcmesos/CLUSTER/NODE`` where that can be written), "none", or a directory.

    Raises:
        ConfigError: a directory was named and cannot be used.
    """
    if setting == "none":
        return None
    if setting != "auto":
        if not _usable(Path(setting)):
            raise ConfigError(f"cgroups: {setting} is no writable directory of cgroup v2 with cgroup.kill")
        return Path(setting)
    root = find_v2(mountinfo)
    if root is None:
        return None
    directory = root / "hpcmesos" / _safe(cluster or "default") / _safe(node)
    return directory if _usable(directory) else None


def limits(
    setting: tuple[str, ...],
    directory: Path | None,
    cluster: str,
    node: str,
    proc: Path = Path("/proc"),
    *,
    with_docker: bool = False,
) -> dict[str, Any]:
    """``limits`` of the shepherd's configuration, as far as this kernel and this user allow: what cannot be set is
    left out, and said once.

    ``setting``: any of memory, cpu, devices, pids=NUMBER, nofile=NUMBER. ``directory``: what ``choose`` has found;
    None: no limits but the last, which needs no cgroup.
    ``with_docker``: Docker makes groups in an attempt's, whose path has to be the same in all hierarchies then.

    Raises:
        ConfigError: the setting is none of these.
    """
    asked = _parse(setting)
    found: dict[str, Any] = {name: asked.pop(name) for name in ("nofile",) if name in asked}
    if directory is None:
        return found
    v2 = _words(directory / "cgroup.controllers")
    root = find_v2() if with_docker else None
    same = f"/{directory.relative_to(root)}" if root and directory.is_relative_to(root) else ""
    v1: dict[str, str] = {}
    for controller, value in asked.items():
        if controller not in v2:
            group = _v1_group(controller, cluster, node, proc, same)
            if group is None and controller == "devices" and (scope := _scopes(directory, cluster, node)):
                found |= {"scopes": scope, "devices": value}
                continue
            if group is None:
                log.warning("%s is not limited here: no such controller that this agent may use", controller)
                continue
            v1[controller] = str(group)
        found[controller] = value
    if "devices" in found:
        _load_unified_memory(proc)
        found["devices"] = gpu_majors(proc)
        if (major := _majors(proc).get("nvidia-caps")) is not None:
            driver = proc / "driver"
            found["caps"] = {
                "major": major,
                "directory": str(driver / "nvidia/capabilities"),
                "minors": str(driver / "nvidia-caps/mig-minors"),
            }
    return {**found, "v1": (_hierarchies(proc, same) if same else {}) | v1}


def _load_unified_memory(proc: Path) -> None:
    """CUDA's module, which else comes with the first CUDA program: too late for the limits of that one's job."""
    names, program = _majors(proc), shutil.which("nvidia-modprobe")
    if program is None or "nvidia-uvm" in names or not any(name.startswith("nvidia") for name in names):
        return
    try:
        subprocess.run([program, "-u", "-c", "0"], capture_output=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("nvidia-modprobe cannot load nvidia-uvm: %s", error)


def enforced(config: dict[str, Any]) -> tuple[str, ...]:
    """What holds jobs on this node, in words, from the shepherd's configuration; empty: their environment alone."""
    groups = ("cgroup",) if config.get("cgroup") else ()
    return (*groups, *(name for name in _LIMITS if config["limits"].get(name)))


def below_tmp(paths: Iterable[Path]) -> bool:
    """Whether a private /tmp would hide one of them."""
    return any(path.is_relative_to(place) for path in paths for place in ("/tmp", "/var/tmp"))  # noqa: S108  (compared, not used)


def gpu_majors(proc: Path = Path("/proc")) -> list[int]:
    """Majors of the NVIDIA driver's character devices; empty: it is not loaded."""
    return sorted({major for name, major in _majors(proc).items() if name.startswith("nvidia")})


def _majors(proc: Path) -> dict[str, int]:
    """Of character devices, by the name of their driver."""
    lines = (proc / "devices").read_text().partition("Block devices:")[0].splitlines()
    words = (line.split() for line in lines)
    return {pair[1]: int(pair[0]) for pair in words if len(pair) == 2 and pair[0].isdigit()}


def _parse(setting: tuple[str, ...]) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    for word in setting:
        name, _, value = word.strip().partition("=")
        numbered = name in _NUMBERED
        if name not in _LIMITS or numbered != value.isdigit() or (value and not numbered):
            raise ConfigError(f"limits: '{word}' is none of memory, cpu, devices, pids=NUMBER, nofile=NUMBER")
        if name == "nofile" and int(value) < _LEAST_DESCRIPTORS:
            raise ConfigError(f"limits: '{word}' is too few; at least {_LEAST_DESCRIPTORS}")
        asked[name] = int(value) if value else True
    return asked


def docker_root(directory: Path | None) -> Path | None:
    """Where Docker takes the paths of v2 groups from; None: attempts have none, or it would not make groups in them.

    runc knows v2 at these two places only (libcontainer/cgroups, IsCgroup2UnifiedMode and IsCgroup2HybridMode).
    """
    root = find_v2() if directory else None
    known = root in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
    return root if known and root and directory and directory.is_relative_to(root) else None


def _hierarchies(proc: Path, path: str) -> dict[str, str]:
    """The same group in every hierarchy of v1, also those without limits of ours: Docker makes groups in all."""
    lines = (line.split(":", 2) for line in (proc / "self/cgroup").read_text().splitlines())
    kinds = [names for _, names, _ in lines if names]
    mounts = [mount for mount in _mounts(proc / "self/mountinfo") if mount[1] == "cgroup"]
    return {
        names: f"{place}{path}"
        for names in kinds
        for place, _, options in mounts
        if set(names.split(",")) <= set(options)
    }


def _v1_group(controller: str, cluster: str, node: str, proc: Path, same: str = "") -> Path | None:
    """A group in the v1 hierarchy of ``controller``, below this process' own; made, if it is not there.

    ``same``: its path, if it is not to be below this process' own.
    """
    mount = next(
        (m for m in _mounts(proc / "self/mountinfo") if m[1] == "cgroup" and controller in m[2]), None
    )
    own = (line.split(":", 2) for line in (proc / "self/cgroup").read_text().splitlines())
    path = next((path for _, names, path in own if controller in names.split(",")), None)
    if mount is None or path is None:
        return None
    group = mount[0] / path.lstrip("/") / "hpcmesos" / _safe(cluster or "default") / _safe(node)
    if same:
        group = mount[0] / same.lstrip("/")
    try:
        group.mkdir(parents=True, exist_ok=True)
        trial = group / "trial"
        trial.mkdir(exist_ok=True)
        trial.rmdir()
    except OSError as error:
        log.info("no group under %s: %s", group, error)
        return None
    return group


def _scopes(directory: Path, cluster: str, node: str) -> dict[str, str] | None:
    """Where systemd holds the devices of attempts: the slice of this node, its directory, the hierarchy; None: not.

    Tried for real: without BPF systemd makes the scope all the same, and says so in its log only.
    """
    root = find_v2()
    if root is None or directory.parts[: len(root.parts)] != root.parts or not _SYSTEMD.is_dir():
        return None
    words = [*scopes.COMMAND, *scopes.policy(()), "sh", "-c", _TRIAL]
    try:
        code = subprocess.run(words, capture_output=True, timeout=_PATIENCE, check=False).returncode
    except (OSError, subprocess.SubprocessError) as error:
        log.info("no scopes of systemd: %s", error)
        return None
    if code != _HELD:
        log.info("systemd does not hold devices here: its trial ended with %d", code)
        return None
    digest = hashlib.sha256(f"{cluster}/{node}".encode()).hexdigest()[:12]
    name = f"hpcmesos-{digest}.slice"
    return {"slice": name, "directory": str(root / "hpcmesos.slice" / name), "root": str(root)}


def remove(directory: Path) -> None:
    """Takes away what was made for this node, as far as it is empty."""
    for level in (directory, directory.parent, directory.parent.parent):
        try:
            level.rmdir()
        except OSError:
            return


def find_v2(mountinfo: Path = Path("/proc/self/mountinfo")) -> Path | None:
    """Where cgroup v2 is mounted writable; None: nowhere."""
    return next((place for place, kind, _ in _mounts(mountinfo) if kind == "cgroup2"), None)


def _mounts(mountinfo: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """Writable mounts: where, of which type, and the file system's own options."""
    for line in mountinfo.read_text().splitlines():
        fields, _, source = line.partition(" - ")
        words, kind = fields.split(), source.split()
        if "rw" in words[5].split(","):
            yield Path(words[4].encode().decode("unicode_escape")), kind[0], kind[-1].split(",")


def _usable(directory: Path) -> bool:
    """Makes the directory and tries in a child what an attempt needs: made, killed, removed."""
    trial = directory / "trial"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        hand_down(str(directory))  # without: accounting is lost, killing is not
        trial.mkdir(exist_ok=True)
        try:
            with (trial / "cgroup.kill").open("r+") as file:  # never made where it is not
                file.write("1")
        finally:
            trial.rmdir()
    except OSError as error:
        log.info("no cgroups under %s: %s", directory, error)
        return False
    return True


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)
