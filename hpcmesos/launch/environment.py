"""The environment of an attempt's processes on this node."""

from __future__ import annotations

import os

from hpcmesos.gang import mpi
from hpcmesos.launch import tasks
from hpcmesos.launch.container import SHELL
from hpcmesos.launch.workspace import Workspace


def of_script(workspace: Workspace) -> dict[str, str]:
    """What the job brought along, with the attempt's own laid over it."""
    spec, container = workspace.spec, workspace.container
    base = _base(workspace)
    image = container.environ if container else {}
    environ = {**image, **mpi.job_environment(spec, workspace.paths), **workspace.tasks.get("common", {})}
    if container or "PATH" not in spec["environment"]:
        environ["PATH"] = f"{environ['PATH']}:{base['PATH']}"
    identity = {key: value for key, value in base.items() if key != "PATH"}
    marks = _marks(workspace)
    if spec["argv"] is None and spec["shell"] is None:
        marks["HPCMESOS_ENTER"] = os.path.join(workspace.paths.directory, "enter")
    return {**environ, **identity, **marks}


def of_command(workspace: Workspace, environ: dict[str, str]) -> dict[str, str]:
    """The caller's variables with this host's own laid over them."""
    values = {
        **(workspace.container.environ if workspace.container else {}),
        **_base(workspace),
        **environ,
        **mpi.host_overlay(workspace.spec, workspace.paths),
        **_marks(workspace),
    }
    if workspace.paths.bin not in values["PATH"].split(":"):
        values["PATH"] = f"{workspace.paths.bin}:{values['PATH']}"
    return values


def of_shell(workspace: Workspace, environ: dict[str, str], command: str) -> tuple[dict[str, str], str]:
    """`of_command`, with the task's laid over it; and the command."""
    values = of_command(workspace, environ)
    if workspace.tasks:
        command = tasks.for_shell(workspace.tasks, values, command)
    return values, command


def _base(workspace: Workspace) -> dict[str, str]:
    """Who the owner is, and where programs are when nobody says so."""
    base = workspace.owner.environment()
    if workspace.container:
        base |= {"SHELL": SHELL, "PATH": workspace.container.environ.get("PATH", base["PATH"])}
    return base


def _marks(workspace: Workspace) -> dict[str, str]:
    """By these the processes are known, and find the shepherd."""
    return {
        "HPCMESOS_ATTEMPT": workspace.id,
        "HPCMESOS_SOCKET": workspace.services.config.ranks_socket,
        "HPCMESOS_SHEPHERD": str(os.getpid()),
        **(workspace.docker.environment if workspace.docker else {}),
    }
