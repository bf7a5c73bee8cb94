"""The directory of an attempt and the commands that its script finds; see docs/architecture.md, "Shepherd: files"."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shlex
import stat
from contextlib import suppress
from itertools import islice
from typing import Any

from hpcmesos.gang import mpi
from hpcmesos.launch import display, programs
from hpcmesos.launch.owners import Owner
from hpcmesos.launch.processes import Children, Launch
from hpcmesos.launch.settings import Config, Refusal

_COMMANDS = {
    "mpiexec": ["mpiexec", "mpiexec"],  # the front, and the name that it looks for
    "mpirun": ["mpiexec", "mpirun"],
    "pbs_tmrsh": ["remote_shell"],
    "pbsdsh": ["pbsdsh"],
    "hpcmesos": ["command"],
}
_RING_RANK = ["-I", "-m", "hpcmesos.launch.ring_rank"]  # with the installed packages, for mpi4py

RING_FILES = ("ring.txt", "ring.json")
"""The table and the report of the ring, in the job's own directory."""
_SCRIPT = "script"
_OURS = frozenset(
    {
        *(_SCRIPT, "enter", "nodes", "gpus", "hosts", "ompi_hosts", "tasks", "stdout", "stderr"),
        *(*RING_FILES, display.FILE),
    }
)
_ALL = _OURS | {"tmp"}
_PROGRAM = (b"#!", b"\x7fELF")
"""What the kernel runs by itself; any other script is run by the shell of its owner, as in Torque and PBS."""
_FIRST_LINE = re.compile(rb"#![ \t]*([^ \t\n\0]+)")
_LOGIN_SHELL = re.compile(rb"#![ \t]*(/\S*/(?:da|k|z)?sh)[ \t]+(--login|-l)[ \t]*\n")
_LOGIN_BASH = re.compile(rb"#![ \t]*/\S*/bash[ \t]+(--login|-[a-zA-Z]*l[a-zA-Z]*)[ \t]*\n")
_AFTER_LOGIN = (
    "after_login.bash",
    """\
# Bash reads it after its login files, as BASH_ENV: our commands in front again, and what the user has as BASH_ENV.
PATH=$HPCMESOS_FRONT:$PATH
BASH_ENV=$HPCMESOS_BASH_ENV
unset HPCMESOS_FRONT HPCMESOS_BASH_ENV
if [ -z "$BASH_ENV" ]; then
    unset BASH_ENV
else # as bash has it: ~, variables and commands count in the name, PATH does not
    eval "HPCMESOS_BASH_ENV=\\"$BASH_ENV\\""
    case $HPCMESOS_BASH_ENV in
        "~/"*) HPCMESOS_BASH_ENV=$HOME/${HPCMESOS_BASH_ENV#*/} ;;
        */*) ;;
        *) HPCMESOS_BASH_ENV=./$HPCMESOS_BASH_ENV ;;
    esac
    if [ -r "$HPCMESOS_BASH_ENV" ]; then . "$HPCMESOS_BASH_ENV"; fi
    unset HPCMESOS_BASH_ENV
fi
""",
)
_PRIVATE = stat.S_IFDIR | 0o700
_MOST_SPARES = 64
_LARGEST_KEPT = 64 * 1024
"""Bytes of a script that is compared rather than written once more."""


def attempt_directory(config: Config, attempt: str) -> str:
    """Where the things of an attempt lie. Raises Refusal for a name that is no plain file name."""
    if not attempt or "/" in attempt or attempt.startswith("."):
        raise Refusal(f"illegally formed attempt identifier: {attempt!r}")
    return os.path.join(config.state, "attempts", attempt)


def job_paths(config: Config, spec: dict[str, Any]) -> mpi.JobPaths:
    """Where an attempt's things lie. The host files of all that have one host, and as many slots, are the same ones."""
    directory = attempt_directory(config, spec["attempt"])
    hosts = directory
    if len(spec["members"]) == 1:
        content = mpi.nodefile(spec) + mpi.hostfile_hydra(spec)
        hosts = os.path.join(config.hosts, hashlib.sha256(content.encode()).hexdigest()[:16])
    return mpi.JobPaths(
        directory=directory,
        bin=config.bin,
        remote_shell=os.path.join(config.bin, "pbs_tmrsh"),
        nodefile=os.path.join(hosts, "nodes"),
        gpufile=os.path.join(directory, "gpus"),
        hostfile=os.path.join(hosts, "hosts"),
        ompi_hostfile=os.path.join(hosts, "ompi_hosts"),
        tasks=os.path.join(directory, "tasks"),
        tmpdir=os.path.join(directory, "tmp"),
        secrets=os.path.join(config.sockets, "secrets", spec["attempt"]),
    )


