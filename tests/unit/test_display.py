"""Programs that connect to the display of a job: the first message, in which they say who they are, and strangers."""

from __future__ import annotations

import asyncio
import os
import pwd
import struct
from pathlib import Path

import pytest

from hpcmesos.launch import display as displays
from hpcmesos.launch.display import COOKIE, Display, introduced, introduction
from hpcmesos.launch.owners import Owners


def message(order: str, name: bytes, data: bytes, rest: bytes = b"") -> bytes:
    """As the protocol has it, each part filled up to a multiple of four bytes."""
    mark = b"B\0" if order == ">" else b"l\0"
    head = mark + struct.pack(order + "4H", 11, 0, len(name), len(data)) + b"\0\0"
    return head + b"".join(part + bytes(-len(part) % 4) for part in (name, data)) + rest


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("secret", [b"", b"0123456789abcdef"])
def test_another_cookie_takes_the_place_of_the_first(order: str, secret: bytes) -> None:
    said = message(order, COOKIE, b"fedcba9876543210", b"what follows")
    assert introduced(said, secret) == message(order, COOKIE if secret else b"", secret, b"what follows")


@pytest.mark.parametrize("order", ["<", ">"])
def test_it_may_come_in_pieces(order: str) -> None:
    said = message(order, COOKIE, b"abc")
    assert introduction(said) == (COOKIE, b"abc", len(said))
    for length in range(len(said)):
        assert introduction(said[:length]) is None
        assert introduced(said[:length], b"x") is None


def test_strangers_hold_few_descriptors_and_not_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is on the node can connect to the port; only with the cookie is there somebody to wait for."""
    monkeypatch.setattr(displays, "_INTRODUCTION", 3.0)
    asyncio.run(_strangers(tmp_path / "cookie"))


async def _strangers(file: Path) -> None:
    told = asyncio.Queue[int]()
    display = Display(str(file), lambda number: told.put_nowait(number) is None)
    environ = display.open(Owners().resolve(pwd.getpwuid(os.getuid()).pw_name))
    port = 6000 + int(environ["DISPLAY"].partition(":")[2].partition(".")[0])
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(64)]
    try:
        async with asyncio.timeout(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await reader.read(1) == b"", "one too many"
            writer.close()
            assert [await reader.read(1) for reader, _ in silent] == [b""] * 64, "they have had their time"
            _, known = await asyncio.open_connection("127.0.0.1", port)
            known.write(message("<", COOKIE, file.read_bytes()[-16:]))
            assert await told.get()
            known.close()
    finally:
        display.close()
        for _, writer in silent:
            writer.close()
