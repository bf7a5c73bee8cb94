"""Hostile input: names and texts that break lines, terminals and records; paths; SQL; what is too large."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from hpcmesos.master import api as api_module
from hpcmesos.master import auth
from hpcmesos.master.services import logs, replies
from hpcmesos.pbs import submission
from hpcmesos.queue import accounting
from tests.security.api_stage import OPERATOR, STRANGER, VICTIM, ApiStage
from tests.security.cases import Case, Told, Try, both, check, known_by, replaced

RED = "\x1b[31m"


def qsub(*words: str, script: bytes = b"true\n") -> Try[ApiStage]:
    return lambda stage: stage.command(STRANGER, "qsub", *words, script=script)


def json_post(path: str, body: bytes, wanted: Callable[[int, str], bool], **headers: str) -> Try[ApiStage]:
    def run(stage: ApiStage) -> Told:
        given = {"Content-Type": "application/json", **headers}
        status, text = stage.request("POST", path, body, given, stage.token(STRANGER))
        return Told(wanted(status, text), text)

    return run


def broken(status: int, text: str) -> bool:
    return status >= 500


def fine(status: int, text: str) -> bool:
    return status < 300


COMMAND = {"argv": ["-N", "kept"], "script": "dHJ1ZQo=", "cwd": "/tmp", "environ": {"HOME": "/"}}


def command(**changes: Any) -> bytes:
    return json.dumps({**COMMAND, **changes}).encode()


# --- lines, terminals, records


def shows(text: str, *words: str) -> Try[ApiStage]:
    """A control character reaches the terminal of the operator who looks at a job."""

    def run(stage: ApiStage) -> Told:
        job = stage.submit(stage.client(STRANGER), "-v", f"X={text or 'kept'}")
        told = stage.command(OPERATOR, *words, job)
        return Told(told.done if not text else text in told.said, "" if text else told.said)

    return run


def complaint(stage: ApiStage) -> Told:
    told = stage.command(STRANGER, "qstat", f"{RED}1")
    return Told(RED in told.said, told.said)


def accounted(account: str) -> Try[ApiStage]:
    """A line of accounting that says what the user wants it to say."""

    def run(stage: ApiStage) -> Told:
        job = stage.api.store.job(int(stage.own.split(".")[0]))
        assert job is not None
        job = replace(job, submission={**job.submission, "account": account})
        lines = str(accounting.started(job, (), datetime.now(UTC))).splitlines()
        fields = [word.partition("=")[::2] for word in lines[0].split(";", 3)[3].split()]
        forged = len(lines) > 1 or len([key for key, _ in fields if key == "user"]) > 1
        return Told(forged or account == "kept", "" if forged else lines[0])

    return run


# --- paths


def get(path: str, user: str = STRANGER, wanted: Callable[[int, str], bool] = fine) -> Try[ApiStage]:
    def run(stage: ApiStage) -> Told:
        status, text = stage.request("GET", path.replace("JOB", stage.running), token=stage.token(user))
        return Told(wanted(status, text), text)

    return run


def log_of(place: Callable[[Path], Path]) -> Try[ApiStage]:
    """The log of a job that is over, whose owner has put something in place of his output file."""

    def run(stage: ApiStage) -> Told:
        with tempfile.TemporaryDirectory(dir="/tmp") as name:
            directory = Path(name)
            directory.chmod(0o755)
            path = place(directory)
            fd = logs._open_owned(str(path), VICTIM)
            if fd is None:
                return Told(False)
            with open(fd, "rb") as file:
                return Told(file.read() == b"secret", "")

    return run


def linked(directory: Path) -> Path:
    """A link to what the reader may read, and the owner of the job may not."""
    (directory / "private").write_bytes(b"secret")
    (directory / "private").chmod(0o600)
    (directory / "out").symlink_to(directory / "private")
    return directory / "out"


def hard_linked(directory: Path) -> Path:
    (directory / "private").write_bytes(b"secret")
    (directory / "private").chmod(0o600)
    (directory / "out").hardlink_to(directory / "private")
    return directory / "out"


def own(directory: Path) -> Path:
    import pwd

    (directory / "out").write_bytes(b"secret")
    if os.geteuid() == 0:
        os.chown(directory / "out", pwd.getpwnam(VICTIM).pw_uid, -1)
    return directory / "out"


def open_plainly(path: str, owner: str) -> int:
    return os.open(path, os.O_RDONLY)


# --- without a credential


def anonymous(path: str) -> Try[ApiStage]:
    def run(stage: ApiStage) -> Told:
        status, text = stage.request("GET", path)
        return Told(status == 200, text)

    return run


everybody_is_somebody = known_by(lambda request: auth.Caller("ann"))


any_text = both(
    replaced(submission, "check_name", lambda text: text),
    replaced(submission, "check_printable", lambda option, text: text),
)
as_it_is = replaced(api_module, "spelled_out", lambda text: text)

CASES = [
    Case("a line break in a name", qsub("-N", "a\nb"), qsub("-N", "ab"), any_text),
    Case("an escape in a name", qsub("-N", f"a{RED}"), qsub("-N", "ab"), any_text),
    Case("a C1 control in a name", qsub("-N", "a\x9b31m"), qsub("-N", "\u00e4b"), any_text),
    Case("a name written backwards", qsub("-N", "a\u202egpj"), qsub("-N", "ab"), any_text),
    *(
        Case(
            f"a header of a mail by {option}",
            qsub(option, f"{prefix}ann@host\r\nBcc: all"),
            qsub(option, f"{prefix}ann@host"),
            any_text,
        )
        for option, prefix in (("-M", ""), ("-A", ""), ("-P", ""), ("-W", "x="))
    ),
    Case(
        "escapes by qstat -f",
        shows(RED, "qstat", "-f"),
        shows("", "qstat", "-f"),
        as_it_is,
        silent=True,
        harmless=True,
    ),
    Case(
        "escapes by qstat -F dsv",
        shows(RED, "qstat", "-f", "-F", "dsv"),
        shows("", "qstat", "-f", "-F", "dsv"),
        as_it_is,
        silent=True,
        harmless=True,
    ),
    Case(
        "an escape in an error",
        complaint,
        lambda stage: stage.command(STRANGER, "qstat", stage.own),
        both(as_it_is, replaced(replies, "one_line", str)),
    ),
    Case(
        "a line of accounting",
        accounted("x\n01/01/2026 00:00:00;E;1.hpcm;user=eve"),
        accounted("kept"),
        replaced(accounting, "_one_word", str),
    ),
    Case(
        "a field of accounting",
        accounted("x user=eve"),
        accounted("kept"),
        replaced(accounting, "_one_word", str),
    ),
    Case(
        "a log that is a symbolic link",
        log_of(linked),
        log_of(own),
        replaced(logs, "_open_owned", open_plainly),
        silent=True,
    ),
    Case(
        "a log that is another's file",
        log_of(hard_linked),
        log_of(own),
        replaced(logs, "_open_owned", open_plainly),
        silent=True,
    ),
    Case("the metrics, without a credential", anonymous("/metrics"), get("/metrics"), everybody_is_somebody),
    Case("the jobs, without a credential", anonymous("/v1/jobs"), get("/v1/jobs"), everybody_is_somebody),
    Case("the nodes, without a credential", anonymous("/v1/nodes"), get("/v1/nodes"), everybody_is_somebody),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attack(case: Case[ApiStage], stage: ApiStage, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, stage, monkeypatch)


SQL = "x'; DROP TABLE jobs; --"


def test_sql_in_what_users_write_is_text(stage: ApiStage) -> None:
    """Wherever users may write something, and wherever they may ask for something by a text."""
    stage.renew()
    client = stage.client(STRANGER)
    words = ["-A", SQL, "-P", SQL, "-M", "a%b_c\\", "-W", "x=$1:id%s"]
    reply = client.command("qsub", words, script=SQL.encode(), cwd="/tmp", environ={"HOME": "/"}, key=SQL)
    job = stage.api.store.job(int(reply.stdout.split(".")[0]))
    assert job is not None
    submitted = job.submission
    assert (submitted["account"], job.project) == (SQL, SQL)
    before = stage.counts()
    for name, asked in (
        ("qstat", [SQL]),
        ("qstat", ["-u", "x\\'"]),
        ("qselect", ["-N", "x%", "-A", "1=1"]),
        ("qdel", [SQL, f"{job.seq}'"]),
        ("tracejob", [SQL]),
        ("pbsnodes", [SQL]),
        ("qmgr", ["-c", f"list queue {SQL}"]),
        ("qmove", [SQL, f"{job.seq}"]),
    ):
        told = stage.run(client, name, *asked)
        assert len(told.said.splitlines()) <= 3, told.said  # qmgr shows the line and where it is wrong
    for path in (
        "/v1/jobs/1'--",
        "/v1/events?job=1'--",
        "/v1/audit?user=ann'--&job=1",
        "/v1/reservations/x'--",
    ):
        status, text = stage.request("GET", path.replace("'", "%27"), token=stage.token(STRANGER))
        assert 400 <= status < 500, text
    assert stage.counts() == before
