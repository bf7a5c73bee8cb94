"""Questions that API processes put to the leader on its link listener: why jobs wait, and its figures.

One TLS connection with a certificate of O="master"; frames as on the link (4-byte big-endian length, msgpack).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from hpcmesos.api_schema import Why
from hpcmesos.errors import MasterUnreachable, ProtocolError
from hpcmesos.wire import MAX_FRAME

_GPUS_TIMEOUT = 0.5


class Trial(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job that is not submitted; ``request`` as JSON of a Request, ``count``: elements of an array."""

    request: dict[str, Any]
    queue: str
    user: str
    project: str = ""
    group: str = ""
    priority: int = 0
    count: int = 1


class Question(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``why``: sequence numbers of jobs; ``explain``: numbers and elements of jobs of which all is told; ``gpus``: what
    all GPUs show now.
    """

    why: list[int] = []
    explain: list[tuple[int, int | None]] = []
    trial: Trial | None = None
    metrics: bool = False
    gpus: bool = False


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``why``: (code, text) of each asked job that waits and has a reason. ``metrics``: figures by name.

    ``gpus``: `agent.health.FIGURES` by UUID.
    ``explained``: of each job of ``explain`` (None: it does not wait), else of the trial.
    """

    why: dict[int, tuple[str, str]] = {}
    explained: list[Why | None] = []
    metrics: dict[str, float] = {}
    gpus: dict[str, dict[str, float]] = {}


encode = msgspec.msgpack.Encoder().encode
decode_question: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
_decode_answer: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def frame(value: Question | Answer) -> bytes:
    """One frame, length included."""
    body = encode(value)
    return len(body).to_bytes(4, "big") + body


class Lines:
    """Connections to the leader that are kept from one question to the next, for a handshake costs more than an answer.

    Thread-safe; each question has a connection of its own while it waits. ``tls`` answers a context with a master's
    certificate.
    """

    def __init__(self, tls: Callable[[], ssl.SSLContext]) -> None:
        self._tls = tls
        self._idle: list[tuple[str, ssl.SSLSocket]] = []  # with their addresses; appends and pops are atomic

    def ask(self, address: str, question: Question, timeout: float = 5.0) -> Answer:
        """Puts one question to the leader at ``address`` (host:port).

        Raises:
            MasterUnreachable: no answer in time, or no connection.
        """
        try:
            while (kept := self._kept(address)) is not None:
                # It may have been closed meanwhile; a question changes nothing, so it can be put again.
                with contextlib.suppress(ConnectionError, EOFError, ssl.SSLError):
                    return self._exchange(address, kept, question, timeout)
            return self._exchange(address, self._dial(address, timeout), question, timeout)
        except (OSError, EOFError, ProtocolError, ValueError, msgspec.MsgspecError) as error:
            raise MasterUnreachable(f"the leader at {address} does not answer: {error!r}") from error

    def why(self, address: str, seqs: Iterable[int]) -> dict[int, tuple[str, str]]:
        """Why jobs wait, by sequence number: (code, text). Jobs that do not wait are left out."""
        return self.ask(address, Question(why=list(seqs))).why

    def metrics(self, address: str) -> dict[str, float]:
        """The leader's figures by name."""
        return self.ask(address, Question(metrics=True)).metrics

    def gpus(self, address: str) -> dict[str, dict[str, float]]:
        """What the GPUs of linked nodes show now, by UUID; a busy leader is not waited for."""
        return self.ask(address, Question(gpus=True), _GPUS_TIMEOUT).gpus

    def close(self) -> None:
        while self._idle:
            with contextlib.suppress(OSError, IndexError):
                self._idle.pop()[1].close()

    def _kept(self, address: str) -> ssl.SSLSocket | None:
        """The connection that was used last; those to former leaders are closed."""
        while True:
            try:
                known, connection = self._idle.pop()
            except IndexError:
                return None
            if known == address:
                return connection
            connection.close()

    def _dial(self, address: str, timeout: float) -> ssl.SSLSocket:
        host, _, port = address.rpartition(":")
        plain = socket.create_connection((host.strip("[]"), int(port)), timeout)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return self._tls().wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise

    def _exchange(
        self, address: str, connection: ssl.SSLSocket, question: Question, timeout: float
    ) -> Answer:
        try:
            connection.settimeout(timeout)
            connection.sendall(frame(question))
            size = int.from_bytes(_receive(connection, 4), "big")
            if size > MAX_FRAME:
                raise ProtocolError(f"a frame of {size} bytes")
            answer = _decode_answer.decode(_receive(connection, size))
        except BaseException:
            connection.close()
            raise
        self._idle.append((address, connection))
        return answer


def _receive(connection: ssl.SSLSocket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        if not (part := connection.recv(size - len(data))):
            raise EOFError("the connection was closed")
        data += part
    return bytes(data)
