"""The directory of an attempt and the commands that its script finds; see docs/architecture.md, "Shepherd: files"."""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
from contextlib import suppress
from typing import Any

from hpcmesos.gang import mpi
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

RING_FILES = ("ring.txt", "ring.json")
"""The table and the report of the ring, in the job's own directory."""


def attempt_directory(config: Config, attempt: str) -> str:
    """Raises Refusal for a name that is no plain file name."""
    if not attempt or "/" in attempt or attempt.startswith("."):
        raise Refusal(f"illegally formed attempt identifier: {attempt!r}")
    return os.path.join(config.state, "attempts", attempt)


def job_paths(config: Config, directory: str) -> mpi.JobPaths:
    return mpi.JobPaths(
        directory=directory,
        bin=config.bin,
        remote_shell=os.path.join(config.bin, "pbs_tmrsh"),
        nodefile=os.path.join(directory, "nodes"),
        gpufile=os.path.join(directory, "gpus"),
        hostfile=os.path.join(directory, "hosts"),
        ompi_hostfile=os.path.join(directory, "ompi_hosts"),
        tasks=os.path.join(directory, "tasks"),
        tmpdir=os.path.join(directory, "tmp"),
    )


def write_commands(config: Config) -> None:
    """``STATE/bin``: written anew at each start, for the interpreter or the package may have moved."""
    os.makedirs(config.bin, 0o755, exist_ok=True)
    start = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")
    for name, words in _COMMANDS.items():
        path = os.path.join(config.bin, name)
        command = shlex.join([config.python, "-IS", start, *words])
        with open(path + ".new", "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\nexec {command} "$@"\n')
        os.chmod(file.name, 0o755)  # noqa: S103  (jobs of every user run it)
        os.replace(file.name, path)


def write_attempt(
    spec: dict[str, Any], paths: mpi.JobPaths, owner: Owner, tasks: dict[str, Any] | None = None
) -> None:
    """Makes the directory with everything in it, and only then gives it to the owner, who could set links in it.

    ``tasks``: what those of a framework are told, if there is one.

    Raises:
        OSError: it cannot be written.
    """
    if os.path.lexists(paths.directory):
        shutil.rmtree(paths.directory)
    os.mkdir(paths.directory, 0o700)
    files = {
        paths.nodefile: (mpi.nodefile(spec).encode(), 0o600),
        paths.hostfile: (mpi.hostfile_hydra(spec).encode(), 0o600),
        paths.ompi_hostfile: (mpi.hostfile_openmpi(spec).encode(), 0o600),
    }
    if gpus := mpi.gpufile(spec):
        files[paths.gpufile] = (gpus.encode(), 0o600)
    if spec["me"] == 0 and spec["argv"] is None:
        script = os.path.join(paths.directory, "script")
        files[script] = (base64.b64decode(spec["script"] or ""), 0o700)
        if spec["shell"] is None:
            files[os.path.join(paths.directory, "enter")] = (_enter(spec, paths, script), 0o700)
    if tasks:
        files[paths.tasks] = (json.dumps(tasks).encode(), 0o600)
    for path, (content, mode) in files.items():
        _write(path, content, mode, owner)
    os.mkdir(paths.tmpdir, 0o700)
    if owner.switch:
        os.chown(paths.tmpdir, owner.uid, owner.gid)
        os.chown(paths.directory, owner.uid, owner.gid)


def remove_tree(children: Children, directory: str) -> None:
    """Removes an attempt's directory: a small one at once, a large one by a process, for that may take minutes."""
    named = (
        "script",
        "enter",
        "nodes",
        "gpus",
        "hosts",
        "ompi_hosts",
        "tasks",
        "stdout",
        "stderr",
        *RING_FILES,
    )
    for name in named:
        with suppress(OSError):
            os.unlink(os.path.join(directory, name))
    for path in (os.path.join(directory, "tmp"), directory):
        with suppress(OSError):
            os.rmdir(path)
    if not os.path.lexists(directory):
        return
    null = os.open("/dev/null", os.O_RDWR)
    try:
        launch = Launch(
            program="rm",
            argv=["rm", "-rf", "--", directory],
            environ={"PATH": "/usr/bin:/bin"},
            directories=("/",),
            owner=Owner("", 0, 0, (), "/", "", switch=False),
            umask=0o077,
            cgroup=None,
            stdio=(None, null, null),
        )
        children.spawn(launch, lambda status, usage: None)[1].close()
    finally:
        os.close(null)


def _enter(spec: dict[str, Any], paths: mpi.JobPaths, script: str) -> bytes:
    """What the login shell executes: our commands in front of whatever PATH its files left, then the script itself."""
    front = ":".join([paths.bin, *spec["job_path"]])
    command = shlex.join([script, *spec["script_args"]])
    return f"#!/bin/sh\nPATH={shlex.quote(front)}${{PATH:+:$PATH}}\nexport PATH\nexec {command}\n".encode(
        "utf-8", "surrogateescape"
    )


def _write(path: str, content: bytes, mode: int, owner: Owner) -> None:
    # Our umask (022) takes nothing away from 0600 and 0700.
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, mode)
    with open(fd, "wb", buffering=0) as file:
        file.write(content)
        if owner.switch:
            os.fchown(fd, owner.uid, owner.gid)
