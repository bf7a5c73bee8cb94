"""The door of the agent: requests that come many at once, and what is told meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hpcmesos.launch import control, protocol
from hpcmesos.launch.attempt import Attempt
from hpcmesos.launch.deadman import DeadMan


class Desk:
    """Who holds nothing, and writes down in which order things happen."""

    def __init__(self) -> None:
        self.attempts: dict[str, Attempt] = {}
        self.deadman = DeadMan("n1", self.attempts.values)
        self.order: list[str] = []
        self.control = control.Control(self)

    def hello(self) -> dict[str, Any]:
        return {"event": "hello"}

    def replay(self) -> list[dict[str, Any]]:
        return [{"event": "replayed"}]

    def prepare(self, spec: dict[str, Any]) -> None:
        self.order.append(spec["attempt"])
        asyncio.get_running_loop().call_soon(self.order.append, f"ended {spec['attempt']}")
        self.control.emit({"event": "ready", "attempt": spec["attempt"]})

    def forget(self, attempt: str) -> None:
        self.order.append(attempt)

    def shutdown(self, force: bool) -> None:
        self.order.append("shutdown")


def talk(path: Path, said: bytes, heard: Callable[[Desk, asyncio.StreamReader], Awaitable[None]]) -> Desk:
    """One connection on which ``said`` is sent in one piece."""

    async def run() -> Desk:
        desk = Desk()
        server = await control.listen(str(path / "sock"), 0o600, desk.control.serve)
        reader, writer = await asyncio.open_unix_connection(path / "sock")
        writer.write(said)
        async with asyncio.timeout(10):
            await heard(desk, reader)
        writer.close()
        server.close()
        return desk

    return asyncio.run(run())


async def events(reader: asyncio.StreamReader, count: int) -> list[dict[str, Any]]:
    parser, found = protocol.Parser(), list[dict[str, Any]]()
    while len(found) < count:
        data = await reader.read(65536)
        assert data, "it has hung up"
        found += [protocol.decode(body) for _, body in parser.feed(data)]
    return found


def test_what_has_ended_is_dealt_with_between_the_starts_of_others(tmp_path: Path) -> None:
    names = [f"{number}.h#1" for number in range(16)]

    async def heard(_: Desk, reader: asyncio.StreamReader) -> None:
        told = await events(reader, 16)
        assert [event["attempt"] for event in told] == names

    said = b"".join(protocol.message({"op": "prepare", "spec": {"attempt": name}}) for name in names)
    desk = talk(tmp_path, said, heard)
    assert [entry for entry in desk.order if entry in names] == names
    assert desk.order.index("ended 0.h#1") < desk.order.index("8.h#1")


def test_what_one_asks_for_does_not_overtake_what_all_are_told(tmp_path: Path) -> None:
    async def heard(_: Desk, reader: asyncio.StreamReader) -> None:
        assert [event["event"] for event in await events(reader, 2)] == ["ready", "unknown"]

    asked = ({"op": "prepare", "spec": {"attempt": "1.h#1"}}, {"op": "end", "attempt": "1.h#1", "cause": "x"})
    talk(tmp_path, b"".join(map(protocol.message, asked)), heard)


def test_who_comes_anew_hears_hello_and_then_where_all_stand(tmp_path: Path) -> None:
    async def heard(_: Desk, reader: asyncio.StreamReader) -> None:
        assert [event["event"] for event in await events(reader, 2)] == ["hello", "replayed"]

    talk(tmp_path, protocol.message({"op": "hello"}), heard)


@pytest.mark.parametrize(
    "nonsense",
    [
        protocol.frame(protocol.STDIN, b"data"),
        protocol.frame(protocol.MESSAGE, b"{"),
        protocol.message({"attempt": "1.h#1"}),
        b"\xff\xff\xff\xffJ",
    ],
)
def test_who_speaks_nonsense_is_hung_up_on_after_what_was_right(tmp_path: Path, nonsense: bytes) -> None:
    async def heard(desk: Desk, reader: asyncio.StreamReader) -> None:
        assert await reader.read() == b""
        assert desk.order == ["1.h#1"]

    began = time.monotonic()
    talk(tmp_path, protocol.message({"op": "forget", "attempt": "1.h#1"}) + nonsense, heard)
    assert time.monotonic() - began < 10


def test_nobody_waits_for_an_answer_that_a_fault_of_ours_has_cost(tmp_path: Path) -> None:
    async def fails(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        raise TypeError("a fault of ours")

    async def run() -> bytes:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: None)
        server = await control.listen(str(tmp_path / "sock"), 0o600, fails)
        reader, writer = await asyncio.open_unix_connection(tmp_path / "sock")
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        server.close()
        return answer

    assert asyncio.run(run()) == b""
