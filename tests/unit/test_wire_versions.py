"""A leader takes agents of the release before: what they said is kept here as bytes."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import msgspec
import pytest

from hpcmesos import wire
from hpcmesos.master.events import Event, LinkUp
from hpcmesos.master.links import Connection, Links

HELLO_1 = bytes.fromhex(
    "000001908ca474797065a548656c6c6fa870726f746f636f6c01a46e6f6465a56e6f646531a7626f6f745f6964d924356630633661"
    "32652d376430642d346238652d386630652d306134613362316339643131a761646472657373a931302e37372e312e32a970656572"
    "5f706f7274cd9cbba776657273696f6ea5302e312e30a9696e76656e746f727987a46370757310a66d656d6f7279cf000000020000"
    "0000a467707573918aa475756964a553494d2d31a5696e64657800a56d6f64656ca973696d756c61746564a66d656d6f727900a46e"
    "756d61c0a3706369a0a973696d756c61746564c3a57374617465a9616c6c6f6361746564a56c696e6b7390a46e6f7465a0a8646563"
    "6c61726564c3a8666561747572657390a26f73a94c696e757820362e31a8686f73746e616d65a56e6f646531a8617474656d707473"
    "9184a7617474656d7074a931322e6870636d2331a57068617365a772756e6e696e67a468656164c3a46770757391a553494d2d31a9"
    "7365656e5f7465726d03a3706964cd1267ac73686570686572645f706964cd1268"
)
"""Of protocol 1: node1 with a running attempt."""
WELCOME_1 = bytes.fromhex(
    "0000005086a474797065a757656c636f6d65a870726f746f636f6c01a7636c7573746572a86330666665653030a874696d656c696e"
    "6501a47465726d04ad70696e675f696e74657276616ccb4000000000000000"
)


class Line(asyncio.Transport):
    """The other end of a connection: what was written to an agent with this certificate."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self.written = b""
        self.closed = False
        subject = ((("organizationName", "agent"),), (("commonName", node),))
        self._extra = {"peercert": {"subject": subject}}

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._extra.get(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


def meet(data: bytes) -> tuple[list[Event], Line]:
    """What the leader makes of an agent that says this first, and its answer."""
    events: list[Event] = []
    line = Line("node1")

    async def run() -> None:
        welcome = wire.Welcome(protocol=wire.PROTOCOL, cluster="c", timeline=1, term=4)
        connection = Connection(Links(welcome, 15.0, events.append))
        connection.connection_made(line)
        connection.data_received(data)

    asyncio.run(run())
    return events, line


def test_an_agent_of_the_release_before_is_taken_and_spoken_to_as_it_knows() -> None:
    (event,), line = meet(HELLO_1)
    assert isinstance(event, LinkUp)
    assert event.hello.protocol == 1
    assert event.hello.journal == ""
    assert event.hello.attempts[0] == wire.AttemptReport(
        attempt="12.hpcm#1", phase="running", head=True, gpus=("SIM-1",)
    )
    welcome = wire.decode_to_agent(line.written[4:])
    assert isinstance(welcome, wire.Welcome)
    assert welcome.protocol == 1
    assert not line.closed


@pytest.mark.parametrize("protocol", [0, wire.PROTOCOL + 1])
def test_others_are_told_why_they_are_not(protocol: int) -> None:
    hello = wire.decode_to_leader(HELLO_1[4:])
    assert isinstance(hello, wire.Hello)
    events, line = meet(wire.encode(msgspec.structs.replace(hello, protocol=protocol)))
    assert events == []
    answer = wire.decode_to_agent(line.written[4:])
    assert isinstance(answer, wire.Rejected)
    assert answer.reason == f"this leader speaks protocol {wire.PROTOCOL}, the agent {protocol}"
    assert line.closed


def test_a_welcome_of_the_release_before_is_understood() -> None:
    welcome = wire.decode_to_agent(WELCOME_1[4:])
    assert isinstance(welcome, wire.Welcome)
    assert welcome.protocol in wire.SPOKEN


NAN, INF, HUGE = float("nan"), float("inf"), 1e308


@pytest.mark.parametrize("wrong", [NAN, INF, -INF, HUGE, -HUGE])
def test_numbers_that_are_none_reach_no_handler(wrong: float) -> None:
    told = wire.Ended(
        attempt="1.h#1", head=True, cause="OK", started_at=wrong, ended_at=wrong, ago=wrong,
        usage={"cput": wrong, "mem": 7.5}, ranks=[{"rank": 0, "at": wrong, "gpu": [wrong, 1]}],
        stdout_tail=b"\x00\xff\xcb\x7f",
    )  # fmt: skip
    assert wire.decode_to_leader(wire.encode(told)[4:]) == msgspec.structs.replace(
        told, started_at=0.0, ended_at=0.0, ago=0.0, usage={"cput": 0.0, "mem": 7.5},
        ranks=[{"rank": 0, "at": 0.0, "gpu": [0.0, 1]}],
    )  # fmt: skip


def test_a_short_float_may_be_none_as_well() -> None:
    body = wire.encode(wire.Started(attempt="1.h#1", pid=1, started_at=1.5))[4:]
    long = b"\xcb" + struct.pack(">d", 1.5)
    assert long in body
    said = wire.decode_to_leader(body.replace(long, b"\xca" + struct.pack(">f", NAN)))
    assert said == wire.Started(attempt="1.h#1", pid=1, started_at=0.0)


@pytest.mark.parametrize("right", [1.5, -(2.0**40), 2.0**128, 1e300])
def test_other_numbers_stay_as_they_are(right: float) -> None:
    told = wire.GpuFigures(gpus={"GPU-0": {"power": right}})
    assert wire.decode_to_leader(wire.encode(told)[4:]) == told
