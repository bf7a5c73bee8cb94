"""Many connections, slow ones and oversized requests: those who behave are served, and memory stays bounded."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hpcmesos.client import Client
from hpcmesos.master.door import Door, Limits

from .leader_kit import wait_until

if TYPE_CHECKING:
    from .api_kit import Api

pytest_plugins = ["tests.integration.database_kit", "tests.integration.api_kit"]


CROWD = int(os.environ.get("HPCMESOS_TEST_CONNECTIONS", "2000"))
"""11,000 are 10,000 that are idle and 1,000 that are slow."""


@pytest.fixture(scope="module")
def api_settings() -> dict[str, object]:
    return {}


def resident(pid: int) -> int:
    """Bytes of memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def address_of(api: Api) -> tuple[str, int]:
    host, _, port = api.url.removeprefix("https://").rpartition(":")
    return host, int(port)


def held_by(api: Api) -> int:
    """Descriptors of its process."""
    return len(list(Path(f"/proc/{api.process.pid}/fd").iterdir()))


@pytest.fixture
def crowd() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def test_the_oldest_idle_connection_makes_room() -> None:
    door, dropped = Door(Limits(connections=3, of_one=2)), []
    first = door.enter("a", lambda: dropped.append("first"))
    second = door.enter("a", lambda: dropped.append("second"))
    assert first is not None
    assert second is not None
    first.useful = True
    third = door.enter("a", lambda: dropped.append("third"))
    assert dropped == ["second"]
    assert third is not None
    third.useful = True
    assert door.enter("a", lambda: None) is None
    other = door.enter("b", lambda: dropped.append("other"))
    assert other is not None
    assert door.enter("c", lambda: None) is not None
    assert dropped == ["second", "other"]
    door.leave(first)
    door.leave(first)
    assert len(door) == 2


def test_users_of_one_gateway_do_not_shut_each_other_out() -> None:
    door, dropped = Door(Limits(connections=10, of_one=2)), []
    for user in ("ann", "ann", "bob"):
        entry = door.enter("10.0.0.1", lambda: dropped.append("one"))
        assert entry is not None
        assert door.reckon(entry, f"gateway login1/{user}")
        entry.useful = True
    third = door.enter("10.0.0.1", lambda: None)
    assert third is not None
    assert not door.reckon(third, "gateway login1/ann")
    assert door.reckon(third, "gateway login1/bob")
    for _ in range(2):  # the address has all of its own still
        assert door.enter("10.0.0.1", lambda: None) is not None
    door.leave(third)
    assert door.reckon(third, "gateway login1/ann")  # over by now
    assert (len(door), dropped) == (5, [])


def test_large_requests_and_unread_answers_have_bounds() -> None:
    kib = 1024
    door = Door(Limits(bodies=500 * kib, bodies_of_one=300 * kib, unread=500 * kib, unread_of_one=300 * kib))
    ann, other, bob = (door.enter(who, lambda: None) for who in ("ann", "ann", "bob"))
    assert ann is not None
    assert other is not None
    assert bob is not None
    assert door.hold(ann, 290 * kib)
    assert not door.hold(other, 150 * kib), "ann's are full"
    assert door.hold(other, 60 * kib), "there is always room for a small one"
    assert door.hold(bob, 140 * kib)
    assert not door.hold(bob, 20 * kib), "all are full"
    door.release(ann)
    assert door.hold(bob, 20 * kib)
    assert door.wait(ann, 250 * kib)
    assert not door.wait(other, 100 * kib)
    assert door.wait(other, 0)
    assert door.reckon(ann, "gateway login1/ann")
    assert door.wait(other, 100 * kib), "those are another's now"
    assert not door.wait(bob, 200 * kib), "all are full"
    for one in (ann, other, bob):
        door.leave(one)
    assert (door._bodies.all, door._unread.all, len(door)) == (0, 0, 0)
    assert not door._bodies.of
    assert not door._unread.of


