"""The ring before a job's own script (``-W ring=check``): on the head, as the job's owner, in a clean environment."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

from hpcmesos.gang import mpi, ring_report
from hpcmesos.launch import programs, streams
from hpcmesos.launch.processes import Launch, Report, read_report

if TYPE_CHECKING:
    from hpcmesos.launch.attempt import Attempt

_LARGEST = 4 << 20
_MARGIN = 15.0
"""Seconds that the ring's own watcher has, besides its time, to start and to end everything."""


class Outcome(NamedTuple):
    """``culprits``: nodes of this job that it had better avoid, joined by ``+``; None: nobody is known."""

    closed: bool
    message: str
    culprits: str | None = None


async def check(attempt: Attempt) -> Outcome:
    """Runs the ring over the whole attempt. All that it says is the owner's word: good for this job alone."""
    try:
        output, opened = _start(attempt)
    except OSError as error:
        return Outcome(False, f"the ring could not be started: {error.strerror}")
    report = Report()
    try:
        async with asyncio.timeout(_patience(attempt) + _MARGIN):
            data = await streams.read(output, _LARGEST)
    except TimeoutError:
        return Outcome(False, "the ring's own program did not end")
    finally:
        read_report(opened, report)
        opened.close()
    if report.failure:
        return Outcome(False, f"the ring could not be started: {report.failure}")
    return judge(data, [member["node"] for member in attempt.spec["members"]])


def judge(data: bytes, nodes: list[str]) -> Outcome:
    """What the ring's program has printed. Only ``nodes`` of the job can be named as culprits."""
    try:
        report = ring_report.Report.from_json(json.loads(data.rpartition(b"\n")[0].rpartition(b"\n")[2]))
    except (ValueError, TypeError, KeyError, IndexError):
        words = data.decode(errors="replace").strip().rpartition("\n")[2]
        return Outcome(False, f"the ring's own program failed: {words[:500] or 'it said nothing'}")
    culprits = [host for host in report.culprits if host in nodes]
    return Outcome(report.closed, report.message[:1000], "+".join(culprits) or None)


def _start(attempt: Attempt) -> tuple[int, socket.socket]:
    """Answers the reading end of what it prints, and what tells of its start."""
    output, theirs = os.pipe()
    try:
        pid, opened = attempt.services.children.spawn(_launch(attempt, theirs), lambda status, usage: None)
    except OSError:
        os.close(output)
        raise
    finally:
        os.close(theirs)
    attempt.enclosure.adopt(pid)
    return output, opened


def _launch(attempt: Attempt, output: int) -> Launch:
    config = attempt.services.config
    options = ["--json", "--save", attempt.paths.directory, "--patience", str(config.ring_patience)]
    return Launch(
        program=config.python,
        argv=[config.python, "-IS", programs.START, "ring", *options],
        environ=attempt.environment({}),
        directories=("/",),
        owner=attempt.owner,
        umask=0o077,
        cgroups=attempt.enclosure.procs,
        stdio=(None, output, output),
    )


def _patience(attempt: Attempt) -> float:
    members: list[dict[str, Any]] = attempt.spec["members"]
    seats = ((mpi.seats(attempt.spec, member), len(member["gpus"])) for member in members)
    ranks = sum(ring_report.ranks_of(*seat) for seat in seats)
    limit = ring_report.time_limit(ranks, attempt.services.config.ring_patience)
    return limit + ring_report.grace(ranks)
