"""Directories and files that the owner of an attempt may mount into its containers, held where only root comes.

Docker follows a path as root, and later than it was looked at: who may change a part of it could put a link there
that leads anywhere. So a path is opened as its owner, judged by what was opened, and bound below a directory of ours;
Docker is told that place. Kubernetes does the same with subPath, since CVE-2017-1002101.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress

PLACE = "/run/hpcmesos-mounts"
"""In none of our directories: who removes one of those with all that is in it must not come upon users' files."""
MOST = 256
"""Of one attempt, in its containers that are there."""
_MS_BIND, _MS_PRIVATE = 4096, 1 << 18
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_libc = ctypes.CDLL(None, use_errno=True)


class Pins:
    """Those of one attempt, in ``directory``; they are the kernel's, and outlive whoever made them."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._known: dict[tuple[str, int, int], str] = {}

    def hold(self, fd: int) -> str:
        """Where Docker finds what is open as ``fd``, though its path may come to mean something else.

        Raises:
            OSError: it is no directory or plain file, there are too many, or the kernel refuses.
        """
        status = os.fstat(fd)
        key = (real_path(fd), status.st_dev, status.st_ino)
        if key not in self._known:
            self._known[key] = self._bind(fd, status.st_mode)
        return self._known[key]

    def trim(self, used: Collection[str]) -> None:
        """Of many, lets those go that are not among ``used``: the places that containers mount, or will."""
        with suppress(FileNotFoundError):
            places = [os.path.join(self._directory, name) for name in os.listdir(self._directory)]
            if len(places) < MOST // 2:
                return
            for place in set(places).difference(used):
                _let_go(place)
            self._known = {key: place for key, place in self._known.items() if place in used}

    def _bind(self, fd: int, mode: int) -> str:
        os.makedirs(self._directory, 0o700, exist_ok=True)
        count = max((int(name) for name in os.listdir(self._directory)), default=0) + 1
        if count > MOST:
            raise OSError(errno.ENOSPC, f"a job mounts at most {MOST} directories and files")
        place = os.path.join(self._directory, str(count))
        if stat.S_ISDIR(mode):
            os.mkdir(place, 0o700)
        elif stat.S_ISREG(mode):
            os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        else:
            raise OSError(errno.EINVAL, "it is no directory and no plain file")
        try:
            # Alone, without what is mounted below it: else who mounts a directory that our places are in, again and
            # again, would double the mounts of the node each time.
            _check(_libc.mount(b"/proc/self/fd/%d" % fd, place.encode(), None, _MS_BIND, None))
            _check(_libc.mount(None, place.encode(), None, _MS_PRIVATE, None))
        except OSError:
            _let_go(place)
            raise
        return place


def open_as(uid: int, gid: int, groups: Sequence[int], path: str) -> int:
    """Opens a path, to hold it and no more, with another's rights; for a process of one thread, run by root.

    Raises:
        OSError: he may not reach it, or it is not there.
    """
    with _rights_of(uid, gid, groups):
        return os.open(path, os.O_PATH | os.O_CLOEXEC)


@contextmanager
def _rights_of(uid: int, gid: int, groups: Sequence[int]) -> Iterator[None]:
    before = os.getgroups(), os.getegid(), os.geteuid()
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(before[2])
        os.setegid(before[1])
        os.setgroups(before[0])


def real_path(fd: int) -> str:
    """Where what is open lies now."""
    return os.readlink(f"/proc/self/fd/{fd}")


def directory_of(state: str, attempt: str = "") -> str:
    """Of an attempt of the shepherd with this state directory; without one, of all of them."""
    names = [hashlib.sha256(name.encode()).hexdigest()[:16] for name in (state, attempt) if name]
    return os.path.join(PLACE, *names)


def release_all(state: str) -> None:
    """Of every attempt: none of them lives."""
    directory = directory_of(state)
    with suppress(OSError):
        for name in os.listdir(directory):
            release(os.path.join(directory, name))
        os.rmdir(directory)


def release(directory: str) -> None:
    """Takes away what is held there. Nothing is removed but mounts and their empty places: what was mounted stays."""
    with suppress(OSError):
        for name in os.listdir(directory):
            _let_go(os.path.join(directory, name))
        os.rmdir(directory)


def _let_go(place: str) -> None:
    """The kernel removes no place on which something is mounted still."""
    _libc.umount2(place.encode(), _MNT_DETACH | _UMOUNT_NOFOLLOW)  # fails where nothing is mounted
    with suppress(OSError):
        os.rmdir(place) if os.path.isdir(place) else os.unlink(place)


def _check(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
