"""The ring before a job's own script (``-W ring=check``): on the head, as the job's owner, in a clean environment."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import Any, NamedTuple

from hpcmesos.gang import mpi, ring_report
from hpcmesos.launch import environment, programs, streams
from hpcmesos.launch.processes import Launch, Report, read_report
from hpcmesos.launch.workspace import Workspace

_LARGEST = 4 << 20
_MARGIN = 15.0
"""Seconds that the ring's own watcher has, besides its time, to start and to end everything."""


class Outcome(NamedTuple):
    """``culprits``: nodes of this job that it had better avoid, joined by ``+``; None: nobody is known."""

    closed: bool
    message: str
    culprits: str | None = None


async def check(workspace: Workspace) -> Outcome:
    """Runs the ring over the whole attempt. All that it says is the owner's word: good for this job alone."""
    try:
        output, opened = _start(workspace)
    except OSError as error:
        return Outcome(False, f"the ring could not be started: {error.strerror}")
    report = Report()
    try:
        async with asyncio.timeout(_patience(workspace) + _MARGIN):
            data = await streams.read(output, _LARGEST)
    except TimeoutError:
        return Outcome(False, "the ring's own program did not end")
    finally:
        read_report(opened, report)
        opened.close()
    if report.failure:
        return Outcome(False, f"the ring could not be started: {report.failure}")
    return judge(data, [member["node"] for member in workspace.spec["members"]])


def judge(data: bytes, nodes: list[str]) -> Outcome:
    """What the ring's program has printed. Only ``nodes`` of the job can be named as culprits."""
    try:
        report = ring_report.Report.from_json(json.loads(data.rpartition(b"\n")[0].rpartition(b"\n")[2]))
    except (ValueError, TypeError, KeyError, IndexError):
        words = data.decode(errors="replace").strip().rpartition("\n")[2]
        return Outcome(False, f"the ring's own program failed: {words[:500] or 'it said nothing'}")
    culprits = [host for host in report.culprits if host in nodes]
    return Outcome(report.closed, report.message[:1000], "+".join(culprits) or None)


def _start(workspace: Workspace) -> tuple[int, socket.socket]:
    """Answers the reading end of what it prints, and what tells of its start."""
    output, theirs = os.pipe()
    try:
        pid, opened = workspace.services.children.spawn(
            _launch(workspace, theirs), lambda status, usage: None
        )
    except OSError:
        os.close(output)
        raise
    finally:
        os.close(theirs)
    workspace.enclosure.adopt(pid)
    return output, opened


def _launch(workspace: Workspace, output: int) -> Launch:
    config = workspace.services.config
    options = ["--json", "--save", workspace.paths.directory, "--patience", str(config.ring_patience)]
    return Launch(
        program=config.python,
        argv=[config.python, "-IS", programs.START, "ring", *options],
        environ=environment.of_command(workspace, {}),
        directories=("/",),
        owner=workspace.owner,
        umask=0o077,
        cgroups=workspace.enclosure.procs,
        stdio=(None, output, output),
    )


def _patience(workspace: Workspace) -> float:
    members: list[dict[str, Any]] = workspace.spec["members"]
    seats = ((mpi.seats(workspace.spec, member), len(member["gpus"])) for member in members)
    ranks = sum(ring_report.ranks_of(*seat) for seat in seats)
    limit = ring_report.time_limit(ranks, workspace.services.config.ring_patience)
    return limit + ring_report.grace(ranks)
