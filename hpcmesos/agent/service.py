"""What agent and gateway have in common: one of each on a host, of the cluster, until it is told to stop."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from hpcmesos import pidfile
from hpcmesos.config import AgentSettings, GatewaySettings
from hpcmesos.errors import ConfigError, StateError

log = logging.getLogger(__name__)

_RETRY = 75  # of enrolment
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0  # s between two tries to join


def pid_file(path: Path, what: str) -> IO[bytes]:
    """The pid file, locked and written; the lock ends with this process. ``what`` it is of.

    Raises:
        StateError: another one holds it, or it cannot be written.
    """
    try:
        descriptor = pidfile.hold(str(path))
    except OSError as error:
        raise StateError(f"cannot write {path}: {error.strerror}") from error
    if descriptor is None:
        daemon = pidfile.living(str(path))
        raise StateError(f"{what} already runs for {path.parent} (pid {daemon.pid if daemon else 'unknown'})")
    return os.fdopen(descriptor, "rb")


async def until_told(work: Coroutine[Any, Any, None]) -> None:
    """Runs ``work`` until SIGTERM or SIGINT, which cancel it. Raises its error."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    working = asyncio.create_task(work)
    stop = asyncio.create_task(stopped.wait())
    await asyncio.wait([working, stop], return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    working.cancel()
    with suppress(asyncio.CancelledError):
        await working


async def enrol(settings: AgentSettings | GatewaySettings, role: str = "agent") -> None:
    """Joins the cluster in this role unless this host has its certificate; keeps trying while no master answers.

    Raises:
        ConfigError: there is neither a certificate nor a token, or the cluster refuses this node.
    """
    if (settings.state / "agent.pem").exists():
        return
    if settings.join_token_file is None:
        raise ConfigError(
            f"{settings.state} holds no certificate and no join token is given (--join-token-file)"
        )
    words = {
        "node": settings.node,
        "address": settings.address,
        "master": settings.master,
        "state": str(settings.state),
        "token_file": str(settings.join_token_file),
        "role": role,
    }
    pause, said = _FIRST_PAUSE, ""
    while True:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hpcmesos.agent.enrolment",
            stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, errors = await child.communicate(json.dumps(words).encode())
        lines = errors.decode(errors="replace").strip().splitlines() or [f"exit {child.returncode}"]
        if child.returncode == 0:
            log.info("joined the cluster as %s", settings.node)
            return
        if child.returncode != _RETRY:
            raise ConfigError(f"cannot join the cluster: {lines[-1]}")
        if lines[-1] != said:
            log.warning("cannot join the cluster yet: %s", lines[-1])
        said = lines[-1]
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
