"""Questions that API processes put to the leader on its link listener: why jobs wait, and its figures.

One TLS connection with a certificate of O="master"; frames as on the link (4-byte big-endian length, msgpack).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterable
from typing import Any

import msgspec

from hpcmesos.errors import MasterUnreachable, ProtocolError
from hpcmesos.wire import MAX_FRAME, Why


class Trial(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job that is not submitted; ``request`` as JSON of a Request, ``count``: elements of an array."""

    request: dict[str, Any]
    queue: str
    user: str
    project: str = ""
    priority: int = 0
    count: int = 1


class Question(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``why``: sequence numbers of jobs; ``explain``: numbers and elements of jobs of which all is told."""

    why: list[int] = []
    explain: list[tuple[int, int | None]] = []
    trial: Trial | None = None
    metrics: bool = False


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``why``: (code, text) of each asked job that waits and has a reason. ``metrics``: figures by name.

    ``explained``: of each job of ``explain`` (None: it does not wait), else of the trial.
    """

    why: dict[int, tuple[str, str]] = {}
    explained: list[Why | None] = []
    metrics: dict[str, float] = {}


encode = msgspec.msgpack.Encoder().encode
decode_question: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
_decode_answer: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def frame(value: Question | Answer) -> bytes:
    """One frame, length included."""
    body = encode(value)
    return len(body).to_bytes(4, "big") + body


async def ask(address: str, tls: ssl.SSLContext, question: Question, timeout: float = 5.0) -> Answer:
    """Puts one question to the leader at ``address`` (host:port).

    Raises:
        MasterUnreachable: no answer in time, or no connection.
    """
    try:
        async with asyncio.timeout(timeout):
            return await _ask(address, tls, question)
    except (OSError, TimeoutError, EOFError, ProtocolError, msgspec.MsgspecError) as error:
        raise MasterUnreachable(f"the leader at {address} does not answer: {error!r}") from error


async def ask_why(address: str, tls: ssl.SSLContext, seqs: Iterable[int]) -> dict[int, tuple[str, str]]:
    """Why jobs wait, by sequence number: (code, text). Jobs that do not wait are left out."""
    return (await ask(address, tls, Question(why=list(seqs)))).why


async def ask_metrics(address: str, tls: ssl.SSLContext) -> dict[str, float]:
    """The leader's figures by name."""
    return (await ask(address, tls, Question(metrics=True))).metrics


async def _ask(address: str, tls: ssl.SSLContext, question: Question) -> Answer:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=tls, server_hostname=host)
    try:
        writer.write(frame(question))
        size = int.from_bytes(await reader.readexactly(4), "big")
        if size > MAX_FRAME:
            raise ProtocolError(f"a frame of {size} bytes")
        return _decode_answer.decode(await reader.readexactly(size))
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
