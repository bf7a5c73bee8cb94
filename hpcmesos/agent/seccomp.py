"""Reads the seccomp filters of another process, as the kernel has them, so that processes of ours can put them on.

The way of CRIU: ptrace(2), PTRACE_SECCOMP_GET_FILTER. The kernel asks for CAP_SYS_ADMIN, for CONFIG_CHECKPOINT_RESTORE
(distributions have it), and for a caller that has no filter itself.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from contextlib import suppress
from pathlib import Path

_SEIZE, _INTERRUPT, _DETACH, _GET_FILTER = 0x4206, 0x4207, 17, 0x420C
_WALL = 0x40000000  # threads that clone(2) made otherwise than fork(2) does, too
_INSTRUCTION = 8
"""Bytes of a struct sock_filter."""
_FILTERING = "2"
_PATIENCE = 10.0
_PAUSE = 0.002
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def filters(pid: int) -> list[bytes]:
    """Those of a process that stops itself, the oldest first, each an array of struct sock_filter; it stays stopped.

    Raises:
        OSError: it has some and they cannot be read, or it is gone.
    """
    if _when_stopped(pid)["Seccomp"] != _FILTERING:
        return []
    _ptrace(_SEIZE, pid)
    try:
        _ptrace(_INTERRUPT, pid)
        os.waitpid(pid, _WALL)
        return _all_of(pid)
    finally:
        with suppress(OSError):
            _ptrace(_DETACH, pid)


def _all_of(pid: int) -> list[bytes]:
    found: list[bytes] = []
    while True:
        try:
            length = _ptrace(_GET_FILTER, pid, len(found))
        except OSError as error:
            if error.errno == errno.ENOENT:  # no more
                return found
            raise
        buffer = ctypes.create_string_buffer(length * _INSTRUCTION)
        _ptrace(_GET_FILTER, pid, len(found), buffer)
        found.append(buffer.raw)


def _when_stopped(pid: int) -> dict[str, str]:
    """Its status in /proc once it has stopped: what started it has set up everything by then."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        status = {name: value.strip() for name, _, value in lines}
        if status["State"].startswith("T"):
            return status
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, f"process {pid} does not stop itself")
        time.sleep(_PAUSE)


def _ptrace(request: int, pid: int, address: int = 0, data: ctypes.Array[ctypes.c_char] | None = None) -> int:
    ctypes.set_errno(0)
    answer = int(_libc.ptrace(request, pid, address, ctypes.addressof(data) if data else None))
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return answer
