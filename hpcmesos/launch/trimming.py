"""Output that nobody but this node holds is bounded: its middle goes, head and tail stay.

While a job writes, the middle becomes a hole in the file: it takes no room on the disk, and whoever writes at the end
notices nothing. Once the job is over, one line takes the hole's place.
"""

from __future__ import annotations

import ctypes
import fcntl
import os

_libc = ctypes.CDLL(None, use_errno=True)
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # fallocate(2)
_BLOCK = 4096
_PIECE = 1024 * 1024


def gap(size: int, limit: int) -> tuple[int, int] | None:
    """First byte and end of what is left out of a file of ``size`` bytes; None: nothing. ``limit``: 0: all stays."""
    half = limit // 2 // _BLOCK * _BLOCK
    end = (size - half) // _BLOCK * _BLOCK
    return (half, end) if 0 < limit < size and half < end else None


def punch(fd: int, limit: int) -> None:
    """Gives the blocks of the middle back. Raises OSError: this file system cannot."""
    if (hole := gap(os.fstat(fd).st_size, limit)) is None:
        return
    start, end = hole
    offset, length = ctypes.c_int64(start), ctypes.c_int64(end - start)
    if _libc.fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def close_gap(fd: int, limit: int) -> int:
    """Puts a line in place of the middle, once nobody writes any more; answers how many bytes are left out.

    Raises OSError.
    """
    size = os.fstat(fd).st_size
    if (hole := gap(size, limit)) is None:
        return 0
    source, end = hole[1], hole[0]
    # Else every write would go to the end, wherever it is meant to.
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_APPEND)
    line = f"\n=>> hpcmesos: {hole[1] - hole[0]} bytes left out: the job has written more than {limit}\n"
    end += os.pwrite(fd, line.encode(), end)
    while piece := os.pread(fd, min(_PIECE, size - source), source):
        source += len(piece)
        end += os.pwrite(fd, piece, end)
    os.ftruncate(fd, end)
    return hole[1] - hole[0]
