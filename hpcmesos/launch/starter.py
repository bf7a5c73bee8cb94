"""``starter FD``: forks scripts and ranks for the shepherd, cheaply; where ``starter.c`` was not compiled.

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
    from collections.abc import Iterator, Sequence
    from typing import Any

FORMAT = "hpcmesos 1"
"""Begins each request, and changes with what a request is: shepherds outlive the installation that they were started
of, and then have its starter."""
LARGEST = 64 * 1024
"""Bytes of one request."""
MOST_DESCRIPTORS = 5
"""Of one request: its report, the three of stdio, and one that the process keeps."""
_SYS_CLONE3 = 435  # on every architecture
_CLONE_PARENT, _CLONE_INTO_CGROUP = 0x8000, 0x200000000
_PR_SET_PDEATHSIG, _SIGKILL = 1, 9
_EINVAL = 22
_CUT = quick.socket.MSG_TRUNC | quick.socket.MSG_CTRUNC


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


def packed(launch: Any, into: str, stdio: Sequence[int]) -> bytes:
    """A request: words that end with a zero byte; a list is the number of its words, and they.

    ``into``: the cgroup's directory. ``stdio``: places of the three among the descriptors that go along, -1: /dev/null;
    empty: there are outputs instead. The descriptor of ``launch.inherit`` is the last of them.

    Raises:
        ValueError: a zero byte in a word, which no process could be told either.
    """
    owner, outputs = launch.owner, launch.outputs
    words = [
        FORMAT,
        into,
        launch.program,
        str(launch.umask),
        " ".join(map(str, (owner.uid, owner.gid, *owner.groups))) if owner.switch else "",
        " ".join(map(str, stdio)),
        launch.inherit[0] if launch.inherit else "",
        "gated" if launch.gated else "",
        outputs.join if outputs else "",
        "truncate" if outputs and outputs.truncate else "",
    ]
    others = [path for path in launch.cgroups if not path.startswith(into + "/")]
    environment = [f"{name}={value}" for name, value in launch.environ.items()]
    places = (outputs.stdout, outputs.stderr) if outputs else ((), ())
    for values in (launch.argv, environment, launch.directories, others, launch.made, *places):
        words.append(str(len(values)))
        words += values
    data = os.fsencode("\0".join(words)) + b"\0"
    if data.count(b"\0") != len(words):
        raise ValueError("embedded null byte")
    return data


def unpacked(data: bytes, fds: list[int]) -> tuple[str, Order]:
    """The cgroup's directory and the launch of a request, with the descriptors that came along.

    Raises:
        ValueError: a request of another format.
    """
    words = iter(os.fsdecode(data).split("\0"))
    if next(words) != FORMAT:
        raise ValueError("a request of another format")
    into, program, umask, identity, stdio, inherit, gated, join, truncate = (next(words) for _ in range(9))
    argv, environment, directories, cgroups, made, stdout, stderr = (_list(words) for _ in range(7))
    uid, gid, *groups = map(int, identity.split() or (0, 0))
    places = [int(place) for place in stdio.split()]
    return into, Order(
        {
            "program": program,
            "argv": argv,
            "environ": dict(one.split("=", 1) for one in environment),
            "directories": directories,
            "owner": Order({"switch": bool(identity), "uid": uid, "gid": gid, "groups": groups}),
            "umask": int(umask),
            "cgroups": cgroups,
            "stdio": [None if place < 0 else fds[place] for place in places],
            "outputs": join
            and Order({"stdout": stdout, "stderr": stderr, "join": join, "truncate": bool(truncate)}),
            "terminal": None,
            "preamble": None,
            "inherit": (inherit, fds[-1]) if inherit else None,
            "view": None,
            "made": made,
            "gated": bool(gated),
            "descriptors": None,
        }
    )


def _list(words: Iterator[str]) -> list[str]:
    return [next(words) for _ in range(int(next(words)))]


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
        data, ancillary, flags, _ = connection.recvmsg(
            LARGEST, quick.socket.CMSG_SPACE(4 * MOST_DESCRIPTORS), quick.socket.MSG_CMSG_CLOEXEC
        )
        if not data:
            return 0
        received = ancillary[0][2] if ancillary else b""
        fds = [int.from_bytes(received[at : at + 4], "little") for at in range(0, len(received), 4)]
        if fds and not flags & _CUT:  # else the shepherd hears nothing, and forks by itself
            report = quick.socket.socket(fileno=fds[0])
            _start(libc, arguments, data, report, fds, connection)
            report.detach()
        for fd in fds:
            os.close(fd)


def _start(
    libc: Any, arguments: _CloneArgs, data: bytes, report: Any, fds: list[int], connection: Any
) -> None:
    try:
        into, launch = unpacked(data, fds)
        directory = os.open(into, os.O_RDONLY | os.O_DIRECTORY)
    except ValueError:  # of a shepherd that is older or newer
        child.tell(report, {"unable": _EINVAL})
        return
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
