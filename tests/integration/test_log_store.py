"""The log store: pieces in order, whole streams only, within bounds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcmesos.errors import InvalidValue, LogStoreUnavailable
from hpcmesos.master.log_store import LogStore


def content(store: LogStore, attempt: str, stream: str = "stdout") -> bytes | None:
    fd = store.open(attempt, stream)
    if fd is None:
        return None
    with os.fdopen(fd, "rb") as file:
        return file.read()


def test_pieces_make_a_whole_and_a_broken_transfer_goes_on(tmp_path: Path) -> None:
    store = LogStore(tmp_path / "logs")
    assert store.take("1.hpcm#1", "stdout", 0, b"one", 6) == 3
    assert content(store, "1.hpcm#1") is None
    assert store.take("1.hpcm#1", "stdout", 0, b"one", 6) == 3  # it did not hear of that
    assert store.take("1.hpcm#1", "stdout", 4, b"wo", 6) == 3
    other = LogStore(tmp_path / "logs")  # another master
    assert other.take("1.hpcm#1", "stdout", 3, b"two", 6) == 6
    assert store.take("1.hpcm#1", "stdout", 0, b"XXXXXX", 6) == 6  # whole: nothing changes it
    assert content(store, "1.hpcm#1") == b"onetwo"
    assert content(store, "1.hpcm#1", "stderr") is None
    assert store.take("1[7].hpcm#1", "stderr", 0, b"", 0) == 0
    assert content(store, "1[7].hpcm#1", "stderr") == b""


def test_a_stream_beyond_its_bound_ends_with_a_line(tmp_path: Path) -> None:
    store = LogStore(tmp_path / "logs", of_one=4)
    assert store.take("1.hpcm#1", "stdout", 0, b"abcdefgh", 10) == 10
    assert content(store, "1.hpcm#1") == b"abcd\nhpcmesos: 6 more bytes are not kept (log_stream_mib)\n"


def test_the_oldest_makes_room(tmp_path: Path) -> None:
    for number in range(1, 6):
        LogStore(tmp_path / "logs", of_all=32).take(f"{number}.hpcm#1", "stdout", 0, b"x" * 10, 10)
        path = next((tmp_path / "logs").glob(f"*/{number}.*"))
        os.utime(path, (number, number))
    store = LogStore(tmp_path / "logs", of_all=32)
    assert [n for n in range(1, 6) if content(store, f"{n}.hpcm#1")] == [3, 4, 5]


def test_copies_make_room_first_and_what_is_lost_is_told(tmp_path: Path) -> None:
    lost: list[tuple[str, str]] = []
    store = LogStore(tmp_path / "logs", of_all=32, dropped=lambda *one: lost.append(one))
    for number in range(1, 4):
        store.take(f"{number}.hpcm#1", "stdout", 0, b"x" * 10, 10)
        os.utime(next((tmp_path / "logs").glob(f"*/{number}.*")), (number, number))
    store.delivered("2.hpcm#1", "stdout")
    store.take("4.hpcm#1", "stdout", 0, b"x" * 10, 10)  # bytes count at once, by the same process, too
    assert [n for n in range(1, 5) if content(store, f"{n}.hpcm#1")] == [1, 3, 4]
    assert lost == []
    store.take("5.hpcm#1", "stdout", 0, b"x" * 10, 10)
    assert [n for n in range(1, 6) if content(store, f"{n}.hpcm#1")] == [3, 4, 5]
    assert lost == [("1.hpcm#1", "stdout")]


def test_who_has_most_there_makes_room(tmp_path: Path) -> None:
    owners = {1: "ann", 2: "bob", 3: "bob", 4: "bob", 5: "ann"}
    lost: list[str] = []

    def store() -> LogStore:
        return LogStore(
            tmp_path / "logs", of_all=45, dropped=lambda one, _: lost.append(one), owners=lambda jobs: owners
        )

    for number in range(1, 6):
        store().take(f"{number}.hpcm#1", "stdout", 0, b"x" * 10, 10)
        os.utime(next((tmp_path / "logs").glob(f"*/{number}.*")), (number, number))
    assert lost == ["2.hpcm#1"], "bob's oldest, though ann's is older"
    store().take("6.hpcm#1", "stdout", 0, b"x" * 10, 10)
    assert lost == ["2.hpcm#1", "1.hpcm#1"], "both have as much: the first of them"


@pytest.mark.parametrize("attempt", ["../x", "1/../../x", "", ".hidden", "x\0y", "hpcm"])
def test_only_attempts_have_a_place(tmp_path: Path, attempt: str) -> None:
    store = LogStore(tmp_path / "logs")
    with pytest.raises(InvalidValue):
        store.take(attempt, "stdout", 0, b"x", 1)
    with pytest.raises(InvalidValue):
        store.open(attempt, "stdout")
    with pytest.raises(InvalidValue):
        store.take("1.hpcm#1", "../stdout", 0, b"x", 1)
    assert not list(tmp_path.rglob("*"))


def test_a_piece_beyond_the_end_is_refused_and_a_full_disk_is_said(tmp_path: Path) -> None:
    store = LogStore(tmp_path / "logs")
    with pytest.raises(InvalidValue, match="a piece of 3 bytes at 8 of a stream of 10"):
        store.take("1.hpcm#1", "stdout", 8, b"xyz", 10)
    (tmp_path / "logs").write_text("no directory")
    with pytest.raises(LogStoreUnavailable, match="cannot keep output"):
        store.take("1.hpcm#1", "stdout", 0, b"x", 1)
