"""The API's unix socket on a host: one program at a time serves there, a master or a gateway."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from hpcmesos import pidfile
from hpcmesos.errors import StateError


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keeps other masters and gateways off this socket, also before anybody listens there.

    Raises:
        StateError: one has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    lock = path.with_name(f"{path.name}.lock")
    descriptor = pidfile.hold(str(lock))
    if descriptor is None:
        raise StateError(f"another master listens on {path}, or a gateway")
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def bind(path: Path) -> socket.socket:
    """The socket for everybody on this host, not listening yet; a stale one is replaced only when nobody listens there.

    Raises:
        StateError: somebody does, it is no socket, or the path is too long or not ours.
    """
    if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
        raise StateError(f"{path} is in the way: it is no socket")
    if path.exists():
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise StateError(f"another program listens on {path}")
        path.unlink()
    unix = socket.socket(socket.AF_UNIX)
    try:
        unix.bind(str(path))
    except OSError as error:
        unix.close()
        raise StateError(f"cannot listen at {path}: {error.strerror or error}") from error
    path.chmod(0o666)
    return unix
