"""NVIDIA's Multi-Process Service for one attempt (``-W mps=true``): its ranks compute on its GPUs at the same time.

On each node with GPUs of the attempt ``nvidia-cuda-mps-control -d`` is started as the job's owner, among the processes
of the attempt: it is seen, limited and killed with them, and no other job can reach it. Signals for the job are not
for it: ranks that save something at SIGTERM need it. Programs find it by
CUDA_MPS_PIPE_DIRECTORY (`gang.mpi.host_overlay`); its directories lie in the attempt's own TMPDIR.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import Any

from hpcmesos.gang import mpi
from hpcmesos.launch import environment
from hpcmesos.launch.processes import Launch, Report, read_report
from hpcmesos.launch.settings import Refusal
from hpcmesos.launch.workspace import Workspace

PROGRAM = "nvidia-cuda-mps-control"
_PATIENCE = 10.0
"""Seconds that the program has to leave its daemon behind."""
_LONGEST = 500
"""Characters of its last line that are told."""


def wanted(spec: dict[str, Any]) -> bool:
    """Whether this node's part of an attempt has it."""
    return bool(mpi.mps_directories(spec, ""))


async def start(workspace: Workspace) -> None:
    """Comes back when the daemon takes programs.

    Raises:
        Refusal: the node has no such program, or it failed; what it left is gone then.
    """
    path = _find()
    said = os.memfd_create("mps")  # no pipe: the daemon would keep it open
    try:
        status = await _run(workspace, path, said)
        text = os.pread(said, 65536, 0).decode(errors="replace").strip().rpartition("\n")[2][:_LONGEST]
    finally:
        os.close(said)
    workspace.enclosure.set_apart()
    if status:
        code = os.waitstatus_to_exitcode(status)
        raise Refusal(f"mps: {PROGRAM} ended with {code}{': ' if text else ''}{text}")


def _find() -> str:
    for directory in os.environ.get("PATH", os.defpath).split(":"):
        path = os.path.join(directory, PROGRAM)
        if os.access(path, os.X_OK):
            return path
    raise Refusal(f"mps: there is no {PROGRAM} in the agent's PATH; it comes with NVIDIA's driver")


async def _run(workspace: Workspace, path: str, output: int) -> int:
    """The wait status of the program; its daemon goes on."""
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    launch = Launch(
        program=path,
        argv=[PROGRAM, "-d"],
        environ=environment.of_command(workspace, {}),
        directories=("/",),
        made=tuple(mpi.mps_directories(workspace.spec, workspace.paths.tmpdir).values()),
        owner=workspace.owner,
        umask=0o077,
        cgroups=workspace.enclosure.procs,
        stdio=(None, output, output),
    )
    children, report = workspace.services.children, Report()
    pid, opened = children.spawn(launch, lambda status, usage: ended.set_result(status))
    workspace.enclosure.adopt(pid)
    try:
        async with asyncio.timeout(_PATIENCE):
            status = await asyncio.shield(ended)
    except TimeoutError:
        raise Refusal(f"mps: {PROGRAM} -d has not come back within {_PATIENCE:g} s") from None
    finally:
        with suppress(OSError):
            read_report(opened, report)
        opened.close()
    if report.failure:
        raise Refusal(f"mps: {report.failure}")
    return status
