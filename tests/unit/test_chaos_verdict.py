"""The judge of chaos runs: it must see every kind of broken promise, and no other."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hpcmesos.model import Cause, JobState, Request
from hpcmesos.queue.records import AttemptKey, AttemptRecord, JobRecord, ShareRecord
from tests.chaos import plan, script
from tests.chaos.verdict import Fault, Outcome, Verdict, judge, table

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
PLAN = plan.PlannedJob("j0", 0.0, 2, 1, 1, 1.0, 7, True, "pbsdsh")


def at(seconds: float) -> float:
    return (BEGIN + timedelta(seconds=seconds)).timestamp()


def line(word: str, attempt: int, seconds: float, value: str = "-") -> str:
    return f"{word} 1.hpcm#{attempt} node1 {at(seconds)} {value}"


def job(**changes: Any) -> JobRecord:
    values = dict.fromkeys(JobRecord.__struct_fields__)
    values |= {
        "seq": 1, "state": JobState.COMPLETE, "exit_status": 7, "cause": Cause.APP, "attempt": 1, "comment": "",
        "request": Request(), "ended_at": BEGIN,
    }  # fmt: skip
    return JobRecord(**values | changes)  # type: ignore[arg-type]  # what the judge looks at is there


def attempt(number: int, cause: Cause, seconds: float, culprit: str | None = None) -> AttemptRecord:
    return AttemptRecord(
        key=AttemptKey(1, None, number),
        ended_at=BEGIN + timedelta(seconds=seconds),
        cause=cause,
        culprit=culprit,
    )


def share(number: int, node: str) -> ShareRecord:
    return ShareRecord(attempt=AttemptKey(1, None, number), node=node, position=0, cpus=1, mem=0, slots=1)


GOOD = "\n".join([line("start", 1, 0, "A"), line("part", 1, 1, "A"), line("end", 1, 2, "7")])


def outcome(text: str = GOOD, **changes: Any) -> Outcome:
    found = Outcome(
        PLAN, "1.hpcm", list(script.parse(text)), job(), [attempt(1, Cause.APP, 2)], [share(1, "node1")]
    )
    return replace(found, **changes)


def broken(verdict: Verdict) -> set[str]:
    return {promise for promise, found in verdict.violations.items() if found}


def test_a_job_that_did_what_was_planned_breaks_nothing() -> None:
    verdict = judge([outcome()], [])
    assert verdict.kept
    assert verdict.counts["rerunnable with their own code"] == 1
    assert "every promise was kept" in table(verdict, [], 5, {})


@pytest.mark.parametrize("found", [None, job(state=JobState.RUNNING)])
def test_a_job_that_is_unknown_or_does_not_end_is_lost(found: JobRecord | None) -> None:
    assert "a job lost" in broken(judge([outcome(job=found)], []))


@pytest.mark.parametrize(
    "text",
    [
        f"{GOOD}\n{line('overlap', 1, 1, 'script')}",
        "\n".join([line("start", 1, 0), line("start", 2, 1), line("end", 1, 2, "7"), line("end", 2, 3, "7")]),
        "\n".join([line("start", 1, 0), line("start", 1, 1), line("end", 1, 2, "7")]),
    ],
)
def test_runs_of_one_job_at_the_same_time_are_seen(text: str) -> None:
    number = 2 if "#2" in text else 1
    assert "two runs of a job at once" in broken(judge([outcome(text, job=job(attempt=number))], []))


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (job(exit_status=0, cause=Cause.OK), GOOD),
        (job(), line("start", 1, 0)),
        (job(attempt=2), GOOD),
        (job(exit_status=-1, cause=Cause.SIGNAL), GOOD),
        (job(exit_status=5), GOOD.replace("7", "5")),
    ],
)
def test_a_status_that_the_script_did_not_end_with_is_wrong(found: JobRecord, text: str) -> None:
    assert "a wrong exit status" in broken(judge([outcome(text, job=found)], []))


@pytest.mark.parametrize(
    ("fault", "explained"),
    [
        (Fault("shepherd-kill", at(0), at(1), ("node2",)), True),
        (Fault("host-cut", at(0), at(1), ("node1",)), True),  # one of the two is away, and nobody knows which
        (Fault("shepherd-kill", at(0), at(1), ("node1",)), False),
        (Fault("shepherd-kill", at(-90), at(-80), ("node2",)), False),
        (Fault("shepherd-kill", at(30), at(31), ("node2",)), False),
    ],
)
def test_a_loss_needs_a_fault_that_explains_it(fault: Fault, explained: bool) -> None:
    text = "\n".join([line("start", 1, 0), line("start", 2, 20), line("end", 2, 22, "7")])
    attempts = [attempt(1, Cause.NODE_LOST, 10, "node2"), attempt(2, Cause.APP, 22)]
    shares = [share(1, "node1"), share(1, "node2")]
    found = judge([outcome(text, job=job(attempt=2), attempts=attempts, shares=shares)], [fault])
    assert ("a NODE_LOST without a fault" in broken(found)) is not explained


def test_a_gpu_that_two_jobs_saw_at_once_is_seen() -> None:
    other = "\n".join([line("start", 1, 1.5, "B,A"), line("end", 1, 3, "7")])
    assert "a GPU shared" in broken(judge([outcome(), outcome(other)], []))
    later = other.replace(str(at(1.5)), str(at(2.5)))
    assert "a GPU shared" not in broken(judge([outcome(), outcome(later)], []))


def test_nearly_all_rerunnable_jobs_have_to_end_with_their_own_code() -> None:
    lost = outcome(line("start", 1, 0), job=job(cause=Cause.NODE_LOST, exit_status=-3))
    promise = "rerunnable jobs that did not end with their own code"
    assert promise in broken(judge([lost, *[outcome()] * 50], []))
    assert promise not in broken(judge([lost, *[outcome()] * 150], []))


def test_a_seed_makes_one_plan_with_the_shares_that_are_asked_for() -> None:
    made = plan.make(3, 120.0, 200, 20, ("leader-kill", "agent-kill", "link-cut"))
    assert made == plan.make(3, 120.0, 200, 20, ("leader-kill", "agent-kill", "link-cut"))
    assert made != plan.make(4, 120.0, 200, 20, ("leader-kill", "agent-kill", "link-cut"))
    assert sum(each.gang for each in made.jobs) >= 0.3 * 200
    assert sum(each.long for each in made.jobs) >= 0.2 * 200
    assert sum(each.code != 0 for each in made.jobs) >= 0.2 * 200
    assert sum(each.rerunnable for each in made.jobs) > 100
    assert [sum(fault.kind == kind for fault in made.faults) for kind in ("leader-kill", "link-cut")] == [
        7,
        7,
    ]
    assert all(0 <= fault.at < 120 for fault in made.faults)
