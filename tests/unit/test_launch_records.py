"""The journal and the tables of ranks."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hpcmesos.launch import protocol
from hpcmesos.launch.journal import Journal
from hpcmesos.launch.steps import Steps, checked


def record(name: str, **more: Any) -> dict[str, Any]:
    return {"spec": {"attempt": name}, **more}


def test_journal_is_read_back_and_continued(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    entry = journal.create("1.h#1", record("1.h#1"))
    entry.append({"phase": "running"})
    entry.close()
    again = Journal(str(tmp_path))
    assert again.load() == {"1.h#1": [record("1.h#1"), {"phase": "running"}]}
    entry = again.reopen("1.h#1", again.load()["1.h#1"])
    entry.end({"event": "ended"})
    entry.close()
    assert again.load()["1.h#1"][-1] == {"event": "ended"}
    assert again.identity == journal.identity


def test_a_file_that_was_not_written_to_is_nobodys(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    (tmp_path / "2.h#1.jsonl").write_bytes(bytes(70000))
    entry = journal.create("1.h#1", record("1.h#1"))
    entry.close()
    (tmp_path / "1.h#1.jsonl").rename(tmp_path / "3.h#1.jsonl")  # of an earlier attempt, to be used again
    assert journal.load() == {}
    assert not list(tmp_path.glob("*.jsonl"))


@pytest.mark.parametrize("left", [0, 1, 20])
def test_a_torn_file_still_says_that_its_attempt_was_here(tmp_path: Path, left: int) -> None:
    journal = Journal(str(tmp_path))
    entry = journal.create("1.h#1", record("1.h#1"))
    entry.append({"phase": "running"})
    entry.close()
    os.truncate(tmp_path / "1.h#1.jsonl", left)
    assert Journal(str(tmp_path)).load() == {"1.h#1": []}


def test_a_record_that_is_torn_is_dropped_and_written_anew(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    entry = journal.create("1.h#1", record("1.h#1"))
    entry.append({"phase": "running"})
    entry.close()
    os.truncate(tmp_path / "1.h#1.jsonl", len(b'{"spec":{"attempt":"1.h#1"}}\n') + 5)
    (records,) = Journal(str(tmp_path)).load().values()
    assert records == [record("1.h#1")]
    entry = journal.reopen("1.h#1", records)
    entry.end({"event": "ended"})
    entry.close()
    assert journal.load() == {"1.h#1": [record("1.h#1"), {"event": "ended"}]}


def test_nothing_is_written_after_the_close(tmp_path: Path) -> None:
    entry = Journal(str(tmp_path)).create("1.h#1", record("1.h#1"))
    entry.close()
    with (tmp_path / "other").open("w"):  # has the number of the file that was closed
        for write in (entry.append, entry.end):
            with pytest.raises(OSError):
                write({"event": "ended"})
        with pytest.raises(OSError):
            entry.close()
    assert not (tmp_path / "other").read_bytes()


def test_a_journal_that_was_removed_has_another_identity(tmp_path: Path) -> None:
    before = Journal(str(tmp_path / "journal")).identity
    assert Journal(str(tmp_path / "journal")).identity == before
    shutil.rmtree(tmp_path / "journal")
    assert Journal(str(tmp_path / "journal")).identity != before


def test_a_file_used_again_shows_nothing_of_its_past(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    entry = journal.create("1.h#1", record("1.h#1", text="x" * 5000))
    entry.end({"event": "ended"})
    entry.close()
    journal.remove("1.h#1")
    assert journal.load() == {}
    entry = journal.create("2.h#1", record("2.h#1"))
    entry.close()
    assert Journal(str(tmp_path)).load() == {"2.h#1": [record("2.h#1")]}
    assert len(list(tmp_path.glob("*.jsonl"))) == 1


def test_a_full_disk_cannot_lose_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(str(tmp_path))
    entry = journal.create("1.h#1", record("1.h#1"))
    size, write = (tmp_path / "1.h#1.jsonl").stat().st_size, os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        room = data[: max(0, size - offset)]
        if not room:
            raise OSError(errno.ENOSPC, "full")
        return write(fd, room, offset)

    monkeypatch.setattr(os, "pwrite", full)
    entry.end({"event": "ended", "code": 3, "stdout_tail": "x" * 100_000})
    entry.close()
    assert journal.load()["1.h#1"][-1] == {"event": "ended", "code": 3}


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
    answer = asyncio.run(steps.end(step, 255, 0.0))
    assert (answer["first_failed"]["rank"], answer["first_failed"]["gpu"]) == (2, "g2")
    ranks, launches = steps.tables()
    assert [(r["code"], r["signal"]) for r in ranks] == [(0, None), (None, 9), (3, None), (None, 15)]
    assert launches == [{"step": "0.1", "command": ["mpiexec", "a"], "code": 255, "first_failed": 2}]


def test_a_failed_launch_waits_for_the_report_of_the_rank() -> None:
    async def late() -> dict[str, Any]:
        steps = Steps(0)
        step = steps.begin(["a"], print)
        message = {"step": step, "rank": 0, "code": 4, "signal": None}
        asyncio.get_running_loop().call_soon(steps.rank_end, message, "n2")
        return await steps.end(step, 255, 5.0)

    assert asyncio.run(late())["first_failed"]["code"] == 4


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
    steps = Steps(0)
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
