"""Starts processes of attempts and reaps them. A child goes straight to exec."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from hpcmesos.launch import child, programs, quick, starter
from hpcmesos.launch.container import View
from hpcmesos.launch.owners import Owner

_EVERY_SIGNAL = tuple(
    map(int, signal.valid_signals())
)  # the enums of signal.pthread_sigmask cost more than a fork

_SHORT_LIFE = 1.0
"""Seconds; a starter that ends sooner does not work here."""

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
    cgroups: tuple[str, ...]  # their cgroup.procs
    stdio: tuple[int | None, int, int] | None = None  # descriptors; stdin None: /dev/null
    outputs: Outputs | None = None  # instead of ``stdio``: files opened by the child as its owner
    terminal: str | None = None  # instead of both: a pty, which becomes its controlling terminal
    preamble: tuple[bytes, bytes] = (b"", b"")  # what stands in front of its own stdout and stderr
    inherit: tuple[str, int] | None = None  # a variable of its environment, and the descriptor that it names
    view: View | None = None  # of the file system; None: the host's
    made: tuple[str, ...] = ()  # directories that it makes as its owner: links there are his
    gated: bool = False  # ready to begin, it waits for a word on its report
    descriptors: tuple[int, int] | None = (
        None  # soft and hard limit of what it may have open; None: as its maker
    )


class Children:
    """Every child of this process: of our own or the starter's making, or adopted (we are a subreaper); reaped here."""

    def __init__(self, descriptors: tuple[int, int] | None = None) -> None:
        """``descriptors``: soft and hard limit for each child; None: our own."""
        self._descriptors = descriptors or resource.getrlimit(resource.RLIMIT_NOFILE)
        self._watched: dict[int, OnExit] = {}
        self._starter: Starter | None = None
        self._unclaimed: dict[socket.socket, float] = {}
        self._strays: dict[int, tuple[float, int, resource.struct_rusage]] = {}

    def use_starter(self, program: str = programs.STARTER) -> None:
        """From now on `start` has a process of little memory fork, where the kernel can do it.

        ``program``: the compiled one; where it is not, or is not of this machine, ``starter.py`` serves.
        """
        self._starter = _made_starter(program, self._descriptors)

    def start(self, launch: Launch, into: str, on_exit: OnExit) -> tuple[int, socket.socket]:
        """As `spawn`, into the cgroup directory ``into``, but cheaper; a pid of 0 is told by the report, see `claim`.

        Raises:
            OSError: when the fork fails.
        """
        if self._starter:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                sent = self._starter.ask(launch, into, theirs)
            if sent:
                ours.setblocking(False)
                self._unclaimed[ours] = time.monotonic()
                return 0, ours
            ours.close()
        return self.spawn(launch, on_exit)

    def claim(self, report: socket.socket, pid: int, on_exit: OnExit) -> None:
        """``report`` of `start` has said which process it is, or with a ``pid`` of 0 that there is none.

        Calls ``on_exit`` at once if that process was reaped before anybody knew whose it was.
        """
        asked = self._unclaimed.pop(report)
        stray = self._strays.pop(pid, None)
        if not self._unclaimed:
            self._strays.clear()
        if stray and stray[0] >= asked:
            on_exit(*stray[1:])
        elif pid:
            self._watched[pid] = on_exit

    def replace_starter(self, report: socket.socket) -> None:
        """The one that was asked for ``report`` does not answer: what it has not begun yet will not begin."""
        if self._starter and self._starter.since < self._unclaimed[report]:
            self._starter.kill()

    def give_up_starter(self) -> None:
        """It cannot do here what it should."""
        if self._starter:
            self._starter.kill()
            self._starter = None

    def spawn(self, launch: Launch, on_exit: OnExit) -> tuple[int, socket.socket]:
        """Forks. Answers the pid and a socket that tells of the outputs (`read_report`) and ends at exec.

        Raises:
            OSError: when the fork fails.
        """
        launch.descriptors = self._descriptors
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A signal that hits the child before exec would be written into our own wake-up descriptor.
        before = quick.signal.pthread_sigmask(signal.SIG_BLOCK, _EVERY_SIGNAL)
        try:
            pid = os.fork()
            if pid == 0:
                _become(launch, theirs)
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
            elif self._starter and pid == self._starter.pid:
                self._replace(self._starter)
            elif self._unclaimed:
                self._strays[pid] = (time.monotonic(), status, usage)

    def _replace(self, dead: Starter) -> None:
        """Whoever killed it: what it has started is ours all the same. One that cannot live is not made again."""
        lives = time.monotonic() - dead.since > _SHORT_LIFE
        self._starter = None
        if lives or dead.program:
            with suppress(OSError):
                self._starter = _made_starter(dead.program if lives else "", self._descriptors)


