"""Who comes first on a host that a leader and its database share with jobs. Standard library only."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path

_NICE = -5
_SESSION = -10


def come_first() -> None:
    """This process is ahead of jobs on this host, where that is allowed; called before there are threads.

    Whoever asks or submits waits for milliseconds of CPU then, while the jobs' processes take all that there is. The
    session is meant as a whole if our parent began it, a daemon; that of somebody's shell stays as it is.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, min(_NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    if os.getsid(0) == os.getppid():
        _bring_forward(os.getpid())


def bring_server_forward(connection: int, pid: int) -> None:
    """So is the server process ``pid`` at the other end of a connection (a descriptor), if it is of this host.

    A server in another namespace has numbers of its own, so its parent has to be who listens, as the kernel knows it.
    """
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection)) as line:
        if line.family == socket.AF_UNIX:
            told = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            listener: int = struct.unpack("3i", told)[0]
            stat = Path(f"/proc/{pid}/stat").read_bytes()
            if int(stat.rpartition(b")")[2].split()[1]) == listener:
                _bring_forward(pid)


def _bring_forward(pid: int) -> None:
    """The session of ``pid`` gets more of the processor than others, where the kernel shares it among sessions.

    There (autogroup, sched(7)) each job is a session that gets as much as all of ours, and the nice value of a process
    counts within its session alone. Nothing happens where that is not so, or not allowed.
    """
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(_SESSION), encoding="ascii")
