"""The way of one connection of a program of ``qsub -X`` to the client at its job's terminal; see launch/display.py."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

from hpcmesos.errors import WrongState
from hpcmesos.master.services import shepherds
from hpcmesos.master.services.lookup import id_of
from hpcmesos.master.services.site import Site
from hpcmesos.master.services.terminal import Browser
from hpcmesos.master.services.wait import in_thread
from hpcmesos.queue.records import JobRecord

_BROKEN = (OSError, EOFError, ValueError)


async def relay(site: Site, job: JobRecord, attempt: int, connection: int, client: Browser) -> None:
    """Until one of both ends closes it.

    Raises:
        WrongState: there is no such connection, or not any more.
    """
    head = await in_thread(shepherds.head_of, site, job, attempt)
    if head is None:
        raise WrongState(f"job {id_of(job)} does not run attempt {attempt}")
    try:
        reader, writer = await shepherds.dial(site, head)
    except (OSError, TimeoutError) as error:
        raise WrongState(f"the node of job {id_of(job)} cannot be reached: {error}") from error
    try:
        name = shepherds.attempt_id(job, attempt)
        writer.write(shepherds.message({"op": "display", "attempt": name, "connection": connection}))
        with suppress(*_BROKEN):
            answer = json.loads((await shepherds.read_frame(reader))[1])
            if not answer.get("attached"):
                raise WrongState(f"job {id_of(job)}: {answer.get('refused')}")
            ways = {asyncio.create_task(_to(client, reader)), asyncio.create_task(_from(client, writer))}
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
    finally:
        writer.close()


async def _to(client: Browser, reader: asyncio.StreamReader) -> None:
    while (frame := await shepherds.read_frame(reader))[0] == b"O":
        await client.send(frame[1])


async def _from(client: Browser, writer: asyncio.StreamWriter) -> None:
    while (data := await client.receive()) is not None and isinstance(data, bytes):
        writer.write(shepherds.frame(b"I", data))
        await writer.drain()
