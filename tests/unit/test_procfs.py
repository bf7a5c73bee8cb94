"""Files of /proc that do not come keep nobody; here a FIFO that nobody writes is such a file."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcmesos import procfs
from hpcmesos.launch import enclosure
from tests.e2e.cluster_kit import wait_until


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Processes 1 to 40; every fourth is held by the kernel."""
    monkeypatch.setattr(procfs, "_ROOT", str(tmp_path))
    for pid in range(1, 41):
        (tmp_path / str(pid)).mkdir()
        file = tmp_path / str(pid) / "environ"
        if pid % 4:
            file.write_text(f"A={pid}\0")
        else:
            os.mkfifo(file)
    yield tmp_path

    def all_released() -> bool:
        for pid in range(4, 41, 4):
            release(tmp_path / str(pid) / "environ", b"")
        return not any(procfs._threads.values())

    wait_until(all_released, "no thread is left")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes of which a file has been opened, in this order."""
    found: list[int] = []
    content = procfs._content

    def noted(path: str) -> bytes:
        found.append(int(Path(path).parent.name))
        return content(path)

    monkeypatch.setattr(procfs, "_content", noted)
    return found


def release(fifo: Path, content: bytes) -> None:
    """Whoever waits for it gets ``content``; nothing happens when nobody does."""
    try:
        fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return
    os.write(fd, content)
    os.close(fd)


def test_what_comes_is_told_and_what_does_not_is_named(proc: Path) -> None:
    told = procfs.read_all(range(1, 42), "environ")
    assert {pid for pid, content in told.items() if content is None} == set(range(4, 41, 4))
    assert told[7] == b"A=7\0"
    assert told[41] == b""  # there is no such process


def test_what_does_not_come_is_waited_for_once(proc: Path, opened: list[int]) -> None:
    assert procfs.read(4, "environ") is None
    opened.clear()
    assert procfs.read_all([3, 4, 5], "environ") == {3: b"A=3\0", 4: None, 5: b"A=5\0"}
    assert sorted(opened) == [3, 5]
    release(proc / "4" / "environ", b"")
    wait_until(lambda: not procfs._underway, "nothing is read")
    (proc / "4" / "environ").unlink()
    (proc / "4" / "environ").write_text("A=4\0")
    assert procfs.read(4, "environ") == b"A=4\0"


def test_threads_that_wait_are_not_endlessly_many(
    proc: Path, opened: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(procfs, "_MOST", 4)
    told = procfs.read_all(range(1, 41), "environ")
    assert len([pid for pid in opened if pid % 4 == 0]) <= 4
    assert all(told[pid] is None for pid in range(4, 41, 4))
    assert told[1] == b"A=1\0"


def test_a_user_whose_processes_are_held_keeps_back_his_own_alone(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    monkeypatch.setattr(procfs, "_MOST", 4)
    for pid in range(4, 41, 4):
        os.chown(proc / str(pid), 1234, -1)
    told = procfs.read_all(range(40, 0, -1), "environ")
    assert all(told[pid] == b"A=%d\0" % pid for pid in range(1, 41) if pid % 4)
    assert procfs.read(2, "environ") == b"A=2\0"


@pytest.mark.parametrize("most", [0, 1, 3])
def test_threads_that_cannot_be_started_are_not_waited_for(
    proc: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    start, begun = threading.Thread.start, 0

    def limited(thread: threading.Thread) -> None:
        nonlocal begun
        if begun == most:
            raise RuntimeError("can't start new thread")
        begun += 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    told = procfs.read_all(range(1, 41), "environ")
    assert set(told) == set(range(1, 41))
    assert [pid for pid, content in told.items() if content is not None] == [
        pid for pid in range(1, 4 * most) if pid % 4
    ]


def test_environments_that_no_thread_can_read_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def ask() -> dict[int, list[bytes] | None]:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", none_left)
            return await enclosure.environments([os.getpid()])

    monkeypatch.setattr(enclosure, "_kept_back", set())
    assert asyncio.run(ask()) == {os.getpid(): None}