def write_commands(config: Config) -> None:
    """``STATE/bin``: written anew at each start, for the interpreter or the package may have moved."""
    _write_commands(config.bin, config.python)
    if config.containers:
        _write_commands(config.container_bin, "python3")


def _write_commands(directory: str, python: str) -> None:
    os.makedirs(directory, 0o755, exist_ok=True)
    commands = {name: ["-IS", programs.START, *words] for name, words in _COMMANDS.items()}
    for name, words in (*commands.items(), (programs.RING_RANK, _RING_RANK)):
        path = os.path.join(directory, name)
        command = shlex.join([python, *words])
        with open(path + ".new", "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\nexec {command} "$@"\n')
        os.chmod(file.name, 0o755)  # noqa: S103  (jobs of every user run it)
        os.replace(file.name, path)
    name, text = _AFTER_LOGIN
    path = os.path.join(directory, name)
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(file.name, path)


class Directories:
    """``STATE/attempts``. Empty ones are used again for jobs of the same owner: to make and to remove costs more. So is
    the script in them, for the elements of an array have the same.
    """

    def __init__(self, config: Config, children: Children) -> None:
        self._attempts = os.path.join(config.state, "attempts")
        self._hosts = config.hosts
        self._children = children
        self._spares: dict[int, list[str]] = {}
        self._kept = 0  # ever; names of spares are never used twice
        self._shared: set[str] = set()  # directories of host files that this shepherd has written

    def clean(self) -> None:
        """Removes what an earlier shepherd kept. Attempts' own names begin with no dot."""
        for directory in (self._attempts, self._hosts):
            os.makedirs(directory, 0o711, exist_ok=True)
        for name in os.listdir(self._attempts):
            if name.startswith("."):
                self._remove_by_process(os.path.join(self._attempts, name))

    def names(self) -> list[str]:
        """The attempts that have a directory."""
        return [name for name in os.listdir(self._attempts) if not name.startswith(".")]

    def make(
        self, spec: dict[str, Any], paths: mpi.JobPaths, owner: Owner, tasks: dict[str, Any] | None = None
    ) -> None:
        """Makes the directory with everything in it, and only then gives it to the owner, who could set links in it.

        ``tasks``: what those of a framework are told, if there is one.

        Raises:
            OSError: it cannot be written.
        """
        if os.path.lexists(paths.directory):
            self._set_aside(paths.directory)
        found = self._take_spare(paths.directory, owner)
        if not found:
            os.mkdir(paths.directory, 0o700)
        own = _own_files(spec, paths, owner, tasks)
        if (hosts := os.path.dirname(paths.nodefile)) == paths.directory:
            own |= _host_files(spec, paths)
        elif hosts not in self._shared:
            self._share(hosts, _host_files(spec, paths))
        script = os.path.join(paths.directory, _SCRIPT)
        if _SCRIPT in found:
            if script in own and _holds(script, *own[script], owner):
                del own[script]
            else:
                os.unlink(script)
        for path, (content, mode) in own.items():
            _write(path, content, mode, owner)
        if found:
            return
        os.mkdir(paths.tmpdir, 0o700)
        if owner.switch:
            os.chown(paths.tmpdir, owner.uid, owner.gid)
            os.chown(paths.directory, owner.uid, owner.gid)

    def remove(self, paths: mpi.JobPaths | str, owner: Owner | None = None) -> None:
        """A small one at once, a large one by a process, for that may take minutes."""
        directory = paths if isinstance(paths, str) else paths.directory
        with suppress(OSError):
            found = set(_some_of(directory, len(_ALL) + 1))
            for name in (_OURS & found) - {_SCRIPT}:
                os.unlink(os.path.join(directory, name))
            script = os.path.join(directory, _SCRIPT)
            if _SCRIPT in found and not _worth_keeping(script):
                os.unlink(script)
                found.remove(_SCRIPT)
            if "tmp" in found:
                temporary = os.path.join(directory, "tmp")
                empty = not _some_of(temporary, 1)
                if owner and found <= _ALL and empty and self._keep(directory, owner):
                    return
                os.rmdir(temporary)
            if _SCRIPT in found:
                os.unlink(script)
            os.rmdir(directory)
        if os.path.lexists(directory):
            self._remove_by_process(directory)

    def _keep(self, directory: str, owner: Owner) -> bool:
        spares = self._spares.setdefault(owner.uid, [])
        if sum(map(len, self._spares.values())) >= _MOST_SPARES:
            return False
        self._kept += 1
        spare = os.path.join(self._attempts, f".spare.{self._kept}")
        os.rename(directory, spare)
        spares.append(spare)
        return True

    def _take_spare(self, directory: str, owner: Owner) -> set[str]:
        """A directory of this owner, as if it had just been made; what somebody has changed is removed.

        Answers what is in it: tmp, perhaps a script; empty: there is no directory.
        """
        spares = self._spares.get(owner.uid)
        if not spares:
            return set()
        spare = spares.pop()
        os.rename(spare, directory)
        if found := _fresh(directory, owner):
            return found
        self._set_aside(directory)
        return set()

    def _set_aside(self, directory: str) -> None:
        """Somebody may have filled it: its name is free at once, and a process removes it."""
        self._kept += 1
        aside = os.path.join(self._attempts, f".gone.{os.getpid()}.{self._kept}")
        os.rename(directory, aside)
        self._remove_by_process(aside)

    def _share(self, directory: str, files: dict[str, tuple[bytes, int]]) -> None:
        """Host files, readable to all; written once by each shepherd."""
        os.makedirs(directory, 0o755, exist_ok=True)
        for path, (content, _) in files.items():
            with open(path + ".new", "wb") as file:
                file.write(content)
            os.replace(file.name, path)
        self._shared.add(directory)

    def _remove_by_process(self, directory: str) -> None:
        null = os.open("/dev/null", os.O_RDWR)
        try:
            launch = Launch(
                program="rm",
                argv=["rm", "-rf", "--", directory],
                environ={"PATH": "/usr/bin:/bin"},
                directories=("/",),
                owner=Owner("", 0, 0, (), "/", "", switch=False),
                umask=0o077,
                cgroups=(),
                stdio=(None, null, null),
            )
            self._children.spawn(launch, lambda status, usage: None)[1].close()
        finally:
            os.close(null)


def _fresh(directory: str, owner: Owner) -> set[str]:
    """What is in it, if it is as `Directories.make` makes it for this owner; else nothing."""
    temporary = os.path.join(directory, "tmp")
    with suppress(OSError):
        for path in (directory, temporary):
            status = os.lstat(path)
            if status.st_mode != _PRIVATE or status.st_uid != owner.uid or status.st_gid != owner.gid:
                return set()
        found = set(_some_of(directory, 3))
        if _SCRIPT in found and stat.S_ISDIR(os.lstat(os.path.join(directory, _SCRIPT)).st_mode):
            return set()
        if found <= {"tmp", _SCRIPT} and not _some_of(temporary, 1):
            return found
    return set()


def _worth_keeping(script: str) -> bool:
    """Whether it may be used again; its owner may have made it as large as the disk. Raises OSError."""
    status = os.lstat(script)
    return stat.S_ISREG(status.st_mode) and status.st_size <= _LARGEST_KEPT


def _holds(path: str, content: bytes, mode: int, owner: Owner) -> bool:
    """Whether the file is as `_write` would make it. Its owner may have put anything in its place."""
    if len(content) > _LARGEST_KEPT:
        return False
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            as_made = status.st_mode == stat.S_IFREG | mode and status.st_nlink == 1
            owned = not owner.switch or (status.st_uid, status.st_gid) == (owner.uid, owner.gid)
            return as_made and owned and os.read(fd, _LARGEST_KEPT + 1) == content
        finally:
            os.close(fd)
    return False


def _some_of(directory: str, most: int) -> list[str]:
    """What is in it, no more than that. It is its owner's, who may have put millions of files there, or a link in its
    place to where it takes for ever to look. Raises OSError.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with os.scandir(fd) as entries:
            return [entry.name for entry in islice(entries, most)]
    finally:
        os.close(fd)


def _host_files(spec: dict[str, Any], paths: mpi.JobPaths) -> dict[str, tuple[bytes, int]]:
    return {
        paths.nodefile: (mpi.nodefile(spec).encode(), 0o600),
        paths.hostfile: (mpi.hostfile_hydra(spec).encode(), 0o600),
        paths.ompi_hostfile: (mpi.hostfile_openmpi(spec).encode(), 0o600),
    }


def _own_files(
    spec: dict[str, Any], paths: mpi.JobPaths, owner: Owner, tasks: dict[str, Any] | None
) -> dict[str, tuple[bytes, int]]:
    """What is this attempt's alone: content and mode of each file."""
    files: dict[str, tuple[bytes, int]] = {}
    if gpus := mpi.gpufile(spec):
        files[paths.gpufile] = (gpus.encode(), 0o600)
    if spec["me"] == 0 and spec["argv"] is None:
        script = os.path.join(paths.directory, _SCRIPT)
        content = base64.b64decode(spec["script"] or "")
        if spec.get("interactive"):
            command = ["/bin/sh" if spec.get("image") else owner.shell, "-i"]
        else:
            files[script] = (content, 0o700)
            front = ":".join([paths.bin, *spec["job_path"]])
            command = [*_runner(content, owner.shell, front), script, *spec["script_args"]]
        if spec["shell"] is None:
            begun = b"" if spec.get("interactive") else content
            files[os.path.join(paths.directory, "enter")] = (_enter(spec, paths, command, begun), 0o700)
    if tasks:
        files[paths.tasks] = (json.dumps(tasks).encode(), 0o600)
    return files


def _runner(script: bytes, shell: str, front: str) -> list[str]:
    """What is put before the script's path. A login shell (``#!/bin/sh -l``) reads files that set PATH anew: our
    commands are put in front once more when it has. For bash `_enter` does it, and leaves the script to the kernel.
    """
    if login := _LOGIN_SHELL.match(script):
        again = f'PATH={shlex.quote(front)}:$PATH; . "$0"'
        return [*map(os.fsdecode, login.groups()), "-c", again]
    return [] if script.startswith(_PROGRAM) else [shell]


def _interpreter(script: bytes) -> str:
    """The program that its first line, ``#!PROGRAM``, names, with a carriage return that is there, as to the kernel;
    empty: none.
    """
    found = _FIRST_LINE.match(script)
    return os.fsdecode(found[1]) if found else ""


def _enter(spec: dict[str, Any], paths: mpi.JobPaths, command: list[str], script: bytes) -> bytes:
    """What the login shell executes: our commands in front of whatever PATH its files left, then what is to run.

    A missing interpreter is named by us: what a shell says then is that the script, a file of ours, was not found.
    """
    front = shlex.quote(":".join([paths.bin, *spec["job_path"]]))
    lines = ["#!/bin/sh", f"PATH={front}${{PATH:+:$PATH}}", "export PATH"]
    if _LOGIN_BASH.match(script):
        after = shlex.quote(os.path.join(paths.bin, _AFTER_LOGIN[0]))
        lines.append(f"HPCMESOS_FRONT={front} HPCMESOS_BASH_ENV=${{BASH_ENV-}} BASH_ENV={after}")
        lines.append("export HPCMESOS_FRONT HPCMESOS_BASH_ENV BASH_ENV")
    if interpreter := _interpreter(script):
        named = interpreter.replace("\r", "\\r")
        text = f"hpcmesos: {named}, which the first line of the script names, cannot be executed on this node"
        lines.append(f"[ -x {shlex.quote(interpreter)} ] || printf '%s\\n' {shlex.quote(text)} >&2")
    lines.append(f"exec {shlex.join(command)}\n")
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def _write(path: str, content: bytes, mode: int, owner: Owner) -> None:
    """Whole: a disk that is almost full takes a part, and says nothing. Raises OSError."""
    # Our umask (022) takes nothing away from 0600 and 0700.
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, mode)
    with open(fd, "wb", buffering=0) as file:
        left = memoryview(content)
        while left:
            left = left[file.write(left) :]
        if owner.switch:
            os.fchown(fd, owner.uid, owner.gid)
