"""The first message of an X program, in which it says who it is."""

from __future__ import annotations

import struct

import pytest

from hpcmesos.launch.display import COOKIE, introduced, introduction


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
