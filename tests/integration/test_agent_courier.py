"""The courier: output reaches the log store however long masters are away, and whatever becomes of the spool."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from hpcmesos.agent import courier
from hpcmesos.agent.courier import Courier
from hpcmesos.config import AgentSettings
from hpcmesos.errors import LogStoreUnavailable
from hpcmesos.master.log_store import LogStore
from tests.integration.unix_api_kit import answering

ATTEMPT = "7.hpcm#1"
ENDED = {"event": "ended", "attempt": ATTEMPT, "head": True, "undelivered": "kept on node1", "delivered": []}
FORGET = {"op": "forget", "attempt": ATTEMPT}


class Master:
    """A log store that is asked as over the API; ``before``: called with each offset."""

    def __init__(self, store: LogStore) -> None:
        self.store = store
        self.before: Callable[[int], None] = lambda offset: None

    def answer(self, method: str, path: str, data: bytes) -> tuple[int, bytes]:
        parts = urlsplit(path)
        _, _, attempt, stream = parts.path.strip("/").split("/")
        numbers = {key: int(float(value[0])) for key, value in parse_qs(parts.query).items()}
        offset, total = numbers["offset"], numbers["total"]
        try:
            self.before(offset)
            return 200, json.dumps(
                {"have": self.store.take(unquote(attempt), stream, offset, data, total)}
            ).encode()
        except LogStoreUnavailable as error:
            return error.http_status, json.dumps({"code": error.code, "message": str(error)}).encode()


@pytest.fixture
def settings(tmp_path: Path) -> AgentSettings:
    spool = tmp_path / "attempts" / ATTEMPT
    spool.mkdir(parents=True)
    (spool / "stdout").write_bytes(b"text")
    return AgentSettings(node="node1", master=f"unix:{tmp_path}/api", state=tmp_path, sockets=tmp_path)


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Callable[[], Master]]:
    """Starts it."""
    with ExitStack() as stack:

        def start() -> Master:
            made = Master(LogStore(tmp_path / "logs"))
            stack.enter_context(answering(tmp_path / "api", made.answer))
            return made

        yield start


def content(tmp_path: Path) -> bytes | None:
    path = tmp_path / "logs" / "007" / f"{ATTEMPT}.stdout"
    return path.read_bytes() if path.exists() else None


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def carry(settings: AgentSettings, told: list[dict[str, Any]]) -> None:
    """The courier hears of an end and is told to forget it; until it has passed that on, into ``told``."""
    carrying = Courier(settings, lambda event: None, told.append)
    carrying.holds(dict(ENDED))
    assert carrying.keeps(dict(FORGET))
    await until(lambda: bool(told))
    carrying.close()


def test_masters_may_be_away_longer_than_a_transfer_is_tried(
    tmp_path: Path,
    settings: AgentSettings,
    master: Callable[[], Master],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(courier, "_GIVE_UP", 0.3)
    told: list[dict[str, Any]] = []

    async def scenario() -> None:
        carrying = Courier(settings, lambda event: None, told.append)
        carrying.holds(dict(ENDED))
        since = time.monotonic()
        await until(lambda: time.monotonic() > since + 1)  # longer than that
        started = master()
        assert carrying.keeps(dict(FORGET))
        await until(lambda: bool(told))
        assert started.store.open(ATTEMPT, "stdout") is not None
        carrying.close()

    asyncio.run(scenario())
    assert (told, content(tmp_path)) == ([FORGET], b"text")


def test_what_no_log_store_takes_is_forgotten_some_time_after_the_leader_says_so(
    settings: AgentSettings, master: Callable[[], Master], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "_GIVE_UP", 0.3)
    told: list[dict[str, Any]] = []

    def full(offset: int) -> None:
        raise LogStoreUnavailable("no space")

    master().before = full
    asyncio.run(carry(settings, told))
    assert told == [FORGET]


@pytest.mark.parametrize("left", [0, 3, 11])
def test_a_spool_that_shrinks_on_its_way_ends_where_it_ends(
    tmp_path: Path,
    settings: AgentSettings,
    master: Callable[[], Master],
    monkeypatch: pytest.MonkeyPatch,
    left: int,
) -> None:
    monkeypatch.setattr(courier, "_PIECE", 10)
    spool = tmp_path / "attempts" / ATTEMPT / "stdout"
    spool.write_bytes(b"0123456789abcdefghij")
    told: list[dict[str, Any]] = []

    def cut(offset: int) -> None:
        with spool.open("r+b") as file:
            file.truncate(left)

    master().before = cut
    asyncio.run(carry(settings, told))
    assert content(tmp_path) == (b"0123456789a" if left == 11 else b"0123456789")


def test_a_spool_that_was_cut_before_a_transfer_goes_on_begins_again(
    tmp_path: Path, settings: AgentSettings, master: Callable[[], Master]
) -> None:
    started = master()
    started.store.take(ATTEMPT, "stdout", 0, b"older, and longer", 100)
    told: list[dict[str, Any]] = []

    asyncio.run(carry(settings, told))
    assert content(tmp_path) == b"text"
