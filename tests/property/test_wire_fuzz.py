"""Bytes that are almost, or not at all, what links and shepherds' sockets carry: taken or refused, no accident."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
from hypothesis import strategies as st

from hpcmesos import wire
from hpcmesos.launch import protocol
from hpcmesos.master.events import Event
from hpcmesos.master.links import Connection, Links
from tests.at_length import damaged, fuzz

EXAMPLES = 400
_TYPES = (*wire.ToLeader.__args__, *wire.ToAgent.__args__)
_text = st.text(max_size=8)
_plain = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | _text | st.binary(max_size=8)
)
_any = st.recursive(
    _plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3)
)


def _packed(value: Any) -> bytes:
    body = msgspec.msgpack.encode(value)
    return len(body).to_bytes(4, "big") + body


def _almost(kind: Any) -> st.SearchStrategy[bytes]:
    """Its fields, with right and wrong things in them."""
    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    right = {
        "protocol": st.sampled_from([0, 1, wire.PROTOCOL, 10**9]),
        "node": st.sampled_from(["node1", "x"]),
    }
    given = {name: right.get(name, _any) for name in names}
    return st.fixed_dictionaries({"type": st.just(kind.__name__)}, optional=given).map(_packed)


frames = damaged(st.one_of(_any.map(_packed), *(_almost(kind) for kind in _TYPES)) | st.binary(max_size=40))
streams = st.lists(frames, max_size=3).map(b"".join)
texts = st.one_of(
    _any.filter(lambda value: not isinstance(value, bytes)).map(lambda v: repr(v).encode()),
    st.dictionaries(_text, st.integers() | _text, max_size=4).map(lambda v: json.dumps(v).encode()),
    st.binary(max_size=40),
)
shepherd_streams = damaged(
    st.lists(texts.map(lambda t: protocol.frame(protocol.MESSAGE, t)), max_size=3).map(b"".join)
)


class Line(asyncio.Transport):
    """The other end of a link, with node1's certificate."""

    def __init__(self) -> None:
        subject = ((("organizationName", "agent"),), (("commonName", "node1"),))
        super().__init__({"peercert": {"subject": subject}})
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close


def link(data: bytes) -> None:
    async def talk() -> None:
        events: list[Event] = []
        welcome = wire.Welcome(protocol=wire.PROTOCOL, cluster="c", timeline=1, term=1)
        connection = Connection(Links(welcome, 60.0, events.append))
        connection.connection_made(Line())
        half = len(data) // 2
        connection.data_received(data[:half])
        connection.data_received(data[half:])

    asyncio.run(talk())


def agent(data: bytes) -> None:
    try:
        wire.encode(wire.decode_to_agent(data[4:]))
    except (msgspec.MsgspecError, ValueError):  # what ends a link
        return


def shepherd(data: bytes) -> None:
    """As the shepherd reads its sockets, and its peers."""
    parser = protocol.Parser()
    try:
        for piece in (data[:3], data[3:]):
            for _, body in parser.feed(piece):
                assert isinstance(protocol.decode(body), dict)
    except protocol.FrameError as error:
        assert "\n" not in str(error)


def test_nested_without_end() -> None:
    deep = 100_000
    shepherd(protocol.frame(protocol.MESSAGE, b'{"op": ' + b"[" * deep + b"]" * deep + b"}"))
    body = msgspec.msgpack.encode({"type": "Hello", "inventory": None})[:-1] + b"\x91" * deep + b"\xc0"
    link(len(body).to_bytes(4, "big") + body)


def test_link() -> None:
    fuzz(link, streams, EXAMPLES)


def test_agent() -> None:
    fuzz(agent, frames, EXAMPLES)


def test_shepherd() -> None:
    fuzz(shepherd, shepherd_streams, EXAMPLES)
