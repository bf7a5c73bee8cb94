"""The script of a job as a program to start: command, environment, and where its output goes."""

from __future__ import annotations

import os

from hpcmesos.launch import environment
from hpcmesos.launch.container import SHELL
from hpcmesos.launch.processes import Launch, Outputs
from hpcmesos.launch.terminal import Terminal
from hpcmesos.launch.workspace import Workspace

_ENTER = 'exec "$HPCMESOS_ENTER"'


def launch(workspace: Workspace, terminal: Terminal | None, preamble: tuple[bytes, bytes]) -> Launch:
    """How it is started.

    ``terminal``: of an interactive job; it opens a new one. ``preamble``: what comes first in stdout and stderr.

    Raises:
        OSError: there is no terminal left.
    """
    spec, owner = workspace.spec, workspace.owner
    program, argv = _command(workspace, interactive=terminal is not None)
    environ = environment.of_script(workspace)
    if terminal and terminal.display:
        environ |= terminal.display.open(owner)
    workdir = (spec["workdir"],) if spec["workdir"] else ()
    return Launch(
        program=program,
        argv=argv,
        environ=environ,
        directories=(*workdir, owner.home),
        owner=owner,
        umask=spec["umask"],
        cgroups=workspace.enclosure.procs,
        view=workspace.view,
        terminal=terminal.create(owner) if terminal else None,
        preamble=preamble,
        outputs=Outputs(
            stdout=_places(workspace, "stdout"),
            stderr=_places(workspace, "stderr"),
            join=spec["join"],
            truncate=spec["number"] == 1,
        ),
    )


def _places(workspace: Workspace, stream: str) -> list[str]:
    """The final place, relative ones (``-k``) in the owner's home; then the spool, should that fail."""
    spool = os.path.join(workspace.paths.directory, stream)
    path = workspace.spec[stream]
    return [os.path.join(workspace.owner.home, path), spool] if path else [spool]


def _command(workspace: Workspace, *, interactive: bool) -> tuple[str, list[str]]:
    """Program and argv; see docs/architecture.md, "The start of the script"."""
    spec = workspace.spec
    if spec["argv"] is not None:
        return spec["argv"][0], list(spec["argv"])
    if shell := spec["shell"]:
        if interactive:
            return shell, [shell, "-i"]
        return shell, [shell, os.path.join(workspace.paths.directory, "script"), *spec["script_args"]]
    if workspace.container:
        return SHELL, [os.path.basename(SHELL), "-c", _ENTER]
    shell = workspace.owner.shell
    return shell, [f"-{os.path.basename(shell)}", "-c", _ENTER]
