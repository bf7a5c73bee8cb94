"""Frames of ``control.sock``, ``ranks.sock`` and the peers' TLS connections.

A frame is a u32 big-endian length of what follows, one byte kind, the body. ``J`` holds a JSON object, the other kinds
carry bytes of a stream. One connection is one channel.
"""

from __future__ import annotations

from hpcmesos.launch import quick

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

MESSAGE = b"J"
STDIN = b"I"
STDIN_END = b"C"
STDOUT = b"O"
STDERR = b"E"

STARVED = ": it wanted more memory than the job has there"
"""What is added of a rank that was killed for memory."""

CHUNK = 65536
"""Bytes of a stream in one frame, at most."""
MAX_FRAME = 16 * 1024 * 1024


class FrameError(Exception):
    """The other side sent what is no frame, or no JSON where JSON belongs."""


def frame(kind: bytes, body: bytes = b"") -> bytes:
    """One frame, ready to be sent."""
    return (1 + len(body)).to_bytes(4, "big") + kind + body


def message(value: dict[str, Any]) -> bytes:
    """A ``J`` frame."""
    return frame(MESSAGE, quick.dumps(value).encode("ascii"))


def decode(body: bytes) -> dict[str, Any]:
    """The object in a ``J`` frame.

    Raises:
        FrameError: when the body is no JSON object.
    """
    try:
        value = quick.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # the latter: lists in lists in lists
        raise FrameError(f"no JSON in a message: {error}") from error
    if not isinstance(value, dict):
        raise FrameError("a message is no JSON object")
    return value


class Parser:
    """Cuts what arrives into frames, whatever the pieces are."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yields each whole frame as (kind, body); keeps the rest.

        Raises:
            FrameError: for a length of zero or above ``MAX_FRAME``.
        """
        self._buffer += data
        while len(self._buffer) >= 5:
            size = int.from_bytes(self._buffer[:4], "big")
            check_size(size)
            if len(self._buffer) < 4 + size:
                return
            kind, body = bytes(self._buffer[4:5]), bytes(self._buffer[5 : 4 + size])
            del self._buffer[: 4 + size]
            yield kind, body


def check_size(size: int) -> None:
    """Raises FrameError when no frame can be that long."""
    if not 1 <= size <= MAX_FRAME:
        raise FrameError(f"a frame of {size} bytes")


def connect(path: str) -> Any:
    """A blocking stream socket to a unix socket. Raises OSError."""
    connection = quick.socket.socket(quick.socket.AF_UNIX, quick.socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def send_all(connection: Any, data: bytes) -> None:
    """Sends everything, blocking. To one who has hung up it sends nothing: what it said last is then to be read.

    Raises OSError for any other trouble.
    """
    try:  # noqa: SIM105  (contextlib costs 3 ms to import)
        connection.sendall(data)
    except BrokenPipeError:
        pass


def receive(
    connection: Any, parser: Parser, waiting: list[tuple[bytes, bytes]]
) -> tuple[bytes, bytes] | None:
    """The next frame of a blocking connection, None at its end; ``waiting`` holds frames that came together."""
    while not waiting:
        data = connection.recv(CHUNK)
        if not data:
            return None
        waiting.extend(parser.feed(data))
    return waiting.pop(0)


def answer(connection: Any, key: str) -> dict[str, Any] | None:
    """The shepherd's message with ``key``, None when it has an error or hangs up. What else it says came too late.

    Raises OSError and FrameError.
    """
    parser = Parser()
    waiting: list[tuple[bytes, bytes]] = []
    while frame := receive(connection, parser, waiting):
        message = decode(frame[1])
        if key in message or "error" in message:
            return message if key in message else None
    return None
