"""The site's health program: says now and then whether this node is fit for jobs, as Slurm's HealthCheckProgram."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hpcmesos.agent.events import Event, HealthReport

log = logging.getLogger(__name__)

TIMEOUT = 60.0
_LONGEST = 200


async def watch(program: Path, interval: float, sink: Callable[[Event], None]) -> None:
    """Until cancelled: runs it each ``interval`` seconds, and says what came of it."""
    while True:
        trouble = await check(program)
        if trouble:
            log.warning("this node is not fit for jobs: %s", trouble)
        sink(HealthReport(trouble))
        await asyncio.sleep(interval)


async def check(program: Path, timeout: float = TIMEOUT) -> str:
    """Why the node is not fit, by the program; empty: it is."""
    try:
        child = await asyncio.create_subprocess_exec(
            program, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return f"{program.name} cannot be started: {error.strerror}"
    try:
        output, _ = await asyncio.wait_for(child.communicate(), timeout)
    except TimeoutError:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        with suppress(TimeoutError):  # in the kernel, on a file server that hangs
            await asyncio.wait_for(child.wait(), 5.0)
        return f"{program.name} has not ended within {timeout:g} s"
    if child.returncode == 0:
        return ""
    said = output.decode(errors="replace").strip().rpartition("\n")[2][:_LONGEST]
    return f"{program.name} exited with {child.returncode}{': ' if said else ''}{said}"
