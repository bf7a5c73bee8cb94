"""Who is told what of a job, and that nothing a user wrote becomes a header."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from hpcmesos.master import notice_text
from hpcmesos.master.delivery import Delivery, Undelivered
from hpcmesos.model import Cause, JobState, Request
from hpcmesos.queue.notices import MAIL, Notice
from hpcmesos.queue.records import EventRecord, JobRecord

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def job(points: str = "a", users: tuple[str, ...] = (), **changes: Any) -> JobRecord:
    values: dict[str, Any] = {
        "seq": 12,
        "index": None,
        "server": "hpcm",
        "name": "j",
        "owner": "ann",
        "queue": "batch",
        "state": JobState.COMPLETE,
        "priority": 0,
        "request": Request(),
        "holds": "",
        "not_before": None,
        "created_at": NOON,
        "modified_at": NOON,
        "queued_at": NOON,
        "started_at": NOON,
        "ended_at": NOON,
        "exit_status": 0,
        "cause": Cause.OK,
        "comment": "",
        "attempt": 1,
        "charged_attempts": 1,
        "rerunable": True,
        "excluded": (),
        "dependencies": (),
        "submit_host": "login",
        "project": "",
        "submission": {"mail_points": points, "mail_users": list(users)},
    }
    known = JobRecord.__struct_fields__
    return JobRecord(**{name: value for name, value in {**values, **changes}.items() if name in known})


def event(kind: str, source: JobState, target: JobState) -> EventRecord:
    return EventRecord(id=1, at=NOON, seq=12, index=None, kind=kind, source=source, target=target, payload={})


ENDED = event("ended", JobState.RUNNING, JobState.COMPLETE)
STARTED = event("started", JobState.QUEUED, JobState.RUNNING)
FAILED = {"exit_status": 3, "cause": Cause.APP}
KILLED = {"exit_status": -11, "cause": Cause.WALLTIME}


@pytest.mark.parametrize(
    ("points", "begin", "good", "failed", "killed"),
    [
        ("a", False, False, False, True),
        ("b", True, False, False, False),
        ("e", False, True, True, True),
        ("f", False, False, True, True),
        ("abe", True, True, True, True),
        ("n", False, False, False, False),
        ("p", False, False, False, False),
    ],
)
def test_points(points: str, begin: bool, good: bool, failed: bool, killed: bool) -> None:
    def told(what: EventRecord, **changes: Any) -> bool:
        one = job(points, **changes)
        return notice_text.wanted(notice_text.letter(what, one), one)

    assert (told(STARTED), told(ENDED), told(ENDED, **FAILED), told(ENDED, **KILLED)) == (
        begin,
        good,
        failed,
        killed,
    )
    assert not told(ENDED, index=3)
    assert not told(event("held", JobState.QUEUED, JobState.HELD))


@pytest.mark.parametrize(
    ("users", "domain", "expected"),
    [
        ((), "", ["ann@login"]),
        ((), "example.org", ["ann@example.org"]),
        ((), "never", []),
        (("bob@x.org", "bob@x.org", "carl"), "", ["bob@x.org", "carl@login"]),
        (
            ("a b@x.org", "-t", "a\nBcc: x@y.z", "a,b@x.org", '"a"@x.org', "<a@x.org>", "", "\u00e4@x.org"),
            "",
            [],
        ),
        (("=?utf-8?q?=3A?=x@h", "a=?b@x.org", "a=b@x.org"), "", ["a=b@x.org"]),
    ],
)
def test_recipients(users: tuple[str, ...], domain: str, expected: list[str]) -> None:
    assert notice_text.recipients(job(users=users), domain) == expected


def test_a_subject_is_one_line_whatever_it_is_made_of(tmp_path: Any) -> None:
    delivery = Delivery("smtp://127.0.0.1:9", "", "", "", "hpcm")
    bad = Notice(
        channel=MAIL, recipient="a@b.c", content={"subject": "x\nBcc: d@e.f", "text": ""}, created_at=NOON
    )
    with pytest.raises(Undelivered) as failure:
        delivery.send(bad, "s@b.c")
    assert failure.value.for_good


def test_sendmail_gets_the_mail_and_no_options(tmp_path: Any) -> None:
    program, kept = tmp_path / "sendmail", tmp_path / "kept"
    program.write_text(f'#!/bin/sh\necho "$@" > {kept}; cat >> {kept}\n')
    program.chmod(0o755)
    notice = Notice(
        channel=MAIL, recipient="a@b.c", content={"subject": "s", "text": "t\n"}, id=7, created_at=NOON
    )
    Delivery(f"sendmail:{program}", "", "", "", "hpcm").send(notice, "from@b.c")
    first, *rest = kept.read_text().splitlines()
    assert first == "-i -f from@b.c -- a@b.c"
    assert {"From: from@b.c", "To: a@b.c", "Subject: s", "Message-ID: <notice-7@hpcm.hpcmesos>"} <= set(rest)
    program.write_text("#!/bin/sh\nexit 75\n")
    with pytest.raises(Undelivered) as failure:
        Delivery(f"sendmail:{program}", "", "", "", "hpcm").send(notice, "from@b.c")
    assert not failure.value.for_good


def test_a_warning_is_told_unless_nobody_wants_mail() -> None:
    told = replace(
        event("GPUs idle", JobState.RUNNING, JobState.RUNNING), payload={"text": "2 GPUs busy for 0 %"}
    )
    running = job(state=JobState.RUNNING, exit_status=None, cause=None, ended_at=None)
    mail, hook = notice_text.notices(told, running, None, ["n1"], {MAIL: "x.org", "webhook": ""})
    assert "GPUs are idle\n2 GPUs busy for 0 %\n" in mail.content["text"]
    assert (hook.content["event"], hook.content["warning"]) == ("warning", "2 GPUs busy for 0 %")
    assert (hook.content["exit_status"], hook.content["cause"]) == (None, None)
    assert notice_text.notices(told, job("n"), None, [], {MAIL: "x.org"}) == []
