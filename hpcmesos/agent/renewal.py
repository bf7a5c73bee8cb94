"""Keeps the node's certificate from running out, without a restart of anything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import sys
from collections.abc import Callable

from hpcmesos.agent import api
from hpcmesos.config import AgentSettings, GatewaySettings
from hpcmesos.errors import HpcmesosError

log = logging.getLogger(__name__)

_LONGEST = 6 * 3600.0  # seconds between two looks
_AFTER_FAILURE = 300.0
_FIRST = 5.0
_SPREAD = 10.0
_WATCH = 15.0


async def keep_certificate(
    settings: AgentSettings | GatewaySettings, renewed: Callable[[], None], due: asyncio.Event
) -> None:
    """Until cancelled. ``renewed``: there is a new one. ``due``: the cluster's authorities have changed.

    Each look is a process: ``cryptography`` is large.
    """
    words = {
        "node": settings.node,
        "address": settings.address,
        "master": settings.master,
        "state": str(settings.state),
    }
    pem = settings.state / "agent.pem"
    pause = _FIRST
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause * random.uniform(0.9, 1.0)):
                await due.wait()
                await asyncio.sleep(random.uniform(0.0, _SPREAD))  # all nodes hear of it at once
        due.clear()
        before = pem.stat().st_mtime_ns
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hpcmesos.agent.enrolment",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        told, errors = await child.communicate(json.dumps(words).encode())
        if child.returncode == 0:
            pause = min(_LONGEST, max(1.0, float(told)))
            if pem.stat().st_mtime_ns != before:
                log.info("the certificate of %s is renewed", settings.node)
                renewed()
        else:
            lines = errors.decode(errors="replace").strip().splitlines() or [f"exit {child.returncode}"]
            log.error("cannot renew the certificate of %s: %s", settings.node, lines[-1])
            pause = _AFTER_FAILURE


async def watch_authorities(settings: GatewaySettings, due: asyncio.Event) -> None:
    """Until cancelled: sets ``due`` when the masters trust other authorities. Nodes hear that by their link."""
    known = settings.state / "ca.pem"
    masters = api.several(settings.master)
    while True:
        await asyncio.sleep(_WATCH)
        try:
            context = api.context(settings.state) if masters[0].startswith("https") else None
            answer = await asyncio.to_thread(api.call, masters[0], "GET", "/v1/ca", None, context)
            if answer.get("ca") != known.read_text():
                due.set()
        except (HpcmesosError, OSError):
            masters.append(masters.pop(0))
