"""Waiting for a job without keeping a thread: asynchronous looks at its row, close together at first, then fewer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import anyio.to_thread

from hpcmesos import api_schema
from hpcmesos.api_schema import JobStatus
from hpcmesos.master.services import status
from hpcmesos.master.services.lookup import find
from hpcmesos.master.services.site import Site
from hpcmesos.model import JobState

P = ParamSpec("P")
T = TypeVar("T")

LONGEST = 300.0
"""Seconds that one request may stay open."""

LONGEST_FOR_LEADER = 2.0
"""The same for those who want to know who leads, which needs no credential."""


class Pace:
    """The pauses between looks: 50 ms, growing to 500 ms."""

    def __init__(self) -> None:
        self._seconds = 0.05

    async def pause(self, at_most: float = LONGEST) -> None:
        await asyncio.sleep(max(0.0, min(self._seconds, at_most)))
        self._seconds = min(1.3 * self._seconds, 0.5)


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs what blocks (the store) beside the event loop."""
    return await anyio.to_thread.run_sync(lambda: function(*args, **kwargs))


async def until_leader(site: Site, after: int, timeout: float) -> api_schema.LeaderReply:
    """Who leads, once it is a leader of a later term than ``after``; or whoever leads after ``timeout`` seconds."""
    deadline = time.monotonic() + min(max(timeout, 0.0), LONGEST_FOR_LEADER)
    pace = Pace()
    while True:
        leader = await in_thread(site.leader.recent)
        address = leader.address if leader.live and leader.address else None
        left = deadline - time.monotonic()
        if left <= 0 or (address and leader.term > after):
            return api_schema.LeaderReply(address=address, term=leader.term, timeline=leader.timeline)
        await pace.pause(left)


async def until_ended(site: Site, text: str, timeout: float) -> JobStatus:
    """The job's status once it has ended, or as it is after ``timeout`` seconds.

    Raises:
        UnknownJob: there is none.
    """
    deadline = time.monotonic() + min(max(timeout, 0.0), LONGEST)
    pace = Pace()
    while True:
        job = await in_thread(find, site, text)
        left = deadline - time.monotonic()
        if job.state is JobState.COMPLETE or left <= 0:
            found = await in_thread(status.statuses, site, [job])
            return found[0]
        await pace.pause(left)
