"""``starter FD``: forks the scripts and the ranks of jobs for the shepherd, cheaply.

A fork copies the page tables of the whole process, so the shepherd, with asyncio and TLS in its memory, is a costly
one to fork. This process holds next to nothing, and lets the kernel make each child in its cgroup (clone3, Linux 5.7)
and as a child of the *shepherd* (CLONE_PARENT), who alone waits for it: the starter may die without any harm to what
it has started, for each child says itself which process it is: a script with the outputs that it opened, a rank
before it waits at its gate. It ends with the shepherd.
"""

from __future__ import annotations

import ctypes
import gc
import os

from hpcmesos.launch import child, quick

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LARGEST = 64 * 1024
"""Bytes of one request."""
MOST_DESCRIPTORS = 5
"""Of one request: its report, the three of stdio, and one that the process keeps."""
_SYS_CLONE3 = 435  # on every architecture
_CLONE_PARENT, _CLONE_INTO_CGROUP = 0x8000, 0x200000000
_PR_SET_PDEATHSIG, _SIGKILL = 1, 9


class _CloneArgs(ctypes.Structure):
    """``struct clone_args`` of linux/sched.h."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls", "set_tid",
            "set_tid_size", "cgroup",
        )
    ]  # fmt: skip


class Order:
    """A `processes.Launch`, as much of it as the child looks at, or one of its parts."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)


def main(argv: list[str]) -> int:
    """Serves until the shepherd closes its end."""
    connection = quick.socket.socket(fileno=int(argv[0]))
    # PyDLL keeps the interpreter's lock: the child's only thread goes on holding it.
    libc = ctypes.PyDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    arguments = _CloneArgs(flags=_CLONE_PARENT | _CLONE_INTO_CGROUP)
    gc.disable()
    gc.freeze()
    while True:
        data, ancillary, _, _ = connection.recvmsg(
            LARGEST, quick.socket.CMSG_SPACE(4 * MOST_DESCRIPTORS), quick.socket.MSG_CMSG_CLOEXEC
        )
        if not data:
            return 0
        received = ancillary[0][2]
        fds = [int.from_bytes(received[at : at + 4], "little") for at in range(0, len(received), 4)]
        report = quick.socket.socket(fileno=fds[0])
        _start(libc, arguments, data, report, fds, connection)
        report.close()
        for fd in fds[1:]:
            os.close(fd)


def _start(
    libc: Any, arguments: _CloneArgs, data: bytes, report: Any, fds: list[int], connection: Any
) -> None:
    values = quick.loads(data.decode("ascii"))
    values["owner"] = Order(values["owner"])
    if values["outputs"]:
        values["outputs"] = Order(values["outputs"])
    if values["stdio"]:
        values["stdio"] = [None if place is None else fds[place] for place in values["stdio"]]
    if values["inherit"]:
        name, place = values["inherit"]
        values["inherit"] = name, fds[place]
    launch = Order(values)
    try:
        directory = os.open(values.pop("into"), os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:  # the attempt has ended meanwhile
        child.tell(report, {"unable": error.errno})
        return
    arguments.cgroup = directory
    pid = libc.syscall(_SYS_CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments))
    if pid == 0:
        connection.close()  # what waits there would else outlive us, or be read by the program
        child.run(launch, report)
    os.close(directory)
    if pid < 0:
        child.tell(report, {"unable": ctypes.get_errno()})
