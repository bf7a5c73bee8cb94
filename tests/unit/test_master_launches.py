"""Steps and ranks as people and programs see them."""

from __future__ import annotations

from typing import Any

from hpcmesos.master.services import launches
from hpcmesos.model import Cause
from hpcmesos.queue.records import AttemptKey, AttemptRecord


def rank(number: int, code: int | None = 0, signal: int | None = None, at: float = 1.0) -> dict[str, Any]:
    return {
        "step": "0.1",
        "rank": number,
        "node": f"n{number}",
        "code": code,
        "signal": signal,
        "gpu": "G,H",
        "at": at,
    }


def attempt(*ranks: dict[str, Any], first: int | None = None, **changes: Any) -> AttemptRecord:
    step = {"step": "0.1", "command": ["mpiexec", "a b"], "code": 3, "first_failed": first}
    return AttemptRecord(key=AttemptKey(1, None, 1), ranks=ranks, steps=(step,), **changes)


def test_the_first_failed_rank_is_named_with_its_host_and_gpu() -> None:
    failed = attempt(rank(0, 1, at=9.0), rank(1, None, 11, at=2.0), first=1)
    assert launches.first_failed(failed) == {
        "rank": "1",
        "node": "n1",
        "signal": "11",
        "gpu": "G,H",
        "step": "0.1",
    }
    assert launches.first_failed(attempt(rank(0))) == {}
    assert launches.shown_steps(failed, private=True) == (
        {"step": "0.1", "command": "mpiexec 'a b'", "code": "3", "first_failed": "1"},
    )


def test_of_large_jobs_only_failed_ranks_are_listed() -> None:
    ranks = [rank(number, int(number == 70)) for number in range(100)]
    assert len(launches.shown_ranks(attempt(*ranks[:64]))) == 64
    assert [row["rank"] for row in launches.shown_ranks(attempt(*ranks))] == ["70"]


def test_last_lines_only_of_what_failed_by_itself() -> None:
    text = "".join(f"{number}\n" for number in range(30)).encode()
    assert launches.last_lines(attempt(cause=Cause.OK, stderr_tail=text)) is None
    assert launches.last_lines(attempt(cause=Cause.APP)) is None
    shown = launches.last_lines(attempt(cause=Cause.APP, stdout_tail=b"no", stderr_tail=text))
    assert shown == "\n".join(str(number) for number in range(20, 30))
    assert launches.last_lines(attempt(cause=Cause.APP, stdout_tail=b"out\n")) == "out"


def test_for_programs() -> None:
    shown = launches.attempt_status(
        attempt(rank(1, 3), rank(0), first=1, cause=Cause.APP, code=3), ["n0", "n1"]
    )
    (step,) = shown.steps
    assert (shown.number, shown.nodes, shown.cause, shown.code) == (1, ["n0", "n1"], "APP", 3)
    assert (step.command, step.code, step.first_failed) == (["mpiexec", "a b"], 3, 1)
    assert [(each.rank, each.code, each.gpus) for each in step.ranks] == [
        (0, 0, ["G", "H"]),
        (1, 3, ["G", "H"]),
    ]