def _made_starter(program: str, descriptors: tuple[int, int]) -> Starter:
    """Raises OSError: nor can the interpreter be started."""
    if program and os.access(program, os.X_OK):
        with suppress(OSError):  # of another kind of machine
            return Starter(program, descriptors)
    return Starter("", descriptors)


class Starter:
    """The process that forks for us; see starter.py. Raises OSError when it cannot be made.

    ``program``: compiled of ``starter.c``; empty: starter.py is it. ``descriptors``: soft and hard limit of what it
    may have open, and so each process that it starts.
    """

    def __init__(self, program: str, descriptors: tuple[int, int]) -> None:
        self.program = program
        self.since = time.monotonic()
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.setblocking(False)
        words = [program] if program else [sys.executable, "-IS", programs.START]
        words += ["starter", str(theirs.fileno())]
        onto = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1)]
        try:
            theirs.set_inheritable(True)
            self.pid = os.posix_spawn(words[0], words, {}, file_actions=onto, setsid=True)
        except OSError:
            self._connection.close()
            raise
        finally:
            theirs.close()
        with suppress(ProcessLookupError):  # it is asked for nothing before
            resource.prlimit(self.pid, resource.RLIMIT_NOFILE, descriptors)

    def ask(self, launch: Launch, into: str, report: socket.socket) -> bool:
        """False: this one is too large for it, or it does not listen. Only what says itself which process it is."""
        assert launch.outputs or launch.gated
        fds, places = [report.fileno()], []
        for fd in launch.stdio or ():
            places.append(-1 if fd is None else len(fds))
            fds += [] if fd is None else [fd]
        if launch.inherit:
            fds.append(launch.inherit[1])
        try:
            data = starter.packed(launch, into, places)
            if len(data) > starter.LARGEST:
                return False
            socket.send_fds(self._connection, [data], fds)
        except (OSError, ValueError):
            return False
        return True

    def kill(self) -> None:
        self._connection.close()
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


@dataclass(slots=True)
class Report:
    """What the child opened. ``stderr`` is None when it is joined to ``stdout``, and the other way round.

    ``pid``: the child's, once it has spoken; ``unable``: errno with which the starter could not make it.
    """

    pid: int = 0
    unable: int = 0
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
            # Not recv_fds, which has no use for its flags: another job must not get this one's files.
            data, ancillary, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(8), socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        except OSError:
            return True
        if not data:
            return True
        value = quick.loads(data.decode("utf-8", "surrogateescape"))
        fds = memoryview(ancillary[0][2]).cast("i") if ancillary else ()
        for name, fd in zip(value.get("streams", ()), fds, strict=False):
            setattr(report, name, fd)
        for name in ("pid", "unable", "stdout_path", "stderr_path", "undelivered", "failure"):
            if name in value:
                setattr(report, name, value[name])


def _become(launch: Launch, report: socket.socket) -> NoReturn:
    """In the child of a fork."""
    signal.set_wakeup_fd(-1)
    child.run(launch, report)