def test_an_endless_head_is_refused(api: Api) -> None:
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(20)
        plain.connect(str(api.socket))
        plain.sendall(b"GET /v1/jobs HTTP/1.1\r\n")
        answer = b""
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                plain.sendall(b"X-Filler: " + b"x" * 4000 + b"\r\n")
        with contextlib.suppress(ConnectionError):
            answer = plain.recv(100)
        assert answer.startswith(b"HTTP/1.1 431 ") or answer == b""
    with api.client() as client:
        client.jobs()


def test_a_body_that_is_too_large_is_refused(api: Api) -> None:
    before = api.counts()
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(20)
        plain.connect(str(api.socket))
        plain.sendall(
            b"POST /v1/commands/qsub HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 99999999\r\n\r\n"
        )
        with contextlib.suppress(ConnectionError):
            plain.sendall(b" " * 20_000_000)
        assert plain.recv(100).startswith(b"HTTP/1.1 413 ")
    assert api.counts() == before


class Crowd:
    """``many`` connections from as many addresses: one of eleven is slow, the others are idle.

    Every second one of either kind never ends its handshake: the idle ones say nothing, the slow ones begin a
    ClientHello. The rest of the slow ones begin a request.
    """

    _BEGUN = b"\x16\x03\x01\x02\x00\x01\x00"  # of a record that would hold a ClientHello of 508 bytes

    def __init__(self, api: Api, many: int, stack: contextlib.ExitStack) -> None:
        self._context = ssl.create_default_context(cafile=str(api.ca))
        self._target = address_of(api)
        self._slow: list[socket.socket] = []
        for number in range(many):
            connection = stack.enter_context(socket.socket())
            connection.bind((f"127.0.{1 + number // 200}.{1 + number % 200}", 0))
            connection.connect(self._target)
            self._begin(stack, connection, slow=number % 11 == 0, ends_handshake=number % 2 == 0)

    def _begin(
        self, stack: contextlib.ExitStack, connection: socket.socket, *, slow: bool, ends_handshake: bool
    ) -> None:
        if ends_handshake:
            connection = stack.enter_context(
                self._context.wrap_socket(connection, server_hostname="127.0.0.1")
            )
        if slow:
            connection.sendall(b"GET /v1/jobs HTTP/1.1\r\nX-Slow: " if ends_handshake else self._BEGUN)
            self._slow.append(connection)

    def drip(self) -> None:
        """One more byte from each slow one that is still there."""
        for connection in self._slow:
            with contextlib.suppress(OSError):
                connection.sendall(b"x")


@pytest.mark.alone
def test_a_crowd_of_idle_and_slow_connections_does_not_keep_others_out(
    api: Api, crowd: contextlib.ExitStack
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, CROWD + 1000), hard))
    crowd.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
    token = api.token_of("ann")
    before = resident(api.process.pid)
    others = Crowd(api, CROWD, crowd)
    held = held_by(api)
    took = []
    for _ in range(20):
        others.drip()
        began = time.monotonic()
        api.qsub()
        took.append(time.monotonic() - began)
    with Client(url=api.url, ca=api.ca, token=token) as over_tls:
        over_tls.jobs()
    grown = resident(api.process.pid) - before
    print(
        f"qsub among {CROWD} connections ({held} held): median {sorted(took)[10]:.3f} s,"
        f" longest {max(took):.3f} s; grown by {grown >> 20} MiB"
    )
    assert sorted(took)[10] <= 0.2
    assert grown < 400 << 20  # as many as the door takes, whatever comes


def test_one_user_does_not_take_all_places(api: Api, crowd: contextlib.ExitStack) -> None:
    for _ in range(1200):
        plain = crowd.enter_context(socket.socket(socket.AF_UNIX))
        plain.connect(str(api.socket))
    with api.client() as client:
        client.jobs()

    wait_until(
        lambda: held_by(api) < 1150, "idle connections beyond the limit are gone", show=lambda: held_by(api)
    )
