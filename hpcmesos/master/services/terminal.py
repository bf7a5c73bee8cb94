"""The way from a client to the terminal of its interactive job: a relay between a WebSocket and the head's shepherd.

The client sends bytes (what is typed) and ``{"rows", "columns"}`` or ``{"delete": true}``; it gets bytes (what is
shown) and ``{"event": "waiting" | "ready" | "display" | "ended", ...}``. A client that goes away ends its job, as in
Torque; a master that goes does not: the shepherd waits for the client, which comes back by another one and says how
far it has seen.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any, Protocol

from hpcmesos.errors import HpcmesosError, Unauthorized, WrongState
from hpcmesos.master.auth import Caller
from hpcmesos.master.services import control, shepherds
from hpcmesos.master.services.lookup import find, id_of
from hpcmesos.master.services.site import Site
from hpcmesos.master.services.wait import Pace, in_thread
from hpcmesos.model import JobState
from hpcmesos.queue.records import JobRecord

_BROKEN = (OSError, EOFError, TimeoutError, ValueError)

Size = tuple[int, int]
"""Rows and columns."""


class Browser(Protocol):
    """The client's end: bytes or text, None when it is gone; ``left``: by its own doing, not because we stop."""

    left: bool

    async def receive(self) -> bytes | str | None: ...
    async def send(self, data: bytes | str) -> None: ...


def find_terminal(site: Site, caller: Caller, text: str) -> JobRecord:
    """The job whose terminal the caller may have: its owner alone, for it is as good as the owner's keyboard.

    Raises:
        UnknownJob, Unauthorized: there is none, or it is another's.
        WrongState: the job has no terminal.
    """
    job = find(site, text)
    if caller.user != job.owner:
        raise Unauthorized(f"Unauthorized Request  {id_of(job)}")
    if not job.submission.get("interactive"):
        raise WrongState(f"job {id_of(job)} is not interactive")
    return job


class Relay:
    """One client at one job. ``attempt`` and ``offset``: what it has seen of which attempt; the size of its window."""

    def __init__(
        self, site: Site, caller: Caller, job: JobRecord, client: Browser, seen: tuple[int, int], size: Size
    ) -> None:
        self._site = site
        self._caller = caller
        self._job = job
        self._client = client
        self._seen = seen
        self._size = size
        self._shepherd: asyncio.StreamWriter | None = None
        self._told = ""

    async def run(self) -> None:
        """Until the job has ended or the client has gone."""
        hearing = asyncio.create_task(self._hear())
        relaying = asyncio.create_task(self._relay())
        try:
            await asyncio.wait({hearing, relaying}, return_when=asyncio.FIRST_COMPLETED)
            if relaying.done():
                relaying.result()
            elif self._client.left:
                await self._hang_up()
        finally:
            for task in (hearing, relaying):
                task.cancel()
            await asyncio.gather(hearing, relaying, return_exceptions=True)

    async def _hang_up(self) -> None:
        if self._shepherd is not None:
            with suppress(OSError):
                self._shepherd.write(shepherds.message({"hangup": True}))
                await self._shepherd.drain()
                return
        await self._delete()

    async def _delete(self) -> None:
        with suppress(
            HpcmesosError
        ):  # it has just ended, or the database is away: nobody will come to its terminal
            await in_thread(control.delete, self._site, self._caller, str(id_of(self._job)))

    async def _hear(self) -> None:
        while (data := await self._client.receive()) is not None:
            if isinstance(data, bytes):
                await self._pass_on(shepherds.frame(b"I", data))
                continue
            message = json.loads(data)
            if message.get("delete"):
                await self._delete()
            else:
                self._size = (int(message["rows"]), int(message["columns"]))
                await self._pass_on(shepherds.message(self._window()))

    def _window(self) -> dict[str, int]:
        return {"rows": self._size[0], "columns": self._size[1]}

    async def _pass_on(self, data: bytes) -> None:
        """What is typed before there is a terminal is dropped."""
        if self._shepherd is not None:
            with suppress(OSError):
                self._shepherd.write(data)
                await self._shepherd.drain()

    async def _relay(self) -> None:
        pace = Pace()
        if not self._seen[0]:
            await self._tell("waiting", 0)
        while True:
            job = self._job
            if job.state is JobState.COMPLETE:
                await self._say(
                    {"event": "ended", "exit_status": job.exit_status, "comment": job.comment or ""}
                )
                return
            if job.state is JobState.RUNNING:
                with suppress(*_BROKEN):
                    if await self._attach(job):
                        pace = Pace()
            elif job.state is not JobState.EXITING:
                await self._tell("waiting", 0)
            await pace.pause()
            self._job = await in_thread(self._look)

    def _look(self) -> JobRecord:
        return self._site.store.job(self._job.seq, self._job.index) or self._job

    async def _attach(self, job: JobRecord) -> bool:
        """Relays for as long as the attempt and the connection hold; False: the shepherd does not know it (yet)."""
        head = await in_thread(shepherds.head_of, self._site, job, job.attempt)
        if head is None:
            return False
        offset = self._seen[1] if self._seen[0] == job.attempt else 0
        reader, writer = await shepherds.dial(self._site, head)
        try:
            request = {"op": "terminal", "attempt": shepherds.attempt_id(job, job.attempt), "offset": offset}
            writer.write(shepherds.message({**request, **self._window()}))
            if not json.loads((await shepherds.read_frame(reader))[1]).get("attached"):
                return False
            self._shepherd = writer
            await self._tell("ready", job.attempt)
            while True:
                kind, body = await shepherds.read_frame(reader)
                if kind == b"O":
                    self._seen = (job.attempt, offset := offset + len(body))
                    await self._client.send(body)
                elif (number := json.loads(body).get("display")) is not None:
                    await self._say({"event": "display", "attempt": job.attempt, "connection": number})
                else:
                    return True
        finally:
            self._shepherd = None
            writer.close()

    async def _tell(self, event: str, attempt: int) -> None:
        if self._told != f"{event} {attempt}":
            self._told = f"{event} {attempt}"
            await self._say({"event": event, "attempt": attempt})

    async def _say(self, value: dict[str, Any]) -> None:
        await self._client.send(json.dumps(value))
