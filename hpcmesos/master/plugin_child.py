"""The process in which one plug-in runs: ``python -m hpcmesos.master.plugin_child KIND NAME``.

Frames (4-byte big-endian length, msgpack) on descriptors 0 and 1; what the plug-in prints goes to standard error. It
has no database and no settings: what it knows is in the questions.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, BinaryIO

import msgspec

from hpcmesos.master.child import die_with_parent
from hpcmesos.plugin import GROUPS, JobClass, NodeClass

MEMORY = 4 << 30  # bytes of address space
LOG_BYTES = 1 << 20  # of a file that it writes


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a plug-in is asked. ``nodes``: of the kind rank."""

    classes: list[JobClass]
    nodes: list[NodeClass] = []
    now: float = 0.0


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """``keys``: whatever it answered; ``error``: what it raised."""

    keys: Any = None
    error: str = ""


def load(kind: str, name: str) -> Callable[..., Any]:
    """Raises LookupError with the names that there are."""
    found = entry_points(group=GROUPS[kind])
    if name not in found.names:
        names = ", ".join(sorted(found.names)) or "none"
        raise LookupError(f"no plug-in '{name}' is installed in {GROUPS[kind]}; there are: {names}")
    called: Callable[..., Any] = found[name].load()
    return called


def answer(called: Callable[..., Any], kind: str, ask: Ask) -> Reply:
    """What the plug-in says to one question; whatever it raises is told as an error."""
    try:
        more = (ask.nodes,) if kind == "rank" else ()
        return Reply(keys=_plain(called(ask.classes, *more, ask.now)))
    except Exception as error:
        return Reply(error=f"{type(error).__name__}: {error}")


def _plain(keys: Any) -> Any:
    """Lists all the way down, for arrays and generators cannot be sent."""
    rows = keys.tolist() if hasattr(keys, "tolist") else list(keys)
    return [row.tolist() if hasattr(row, "tolist") else row for row in rows]


def read_frame(stream: BinaryIO) -> bytes | None:
    """None: the other side is gone."""
    head = stream.read(4)
    return stream.read(int.from_bytes(head, "big")) if len(head) == 4 else None


def frame(value: Ask | Reply) -> bytes:
    body = msgspec.msgpack.encode(value)
    return len(body).to_bytes(4, "big") + body


def main() -> int:
    """Answers questions until the other side closes the pipe. Words: kind, name, pid of the parent."""
    kind, name, parent = sys.argv[1], sys.argv[2], int(sys.argv[3])
    die_with_parent(parent)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LOG_BYTES, LOG_BYTES))
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    decode = msgspec.msgpack.Decoder(Ask).decode
    failed = Reply()
    called: Callable[..., Any] | None = None
    try:
        called = load(kind, name)
    except Exception as error:  # a plug-in may raise anything while it is imported
        failed = Reply(error=f"{type(error).__name__}: {error}")
    while (body := read_frame(questions)) is not None:
        reply = failed if called is None else answer(called, kind, decode(body))
        try:
            sent = frame(reply)
        except (TypeError, OverflowError, ValueError) as error:
            sent = frame(Reply(error=f"the answer cannot be sent: {error}"))
        answers.write(sent)
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
