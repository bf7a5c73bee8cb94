"""From a master to the shepherd of a node: its peers' door, where a master may read output and relay terminals."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hpcmesos.master import peers
from hpcmesos.master.services.lookup import id_of
from hpcmesos.master.services.site import Site
from hpcmesos.model import AttemptId
from hpcmesos.queue.records import JobRecord, NodeRecord

_LARGEST_FRAME = 16 * 1024 * 1024
_CONNECT = 5.0  # seconds to reach a shepherd


def head_of(site: Site, job: JobRecord, number: int) -> NodeRecord | None:
    """The node that runs the script of the attempt with this number; blocks."""
    shares = site.store.shares([job.key])
    keys = (job.index, number, 0)
    heads = [s.node for s in shares if (s.attempt.index, s.attempt.number, s.position) == keys]
    return next((node for node in site.store.nodes() if node.name in heads), None)


def attempt_id(job: JobRecord, number: int) -> str:
    return str(AttemptId(id_of(job), number))


async def dial(site: Site, node: NodeRecord) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the node's shepherd.

    Raises:
        OSError, TimeoutError: it cannot be reached, or shows another node's certificate.
    """
    async with asyncio.timeout(_CONNECT):
        reader, writer = await asyncio.open_connection(
            node.address, node.peer_port, ssl=site.tls() if site.tls else None, server_hostname=node.address
        )
    if peers.peer_name(writer.get_extra_info("peercert")) != ("agent", node.name):
        writer.close()
        raise OSError(f"{node.address}:{node.peer_port} is not {node.name}")
    return reader, writer


def frame(kind: bytes, body: bytes) -> bytes:
    return (len(body) + 1).to_bytes(4, "big") + kind + body


def message(value: dict[str, Any]) -> bytes:
    return frame(b"J", json.dumps(value).encode())


async def read_frame(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Kind and body of the next frame. Raises EOFError at the end, ValueError for what is no frame."""
    size = int.from_bytes(await reader.readexactly(4), "big")
    if not 1 <= size <= _LARGEST_FRAME:
        raise ValueError(f"a frame of {size} bytes")
    body = await reader.readexactly(size)
    return body[:1], body[1:]
