"""``deliver write PATH NAME TEMPORARY APPEND``, ``move TEMPORARY TARGET``, ``moved NOTE``: a gateway's hands.

Runs as the owner of the output, with his umask. ``write`` puts standard input into a new file beside its place, after
what is there if APPEND is 1, and prints a note of it as JSON; ``move`` gives it its name; ``moved`` prints "yes" once
it has had it. Nothing follows a link: one that stands at the place is replaced.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from contextlib import suppress
from typing import Any

_CHUNK = 1 << 20


def main(argv: list[str]) -> int:
    """0, or 1 after the reason in one line."""
    try:
        if argv[0] == "write":
            sys.stdout.write(json.dumps(write(argv[1], argv[2], argv[3], argv[4] == "1")))
        elif argv[0] == "move":
            os.rename(argv[1], argv[2])
        else:
            sys.stdout.write("yes" if moved(json.loads(argv[1])) else "no")
    except OSError as error:
        sys.stderr.write(f"{error.strerror}\n")
        return 1
    return 0


def write(path: str, name: str, temporary: str, append: bool) -> dict[str, str | int]:
    """``name``: of the file when ``path`` is a directory; ``temporary``: of the new file, until it is moved.

    Returns both paths, and the inodes of the new file and of its directory.

    Raises:
        OSError: it cannot be written; nothing is left.
    """
    target = os.path.join(path, name) if os.path.isdir(path) else path
    new = os.path.join(os.path.dirname(target), temporary)
    _remove(new)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(new, flags, 0o666)
    try:
        if append:
            _copy_old(target, fd)
        _copy(0, fd)
        os.fsync(fd)
        inode, directory = os.fstat(fd).st_ino, os.stat(os.path.dirname(target)).st_ino
    except OSError:
        _remove(new)
        raise
    finally:
        os.close(fd)
    return {"temporary": new, "target": target, "inode": inode, "directory": directory}


def moved(note: dict[str, Any]) -> bool:
    """Whether the new file has had its name, be it that its owner has taken it away by now.

    Inodes tell, not devices: those of a network file system change when it is mounted again.

    Raises:
        OSError: the directory cannot be seen now, or is another one, as where its file system is not mounted.
    """
    directory = os.path.dirname(note["target"])
    if os.stat(directory).st_ino != note["directory"]:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), directory)
    if _inode(note["temporary"]) is not None:
        return False
    return _inode(note["target"]) in (None, note["inode"])


def _inode(path: str) -> int | None:
    """None: there is nothing. Raises OSError: nobody can tell."""
    try:
        return os.lstat(path).st_ino
    except FileNotFoundError:
        return None


def _copy_old(target: str, to: int) -> None:
    try:
        old = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return  # nothing that the job has written there
    try:
        if stat.S_ISREG(os.fstat(old).st_mode):
            _copy(old, to)
    finally:
        os.close(old)


def _copy(source: int, to: int) -> None:
    while data := os.read(source, _CHUNK):
        view = memoryview(data)
        while view:
            view = view[os.write(to, view) :]


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
