"""Who a job runs as: names resolved on this node, and what this shepherd may become."""

from __future__ import annotations

import os
import pwd
import time
from dataclasses import dataclass

from hpcmesos.launch.settings import Refusal

_KEEP = 60.0
"""Seconds that a resolved name is believed: a directory service must not be asked for each of 10,000 elements."""


@dataclass(frozen=True, slots=True)
class Owner:
    """``switch``: the shepherd is root and the child has to take this identity."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str
    switch: bool

    def environment(self) -> dict[str, str]:
        """What a login would set."""
        path = "/usr/local/bin:/usr/bin:/bin"
        if self.uid == 0:
            path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"HOME": self.home, "USER": self.name, "LOGNAME": self.name, "SHELL": self.shell, "PATH": path}


class Owners:
    """Resolves and remembers."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, Owner]] = {}

    def resolve(self, name: str) -> Owner:
        """The owner called ``name`` on this node.

        Raises:
            Refusal: nobody has that name here, it is one of root's, or this shepherd is not root and not that user.
        """
        now = time.monotonic()
        known = self._known.get(name)
        if known and now - known[0] < _KEEP:
            return known[1]
        owner = _resolve(name)
        self._known[name] = (now, owner)
        return owner


def _check_root(name: str, uid: int) -> None:
    """The masters ask who is called root, and not whether a node has another name for him. Raises Refusal."""
    if uid == 0 and name != "root":
        raise Refusal(f"'{name}' is root on this node, by another name")


def _resolve(name: str) -> Owner:
    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError) as error:
        raise Refusal(f"no user '{name}' on this node") from error
    _check_root(name, entry.pw_uid)
    root = os.geteuid() == 0
    if not root and entry.pw_uid != os.geteuid():
        raise Refusal(f"the agent does not run as root and cannot start jobs of '{name}'")
    groups = os.getgrouplist(name, entry.pw_gid) if root else os.getgroups()
    shell = entry.pw_shell or "/bin/sh"
    return Owner(name, entry.pw_uid, entry.pw_gid, tuple(groups), entry.pw_dir, shell, root)
