"""Forks processes of attempts and reaps them. A child goes straight to exec."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from hpcmesos.launch import quick
from hpcmesos.launch.owners import Owner

NOT_FOUND = 127
NOT_EXECUTABLE = 126
NOT_STARTED = 125
"""Exit code of a child that could not become what it should be (identity, cgroup)."""

_RESET = (
    signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD,
    signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
)  # fmt: skip

_EVERY_SIGNAL = tuple(
    map(int, signal.valid_signals())
)  # the enums of signal.pthread_sigmask cost more than a fork

OnExit = Callable[[int, resource.struct_rusage], None]


@dataclass(slots=True)
class Outputs:
    """Where stdout and stderr go: for each, places in order of preference. ``join``: "n", "oe" or "eo"."""

    stdout: list[str]
    stderr: list[str]
    join: str
    truncate: bool


@dataclass(slots=True)
class Launch:
    """One process to start. ``program`` without a slash is searched in the new environment's PATH."""

    program: str
    argv: list[str]
    environ: dict[str, str]
    directories: tuple[str, ...]  # the first that can be entered is the working directory
    owner: Owner
    umask: int
    cgroup: str | None  # its cgroup.procs
    stdio: tuple[int | None, int, int] | None = None  # descriptors; stdin None: /dev/null
    outputs: Outputs | None = None  # instead of ``stdio``: files opened by the child as its owner
    inherit: int | None = None  # a descriptor that it keeps, by its number


class Children:
    """Every child of this process: started here, adopted (the shepherd is a subreaper), reaped here."""

    def __init__(self) -> None:
        self._watched: dict[int, OnExit] = {}

    def spawn(self, launch: Launch, on_exit: OnExit) -> tuple[int, socket.socket]:
        """Forks. Answers the pid and a socket that tells of the outputs (`read_report`) and ends at exec.

        Raises:
            OSError: when the fork fails.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A signal that hits the child before exec would be written into our own wake-up descriptor.
        before = quick.signal.pthread_sigmask(signal.SIG_BLOCK, _EVERY_SIGNAL)
        try:
            pid = os.fork()
            if pid == 0:
                _child(launch, theirs)
        except OSError:
            ours.close()
            raise
        finally:
            quick.signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        ours.setblocking(False)
        self._watched[pid] = on_exit
        return pid, ours

    def reap(self) -> None:
        """Collects every child that has ended; tells whoever started it."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if on_exit := self._watched.pop(pid, None):
                on_exit(status, usage)


@dataclass(slots=True)
class Report:
    """What the child opened. ``stderr`` is None when it is joined to ``stdout``, and the other way round."""

    stdout: int | None = None
    stderr: int | None = None
    stdout_path: str = ""
    stderr_path: str = ""
    undelivered: str = ""
    failure: str = ""


def read_report(connection: socket.socket, report: Report) -> bool:
    """Reads what is there into ``report``; True at the end (the child has executed its program, or is gone)."""
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(connection, 65536, 2)
        except BlockingIOError:
            return False
        except OSError:
            return True
        if not data:
            return True
        value = quick.loads(data.decode("utf-8", "surrogateescape"))
        for name, fd in zip(value.get("streams", ()), fds, strict=False):
            setattr(report, name, fd)
        for name in ("stdout_path", "stderr_path", "undelivered", "failure"):
            if name in value:
                setattr(report, name, value[name])


# --- in the child ---------------------------------------------------------------------------------------------------


def _child(launch: Launch, report: socket.socket) -> NoReturn:
    code = NOT_STARTED
    try:
        signal.set_wakeup_fd(-1)
        for number in _RESET:
            quick.signal.signal(number, quick.signal.SIG_DFL)
        quick.signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setsid()
        _become(launch)
        _connect(launch, report)
        _enter(launch.directories)
        code = _execute(launch)
    except BaseException as error:  # whatever it is: a copy of the shepherd must not live on
        _tell(report, {"failure": f"cannot start the job: {error}"})
    finally:
        os._exit(code)


def _become(launch: Launch) -> None:
    if launch.cgroup:
        fd = os.open(launch.cgroup, os.O_WRONLY)
        os.write(fd, b"0")
        os.close(fd)
    if launch.owner.switch:
        os.setgroups(launch.owner.groups)
        os.setgid(launch.owner.gid)
        os.setuid(launch.owner.uid)
    os.umask(launch.umask)


def _connect(launch: Launch, report: socket.socket) -> None:
    if launch.stdio:
        stdin, stdout, stderr = launch.stdio
    else:
        stdin = None
        stdout, stderr = _open_outputs(launch, report)
    null = os.open("/dev/null", os.O_RDONLY) if stdin is None else stdin
    for fd, target in ((null, 0), (stdout, 1), (stderr, 2)):
        os.dup2(fd, target)
    if launch.inherit is not None:
        os.set_inheritable(launch.inherit, True)


def _open_outputs(launch: Launch, report: socket.socket) -> tuple[int, int]:
    assert launch.outputs is not None
    outputs = launch.outputs
    troubles: list[str] = []
    found: dict[str, tuple[int, str]] = {}
    for name, places in (("stdout", outputs.stdout), ("stderr", outputs.stderr)):
        if outputs.join == ("eo" if name == "stdout" else "oe"):
            continue
        fd, path, trouble = _open_first(places, outputs.truncate)
        found[name] = (fd, path)
        troubles += trouble
    message = {f"{name}_path": path for name, (_, path) in found.items()}
    _tell(
        report,
        {"streams": list(found), "undelivered": "; ".join(troubles), **message},
        [fd for fd, _ in found.values()],
    )
    one = next(iter(found.values()))[0]
    return found.get("stdout", (one, ""))[0], found.get("stderr", (one, ""))[0]


def _open_first(places: list[str], truncate: bool) -> tuple[int, str, list[str]]:
    troubles: list[str] = []
    flags = os.O_CREAT | os.O_APPEND | os.O_RDWR | os.O_NOCTTY | (os.O_TRUNC if truncate else 0)
    for path in places:
        try:
            return os.open(path, flags, 0o666), path, troubles
        except OSError as error:
            troubles.append(f"{path}: {error.strerror}")
    raise OSError(errno.EIO, "no output file can be opened: " + "; ".join(troubles))


def _enter(directories: tuple[str, ...]) -> None:
    for directory in directories:
        try:
            return os.chdir(directory)
        except OSError as error:
            _say(f"cannot enter {directory}: {error.strerror}")
    os.chdir("/")


def _execute(launch: Launch) -> int:
    try:
        os.execvpe(launch.program, launch.argv, launch.environ)  # noqa: S606  (an argument list is the point)
    except OSError as error:
        if error.errno == errno.ENOEXEC:
            return _execute_as_script(launch)
        _say(f"{launch.argv[0]}: {error.strerror}")
        return NOT_FOUND if error.errno in (errno.ENOENT, errno.ENOTDIR) else NOT_EXECUTABLE


def _execute_as_script(launch: Launch) -> int:
    """A file without ``#!`` is run by sh, as execvp(3) does."""
    try:
        os.execve("/bin/sh", ["sh", launch.program, *launch.argv[1:]], launch.environ)  # noqa: S606  (no shell is the point)
    except OSError as error:
        _say(f"/bin/sh: {error.strerror}")
        return NOT_EXECUTABLE


def _say(line: str) -> None:
    os.write(2, f"hpcmesos: {line}\n".encode("utf-8", "surrogateescape"))


def _tell(report: socket.socket, value: dict[str, object], fds: list[int] | None = None) -> None:
    socket.send_fds(report, [quick.dumps(value).encode("ascii")], fds or [])
