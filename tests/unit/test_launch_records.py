"""The journal and the tables of ranks."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import queue
import shutil
import socket
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hpcmesos.launch import protocol
from hpcmesos.launch.channel import Channel
from hpcmesos.launch.journal import Journal
from hpcmesos.launch.steps import Steps, checked


def record(name: str, **more: Any) -> dict[str, Any]:
    return {"spec": {"attempt": name}, **more}


def test_journal_is_read_back_and_continued(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.create("1.h#1", record("1.h#1")).append({"phase": "running"})
    again = Journal(str(tmp_path))
    assert again.load() == {"1.h#1": [record("1.h#1"), {"phase": "running"}]}
    again.reopen("1.h#1").end({"event": "ended"})
    assert Journal(str(tmp_path)).load() == {
        "1.h#1": [record("1.h#1"), {"phase": "running"}, {"event": "ended"}]
    }
    assert again.identity == journal.identity


def test_damage_costs_the_lines_that_it_hits(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    for number in (1, 2, 3):
        journal.create(f"{number}.h#1", record(f"{number}.h#1")).append({"phase": "running"})
    file = next(tmp_path.glob("*.journal"))
    content = file.read_bytes()
    hit = content.index(b"2.h#1")
    file.write_bytes(content[:hit] + bytes(5) + content[hit + 5 :])
    again = Journal(str(tmp_path))
    assert again.load() == {name: [record(name), {"phase": "running"}] for name in ("1.h#1", "3.h#1")}
    assert again.identity != journal.identity
    again.create("4.h#1", record("4.h#1"))
    assert set(Journal(str(tmp_path)).load()) == {"1.h#1", "3.h#1", "4.h#1"}


@pytest.mark.parametrize("missing", [1, 5, 30])
def test_a_record_that_is_torn_is_dropped_and_written_anew(tmp_path: Path, missing: int) -> None:
    Journal(str(tmp_path)).create("1.h#1", record("1.h#1")).append({"phase": "running"})
    file = next(tmp_path.glob("*.journal"))
    os.truncate(file, len(file.read_bytes().rstrip(b"\0")) - missing)
    again = Journal(str(tmp_path))
    assert again.load()["1.h#1"][0] == record("1.h#1")
    again.reopen("1.h#1").end({"event": "ended"})
    records = Journal(str(tmp_path)).load()["1.h#1"]
    assert (records[0], records[-1]) == (record("1.h#1"), {"event": "ended"})


def test_a_journal_that_was_removed_has_another_identity(tmp_path: Path) -> None:
    before = Journal(str(tmp_path / "journal")).identity
    assert Journal(str(tmp_path / "journal")).identity == before
    shutil.rmtree(tmp_path / "journal")
    assert Journal(str(tmp_path / "journal")).identity != before


@pytest.mark.parametrize("left", [0, 10, 80])
def test_a_journal_that_was_torn_has_another_identity(tmp_path: Path, left: int) -> None:
    journal = Journal(str(tmp_path))
    journal.create("1.h#1", record("1.h#1")).append({"phase": "running"})
    os.truncate(next(tmp_path.glob("*.journal")), left)
    again = Journal(str(tmp_path))
    again.load()
    assert again.identity != journal.identity


def test_what_is_forgotten_stays_forgotten_however_often_files_are_used(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    lasting = journal.create("1.h#1", record("1.h#1", text="y" * 5000))
    lasting.append({"phase": "running"})
    for number in range(2, 1500):
        name = f"{number}.h#1"
        journal.create(name, record(name, text="x" * 50_000)).end({"event": "ended"})
        journal.remove(name)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 12 * 4 * 1024 * 1024
    assert Journal(str(tmp_path)).load() == {
        "1.h#1": [record("1.h#1", text="y" * 5000), {"phase": "running"}]
    }
    journal.remove("1.h#1")
    assert Journal(str(tmp_path)).load() == {}


@pytest.mark.parametrize("written", [1, 2])
def test_a_move_of_lines_that_was_cut_off_loses_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """``written``: of the three lines of an attempt, those that are moved before the disk is full; twice."""
    journal = Journal(str(tmp_path))
    lasting = journal.create("1.h#1", record("1.h#1"))
    lasting.append({"phase": "running"})
    lasting.end({"event": "ended", "code": 0})
    append, moved = journal.append, list[bytes]()
    cut_off = 0

    def full(attempt: str, line: bytes, keep: bool = True) -> None:
        nonlocal cut_off
        if line in lasting.lines:
            if len(moved) == written:
                moved.clear()
                cut_off += 1
                raise OSError(errno.ENOSPC, "full")
            moved.append(line)
        append(attempt, line, keep)

    monkeypatch.setattr(journal, "append", full)
    number = 2
    while cut_off < 2:
        name, number = f"{number}.h#1", number + 1
        journal.create(name, record(name, text="x" * 50_000)).end({"event": "ended"})
        journal.remove(name)
    expected = [record("1.h#1"), {"phase": "running"}, {"event": "ended", "code": 0}]
    again = Journal(str(tmp_path))
    assert again.load()["1.h#1"] == expected
    again.remove("1.h#1")
    assert "1.h#1" not in Journal(str(tmp_path)).load()


def test_what_was_written_between_two_moves_that_were_cut_off_counts(tmp_path: Path) -> None:
    """Files as two full disks leave them: the end came after the first cut."""
    spec, running = record("1.h#1"), {"phase": "running"}
    end = {"event": "ended", "code": 0}

    def lines(number: int, *records: dict[str, Any]) -> None:
        texts = [json.dumps({"attempt": "1.h#1", "record": one}) for one in records]
        (tmp_path / f"{number:012}.journal").write_text("".join(f"{number} {text}\n" for text in texts))

    lines(1, spec, running)
    lines(2, spec, end)
    assert Journal(str(tmp_path)).load()["1.h#1"] == [spec, running, end]
    lines(3, spec, running)
    assert Journal(str(tmp_path)).load()["1.h#1"] == [spec, running, end]
    again = Journal(str(tmp_path))
    again.load()
    again.remove("1.h#1")
    assert Journal(str(tmp_path)).load() == {}


def test_room_that_an_earlier_shepherd_kept_is_counted_once(tmp_path: Path) -> None:
    def attempts(journal: Journal, first: int, count: int) -> None:
        for number in range(first, first + count):
            journal.create(f"{number}.h#1", record(f"{number}.h#1"))

    attempts(Journal(str(tmp_path)), 1, 100)
    again = Journal(str(tmp_path))
    again.load()
    attempts(again, 101, 100)
    kept = [path for path in tmp_path.iterdir() if path.suffix in (".journal", ".spare")]
    assert sum(path.stat().st_size for path in kept) >= 200 * 64 * 1024


def test_ends_that_come_together_share_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, sync = [], os.fdatasync

    def count(fd: int) -> None:
        synced.append(fd)
        sync(fd)

    async def end(journal: Journal, name: str) -> None:
        journal.create(name, record(name)).end({"event": "ended"})
        await journal.synced()

    async def run() -> None:
        journal = Journal(str(tmp_path))
        await asyncio.gather(*(end(journal, f"{number}.h#1") for number in range(5)))

    monkeypatch.setattr(os, "fdatasync", count)
    asyncio.run(run())
    assert len(synced) == 1


def test_a_slow_disk_holds_up_nothing_but_the_ends_that_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, asked, sync = threading.Event(), queue.SimpleQueue[int](), os.fdatasync

    def slow(fd: int) -> None:
        asked.put(fd)
        assert disk.wait(10)
        sync(fd)

    async def run() -> None:
        journal = Journal(str(tmp_path))
        journal.create("1.h#1", record("1.h#1")).end({"event": "ended"})
        first = asyncio.create_task(journal.synced())
        await asyncio.to_thread(asked.get, timeout=10)
        for number in range(2, 200):  # more than a file holds
            name = f"{number}.h#1"
            journal.create(name, record(name, text="x" * 50_000)).end({"event": "ended"})
            journal.remove(name)
        journal.remove("1.h#1")
        later = [asyncio.create_task(journal.synced()) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in (first, *later))
        disk.set()
        await asyncio.gather(first, *later)
        files = [asked.get_nowait() for _ in range(asked.qsize())]
        assert len(files) == len(set(files)), "they share one sync"
        journal.create("200.h#1", record("200.h#1"))

    monkeypatch.setattr(os, "fdatasync", slow)
    asyncio.run(run())
    assert Journal(str(tmp_path)).load() == {"200.h#1": [record("200.h#1")]}


def test_who_waits_for_a_sync_that_fails_hears_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = True

    def broken(fd: int) -> None:
        if failing:
            raise OSError(errno.EIO, "broken")

    async def run() -> None:
        nonlocal failing
        journal = Journal(str(tmp_path))
        journal.create("1.h#1", record("1.h#1")).end({"event": "ended"})
        with pytest.raises(OSError, match="broken"):
            await journal.synced()
        failing = False
        await journal.synced()

    monkeypatch.setattr(os, "fdatasync", broken)
    asyncio.run(run())


def test_where_no_thread_can_be_started_ends_are_on_the_disk_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    answers = [None, OSError(errno.EIO, "broken"), None]

    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def note(fd: int) -> None:
        synced.append(fd)
        if error := answers.pop(0):
            raise error

    async def run() -> None:
        journal = Journal(str(tmp_path))
        entry = journal.create("1.h#1", record("1.h#1"))
        entry.end({"event": "ended"})
        await asyncio.wait_for(asyncio.gather(journal.synced(), journal.synced()), 10)
        assert len(synced) == 1
        entry.end({"event": "ended"})
        with pytest.raises(OSError, match="broken"):
            await asyncio.wait_for(journal.synced(), 10)
        await asyncio.wait_for(journal.synced(), 10)
        assert len(synced) == 3, "what a sync has failed for is dirty"

    monkeypatch.setattr(threading.Thread, "start", none_left)
    monkeypatch.setattr(os, "fdatasync", note)
    asyncio.run(run())


def test_a_full_disk_cannot_lose_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(str(tmp_path))
    names = [f"{number}.h#1" for number in range(100)]
    entries = [journal.create(name, record(name)) for name in names]
    sizes = {path.stat().st_ino: path.stat().st_size for path in tmp_path.iterdir()}
    write = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        room = data[: max(0, sizes[os.fstat(fd).st_ino] - offset)]
        if not room:
            raise OSError(errno.ENOSPC, "full")
        return write(fd, room, offset)

    def nothing_left(fd: int, offset: int, size: int) -> None:
        if offset + size > os.fstat(fd).st_size:
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(os, "posix_fallocate", nothing_left)
    for code, entry in enumerate(entries):
        entry.end({"event": "ended", "code": code, "stdout_tail": "x" * 150_000})
    found = Journal(str(tmp_path)).load()
    assert [found[name][-1]["code"] for name in names] == list(range(100))
    with pytest.raises(OSError, match="full"):
        for number in range(100, 1000):
            journal.create(f"{number}.h#1", record(f"{number}.h#1"))


def test_first_failed_is_the_earliest_that_we_did_not_kill() -> None:
    steps = Steps(0)
    step = steps.begin(["mpiexec", "a"], print)
    for rank in range(4):
        steps.rank({"step": step, "rank": rank, "gpus": [f"g{rank}"]}, "n1")
    steps.rank_end({"step": step, "rank": 0, "code": 0, "signal": None}, "n1")
    steps.rank_end({"step": step, "rank": 1, "code": None, "signal": 9, "vanished": True}, "n1")
    steps.rank_end({"step": step, "rank": 2, "code": 3, "signal": None}, "n1")
    steps.closing = True
    steps.rank_end({"step": step, "rank": 3, "code": None, "signal": 15}, "n1")
    answer = asyncio.run(steps.end(step, 255))
    assert (answer["first_failed"]["rank"], answer["first_failed"]["gpu"]) == (2, "g2")
    ranks, launches = steps.tables()
    assert [(r["code"], r["signal"]) for r in ranks] == [(0, None), (None, 9), (3, None), (None, 15)]
    assert launches == [{"step": "0.1", "command": ["mpiexec", "a"], "code": 3, "first_failed": 2}]


def test_what_a_rank_said_before_its_launcher_killed_it_stays() -> None:
    """And a launch that failed for another reason than its first failing rank has a code of its own."""
    steps = Steps(0)
    step = steps.begin(["a"], print)
    steps.rank_end({"step": step, "rank": 1, "code": 7, "signal": None}, "n1")
    steps.rank_end({"step": step, "rank": 1, "code": None, "signal": 9, "vanished": True}, "n1")
    answer = asyncio.run(steps.end(step, 143, by_rank=False))
    assert (answer["first_failed"]["rank"], answer["first_failed"]["code"]) == (1, 7)
    assert steps.tables()[1][0]["code"] == 143


def test_a_failed_launch_waits_for_the_report_of_the_rank() -> None:
    async def late() -> dict[str, Any]:
        steps = Steps(0)
        step = steps.begin(["a"], print)
        message = {"step": step, "rank": 0, "code": 4, "signal": None}
        asyncio.get_running_loop().call_soon(steps.rank_end, message, "n2")
        return await steps.end(step, 255)

    assert asyncio.run(late())["first_failed"]["code"] == 4


async def ends_of_two(steps: Steps, step: str, *ends: dict[str, Any]) -> dict[str, Any]:
    """The launcher returns 0 while the reports of its two ranks, one on each node, are on their way."""
    for rank in range(2):
        steps.rank({"step": step, "rank": rank, "gpus": []}, f"n{rank}")
    for rank, end in enumerate(ends):
        message = {"step": step, "rank": rank, "code": None, "signal": None} | end
        asyncio.get_running_loop().call_later(0.05 * (rank + 1), steps.rank_end, message, f"n{rank}")
    return await steps.end(step, 0)


def test_a_launch_ends_with_its_ranks() -> None:
    heard: list[str] = []
    steps = Steps(0)
    step = steps.begin(["a"], heard.append)
    answer = asyncio.run(ends_of_two(steps, step, {"code": 0}, {"code": 0}))
    assert (answer["code"], [row["code"] for row in answer["ranks"]], heard) == (0, [0, 0], [])


def test_a_launcher_that_killed_its_ranks_cannot_say_0() -> None:
    heard: list[str] = []
    steps = Steps(0)
    step = steps.begin(["a"], heard.append)
    answer = asyncio.run(ends_of_two(steps, step, {"code": 0}, {"signal": 9, "vanished": True}))
    assert (answer["code"], answer["first_failed"]) == (255, None)
    assert heard == [answer["broken"]] == ["rank 1 (n1) was killed by its launcher"]
    assert steps.tables()[1][0]["code"] == 255


def test_ranks_that_fell_with_others_are_no_reason_of_their_own() -> None:
    steps = Steps(0)
    step = steps.begin(["a"], print)
    answer = asyncio.run(ends_of_two(steps, step, {"signal": 9, "dragged": True}, {"code": 5}))
    assert (answer["code"], answer["first_failed"]["rank"], answer["broken"]) == (5, 1, None)


@pytest.mark.parametrize(("other", "first"), [({"code": 4}, 1), ({"code": 0}, 0)])
def test_a_rank_that_was_told_to_end_is_the_reason_only_if_no_other_is(
    other: dict[str, Any], first: int
) -> None:
    """Open MPI tells near ranks to end sooner than we hear of the far one for which it does."""
    steps = Steps(0)
    step = steps.begin(["a"], print)
    answer = asyncio.run(ends_of_two(steps, step, {"signal": 15, "asked": True}, other))
    assert (answer["code"], answer["first_failed"]["rank"]) == ([143, 4][first], first)
    assert steps.tables()[1][0]["first_failed"] == first


def test_a_rank_that_leaves_waits_for_those_of_its_node() -> None:
    async def leave() -> tuple[float, float]:
        steps = Steps(0)
        for rank, node in enumerate(("n1", "n1", "n2")):
            steps.rank({"step": "0.1", "rank": rank, "gpus": []}, node)
        loop = asyncio.get_running_loop()
        for rank in (0, 1):
            message = {"step": "0.1", "rank": rank, "code": 0, "signal": None}
            loop.call_later(0.1 * rank, steps.rank_end, message, "n1")
        begun = loop.time()
        assert await steps.last_of("0.1", "n1", 10.0)
        alone = loop.time()
        assert not await steps.last_of("0.1", "n2", 0.2)
        return alone - begun, loop.time() - alone

    together, alone = asyncio.run(leave())
    assert 0.1 <= together < 5
    assert 0.2 <= alone < 5


NAN, HUGE = float("nan"), 10**30


@pytest.mark.parametrize(
    "field",
    [
        {"rank": NAN},
        {"rank": HUGE},
        {"rank": "1"},
        {"code": NAN},
        {"code": HUGE},
        {"signal": []},
        {"step": None},
    ],
)
def test_what_a_process_of_a_job_invents_goes_no_further(field: dict[str, Any]) -> None:
    message = {"op": "rank_end", "step": "0.1", "rank": 0, "code": 0, "signal": None} | field
    if field == {"step": None}:
        del message["step"]
    with pytest.raises((ValueError, KeyError)):
        checked(message)


def test_a_report_keeps_what_is_known_of_ranks() -> None:
    message = {"op": "rank", "step": "0.1\udcff", "rank": 2, "gpus": ["g\ud800"], "size": HUGE, "more": [NAN]}
    assert checked(message) == {"op": "rank", "step": "0.1?", "rank": 2, "gpus": ["g?"]}
    with pytest.raises(TypeError):
        checked(message | {"gpus": 5})


def test_an_end_report_fits_into_a_frame_however_much_was_launched() -> None:
    steps = Steps(0, slots=10_000)
    for _ in range(3_000):
        steps.begin(["mpiexec", "\udcff", "x" * 10_000, *"y" * 3_000], print)
    for rank in range(40_000):
        steps.rank({"step": "0.1", "rank": rank, "gpus": ["g" * 40]}, "n1")
    ranks, launches = steps.tables()
    assert ranks[-1]["rank"] == 39_999
    assert launches[-1]["step"] == "0.3000"
    assert launches[-1]["command"][:2] == ["mpiexec", "?"]
    size = len(protocol.message({"ranks": ranks, "steps": launches}))
    assert size < protocol.MAX_FRAME - 1024 * 1024
    assert msgspec.json.decode(protocol.message({"steps": launches})[5:])["steps"] == launches


def test_whatever_a_job_reports_little_of_it_is_kept() -> None:
    steps = Steps(0, slots=1)
    for number in range(12_000):
        steps.rank({"step": f"1.{number}", "rank": 0, "gpus": ["x" * 256] * 256}, "n1")
    ranks, _ = steps.tables()
    assert len(steps._ranks) == 10_064
    assert len(steps._running) == 10_064
    assert max(len(row["gpu"]) for row in ranks) == 1024
    assert ranks[-1]["step"] == "1.11999"
    for number in range(12_000):  # also those of which nothing is known any more
        steps.rank_end({"step": f"1.{number}", "rank": 0, "code": 0, "signal": None}, "n1")
    assert not steps._running


def test_who_does_not_read_is_hung_up() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        channel = Channel(reader, writer)
        channel.most_unread = 1 << 20
        with theirs:
            for _ in range(100):
                channel.send(b"x" * (1 << 16))
            assert writer.is_closing()
            assert channel.sent < 3 << 20

    asyncio.run(scenario())


@pytest.mark.parametrize("starved", [False, True])
def test_a_rank_that_was_killed_for_memory_is_told_so(starved: bool) -> None:
    steps = Steps(0)
    step = steps.begin(["mpiexec", "program"], lambda reason: None)
    steps.rank(checked({"op": "rank", "step": step, "rank": 1}), "node2")
    end = {"op": "rank_end", "step": step, "rank": 1, "signal": 9, "starved": starved}
    steps.rank_end(checked(end), "node2")
    failed = asyncio.run(steps.end(step, 9))["first_failed"]
    assert (failed["rank"], failed.get("starved", False)) == (1, starved)
    assert "starved" not in steps.tables()[0][0], "what travels is as before"
