"""Where the cgroups of attempts are made: a directory of the v2 hierarchy, also where it is mounted beside v1."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from hpcmesos.errors import ConfigError

log = logging.getLogger(__name__)

_CONTROLLERS = ("cpu", "memory", "pids")


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


def remove(directory: Path) -> None:
    """Takes away what ``choose`` made for "auto", as far as it is empty."""
    for level in (directory, directory.parent, directory.parent.parent):
        try:
            level.rmdir()
        except OSError:
            return


def find_v2(mountinfo: Path = Path("/proc/self/mountinfo")) -> Path | None:
    """Where cgroup v2 is mounted writable; None: nowhere."""
    for line in mountinfo.read_text().splitlines():
        fields, _, source = line.partition(" - ")
        words = fields.split()
        if source.split()[0] == "cgroup2" and "rw" in words[5].split(","):
            return Path(words[4].encode().decode("unicode_escape"))
    return None


def _usable(directory: Path) -> bool:
    """Makes the directory and tries in a child what an attempt needs: made, killed, removed."""
    trial = directory / "trial"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _delegate(directory)
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


def _delegate(directory: Path) -> None:
    """Hands the controllers down to the children, as far as the levels above allow it."""
    for level in (directory.parent.parent.parent, directory.parent.parent, directory.parent, directory):
        try:
            present = (level / "cgroup.controllers").read_text().split()
            wanted = " ".join(f"+{c}" for c in _CONTROLLERS if c in present)
            if wanted:
                (level / "cgroup.subtree_control").write_text(wanted)
        except OSError:
            continue  # accounting is lost, killing is not


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)
