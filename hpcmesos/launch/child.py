"""What a new process does between its birth and its program: identity, output files, directory, exec.

Runs in copies of the shepherd and of the starter, whose memory is small because this imports next to nothing.
"""

from __future__ import annotations

import os
import resource

from hpcmesos.launch import quick

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

NOT_FOUND = 127
NOT_EXECUTABLE = 126
NOT_STARTED = 125
"""Exit code of a child that could not become what it should be (identity, cgroup)."""

_LONGEST = 1000
"""Characters of a reason: with the paths of two files it fits into one message, however much its quoting adds."""
_ENOENT, _ENOEXEC, _ENOTDIR = 2, 8, 20
_NAMES = (
    "SIGPIPE", "SIGXFSZ", "SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGCHLD", "SIGUSR1", "SIGUSR2", "SIGTSTP",
    "SIGTTIN", "SIGTTOU",
)  # fmt: skip
_RESET = tuple(int(getattr(quick.signal, name)) for name in _NAMES)


def run(launch: Any, report: Any) -> NoReturn:
    """Becomes the program of ``launch`` (as `processes.Launch`); what it opened, or why not, goes to ``report``."""
    code = NOT_STARTED
    try:
        for number in _RESET:
            quick.signal.signal(number, quick.signal.SIG_DFL)
        quick.signal.pthread_sigmask(quick.signal.SIG_SETMASK, ())
        os.setsid()
        _join(launch.cgroups)
        os.umask(launch.umask)
        if launch.view:
            _connect_as(launch.owner, launch, report)
            launch.view.enter(launch.owner.uid)
            _become(launch.owner)
        else:
            _become(launch.owner)
            _connect(launch, report)
        _make(launch)
        _enter(launch.directories)
        if not launch.gated or report.recv(1):
            _limit(launch)
            if launch.view:
                launch.view.restrict()
            code = _execute(launch)
    except BaseException as error:  # whatever it is: a copy of our process must not live on
        tell(report, {"pid": os.getpid(), "failure": f"cannot start the job: {error}"[:_LONGEST]})
    finally:
        os._exit(code)


def tell(report: Any, value: dict[str, object], fds: list[int] | None = None) -> None:
    """One message of the child's report."""
    data = [quick.dumps(value).encode("ascii")]
    if fds:
        rights = b"".join(fd.to_bytes(4, "little") for fd in fds)
        report.sendmsg(data, [(quick.socket.SOL_SOCKET, quick.socket.SCM_RIGHTS, rights)])
    else:
        report.sendmsg(data)


def _join(cgroups: tuple[str, ...]) -> None:
    for cgroup in cgroups:
        fd = os.open(cgroup, os.O_WRONLY)
        os.write(fd, b"0")
        os.close(fd)


def _become(owner: Any) -> None:
    if owner.switch:
        os.setgroups(owner.groups)
        os.setgid(owner.gid)
        os.setuid(owner.uid)


def _limit(launch: Any) -> None:
    """Last, for what our parent has open may go beyond it; what shall not stay open is closed at exec."""
    if launch.descriptors:
        resource.setrlimit(resource.RLIMIT_NOFILE, launch.descriptors)


def _make(launch: Any) -> None:
    for directory in launch.made:
        os.mkdir(directory, 0o700)


def _connect_as(owner: Any, launch: Any, report: Any) -> None:
    """Opens the output with the owner's rights, on the host's files; what it shall see instead is entered as root."""
    os.setgroups(owner.groups)
    os.setegid(owner.gid)
    os.seteuid(owner.uid)
    _connect(launch, report)
    os.seteuid(0)
    os.setegid(0)


def _connect(launch: Any, report: Any) -> None:
    if launch.terminal:  # the first that the leader of a new session opens is its controlling terminal
        stdin = stdout = stderr = os.open(launch.terminal, os.O_RDWR)
        tell(report, {"pid": os.getpid()})
    elif launch.stdio:
        stdin, stdout, stderr = launch.stdio
        if launch.gated:  # said by itself: its maker may have died; before what may be slow
            tell(report, {"pid": os.getpid()})
    else:
        stdin = None
        stdout, stderr = _open_outputs(launch, report)
    null = os.open("/dev/null", os.O_RDONLY) if stdin is None else stdin
    for fd, target in ((null, 0), (stdout, 1), (stderr, 2)):
        os.dup2(fd, target)
    for fd, text in zip((1, 2), launch.preamble or ()):  # noqa: B905  (nothing, or both)
        if text:
            os.write(fd, text)
    if launch.inherit:
        name, fd = launch.inherit
        os.set_inheritable(fd, True)
        launch.environ[name] = str(fd)


def _open_outputs(launch: Any, report: Any) -> tuple[int, int]:
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
    tell(
        report,
        {
            "pid": os.getpid(),
            "streams": list(found),
            "undelivered": "; ".join(troubles)[:_LONGEST],
            **message,
        },
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
    raise OSError("no output file can be opened: " + "; ".join(troubles))


def _enter(directories: tuple[str, ...]) -> None:
    for directory in directories:
        try:
            return os.chdir(directory)
        except OSError as error:
            _say(f"cannot enter {directory}: {error.strerror}")
    os.chdir("/")


def _execute(launch: Any) -> int:
    try:
        os.execvpe(launch.program, launch.argv, launch.environ)  # noqa: S606  (an argument list is the point)
    except OSError as error:
        if error.errno == _ENOEXEC:
            return _execute_as_script(launch)
        _say(f"{launch.argv[0]}: {error.strerror}")
        return NOT_FOUND if error.errno in (_ENOENT, _ENOTDIR) else NOT_EXECUTABLE


def _execute_as_script(launch: Any) -> int:
    """A file without ``#!`` is run by sh, as execvp(3) does: from where it was found."""
    found = launch.program
    if "/" not in found:
        places = [os.path.join(directory, found) for directory in os.get_exec_path(launch.environ)]
        found = next(
            (place for place in places if os.access(place, os.X_OK) and os.path.isfile(place)), found
        )
    try:
        os.execve("/bin/sh", ["sh", found, *launch.argv[1:]], launch.environ)  # noqa: S606  (no shell is the point)
    except OSError as error:
        _say(f"/bin/sh: {error.strerror}")
        return NOT_EXECUTABLE


def _say(line: str) -> None:
    os.write(2, f"hpcmesos: {line}\n".encode("utf-8", "surrogateescape"))
