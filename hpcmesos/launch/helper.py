"""A program that the shepherd runs for itself, with its own rights, and waits for no longer than it must."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress

from hpcmesos.launch import streams
from hpcmesos.launch.owners import Owner
from hpcmesos.launch.processes import Children, Launch

_LARGEST_ANSWER = 1 << 20
_LARGEST_QUESTION = 1 << 16  # a pipe takes it whole, before anybody reads
_NOBODY_ELSE = Owner("", 0, 0, (), "/", "", switch=False)


async def run(
    children: Children,
    words: Sequence[str],
    environ: Mapping[str, str],
    seconds: float,
    question: bytes = b"",
    stderr: int | None = None,
) -> tuple[int, bytes]:
    """Its wait status, and the last of what it wrote to standard output.

    ``question``: its standard input, at most 64 KiB; ``stderr``: a descriptor; None: as standard output.

    Raises:
        OSError: it cannot be started.
        TimeoutError: it has not ended in time, and was killed with all that belongs to its session.
    """
    if len(question) > _LARGEST_QUESTION:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()
    stdin, ours = os.pipe()
    output, theirs = os.pipe()
    try:
        os.write(ours, question)
        launch = Launch(
            program=words[0],
            argv=list(words),
            environ=dict(environ),
            directories=("/",),
            owner=_NOBODY_ELSE,
            umask=0o077,
            cgroups=(),
            stdio=(stdin, theirs, theirs if stderr is None else stderr),
        )
        pid, report = children.spawn(launch, lambda status, usage: ended.set_result(status))
        report.close()
    except OSError:
        os.close(output)
        raise
    finally:
        for end in (stdin, ours, theirs):
            os.close(end)
    reading = loop.create_task(streams.read(output, _LARGEST_ANSWER))
    try:
        async with asyncio.timeout(seconds):
            status = await asyncio.shield(ended)
    finally:
        if not ended.done():
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # it leads a session
        done, _ = await asyncio.wait({reading}, timeout=_LAST_WORDS)
        reading.cancel()
    return status, reading.result() if done else b""


_LAST_WORDS = 1.0
"""Seconds that its output is waited for: what it left behind may hold the pipe for ever."""
