"""The site's submit filter: a program on the submit host that sees every script before the server does.

As Torque's SUBMITFILTER: it runs as the user, with qsub's own arguments, the script on its standard input and the
script to submit on its standard output. A job without a script (interactive, ``-- PROGRAM``) gives it nothing to read,
and its output is not used.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

REJECTED = 255
"""Its exit code, -1, when the job must not be submitted; any other one but 0 means that it has failed."""


class Refused(Exception):
    """The job is not submitted; the one line that says so."""


def present(path: str) -> bool:
    """Whether this host has the filter; one that is there and cannot be run is no reason to go without."""
    return bool(path) and os.path.lexists(path)


def run(path: str, arguments: Sequence[str], script: bytes) -> bytes:
    """The script to submit. What the filter writes to its standard error is the user's to read.

    Raises:
        Refused: it says no, fails, or cannot be started.
    """
    source = os.memfd_create("script")
    reading, writing = os.pipe()
    try:
        _write(source, script)
        os.lseek(source, 0, os.SEEK_SET)
        onto = [(os.POSIX_SPAWN_DUP2, source, 0), (os.POSIX_SPAWN_DUP2, writing, 1)]
        pid = os.posix_spawn(path, [path, *arguments], os.environ, file_actions=onto)
        os.close(writing)
        writing = -1
        parts = []
        while data := os.read(reading, 65536):
            parts.append(data)
    except OSError as error:
        raise Refused(f"submit filter {path}: {error.strerror}") from None
    finally:
        for fd in (source, reading, writing):
            if fd >= 0:
                os.close(fd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == REJECTED:
        raise Refused("Your job has been administratively rejected by the queueing system")
    if code:
        reason = f"exit code {code}" if code > 0 else f"signal {-code}"
        raise Refused(f"submit filter {path} failed ({reason}), the job is not submitted")
    return b"".join(parts)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
