"""qsub against a real API process: one line with the id, or one clear line and no trace."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from hpcmesos.api_schema import ScheduleRequest, Submission
from hpcmesos.errors import HpcmesosError, InvalidScript, InvalidValue, KeyReused
from hpcmesos.launch import programs
from hpcmesos.model import JobState
from hpcmesos.queue.dependencies import DependencyKind

from .qstub_kit import commands_of

if TYPE_CHECKING:
    from .api_kit import Api

pytest_plugins = ["tests.integration.database_kit", "tests.integration.api_kit"]

SCRIPT = b"#!/bin/sh\necho hello\n"


@pytest.fixture(scope="module", autouse=True)
def four_nodes(api: Api) -> None:
    api.add_nodes(4, gpus=8)


def test_the_id_is_one_line_and_nothing_else_is_said(api: Api) -> None:
    path = api.work / "job.pbs"
    path.write_bytes(b"#!/bin/sh\n#PBS -l nodes=2:gpus=4 -N train\necho hi\n")
    done = api.stub("qsub", str(path))
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert text.endswith(".hpcm\n")
    job = api.store.job(int(text.split(".")[0]))
    assert job is not None
    assert (job.owner, job.name, job.state, job.queue) == (api.me, "train", JobState.QUEUED, "batch")
    assert (job.request.pieces, job.request.gpus) == (2, 8)
    assert api.store.script(job.seq) == path.read_bytes()
    assert job.submission["stdout_template"]["directory"] == str(api.work)


def test_the_script_comes_from_standard_input(api: Api) -> None:
    done = api.stub("qsub", "-N", "piped", stdin=SCRIPT)
    assert (done.returncode, done.stderr) == (0, b"")
    assert api.store.script(int(done.stdout.split(b".")[0])) == SCRIPT


@pytest.mark.skipif(not os.access(programs.STUB, os.X_OK), reason="no C compiler when hpcmesos was installed")
def test_ordinary_answers_are_understood_without_python(api: Api, tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_bytes(SCRIPT)
    commands = commands_of(tmp_path / "bin", api.socket)
    commands.have_for_python("/bin/false")
    from_file = commands.run("qsub", str(tmp_path / "job.sh"), cwd=api.work)
    from_input = commands.run("qsub", "-N", "piped", input=SCRIPT.decode(), cwd=api.work)
    for done in (from_file, from_input):
        assert (done.returncode, done.stderr) == (0, "")
        job = int(done.stdout.split(".")[0])
        assert api.store.script(job) == SCRIPT
        assert commands.run("qstat", str(job)).returncode == 0


def test_a_program_after_two_dashes_needs_no_script(api: Api) -> None:
    done = api.stub("qsub", "--", "/bin/echo", "a b")
    assert (done.returncode, done.stderr) == (0, b"")
    job = api.store.job(int(done.stdout.split(b".")[0]))
    assert job is not None
    assert job.submission["argv"] == ["/bin/echo", "a b"]


def test_variables_are_asked_for_when_they_are_needed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_WORD", "hello")
    monkeypatch.delenv("NOT_SET", raising=False)
    done = api.stub("qsub", "-v", "MY_WORD,NOT_SET,X=1", stdin=SCRIPT)
    assert (done.returncode, done.stderr) == (0, b"")
    job = api.store.job(int(done.stdout.split(b".")[0]))
    assert job is not None
    environment = job.submission["environment"]
    assert (environment["MY_WORD"], environment["X"]) == ("hello", "1")
    assert "NOT_SET" not in environment
    assert environment["PBS_O_WORKDIR"] == str(api.work)


def test_a_retry_makes_one_job_and_another_body_is_refused(api: Api) -> None:
    with api.client() as client:
        before = api.counts()[0]
        first = client.command("qsub", ["-N", "once"], script=SCRIPT, environ={}, cwd="/tmp", key="k1")
        again = client.command("qsub", ["-N", "once"], script=SCRIPT, environ={}, cwd="/tmp", key="k1")
        assert first == again
        assert api.counts()[0] == before + 1
        with pytest.raises(KeyReused):
            client.command("qsub", ["-N", "other"], script=SCRIPT, environ={}, cwd="/tmp", key="k1")


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["-l", "nodes=1:gpus=0.5"], 168, "gpus=1"),
        (["-l", "nodes=99"], 190, "99"),
        (["-l", "nodes=1:gpus=9"], 190, "9 GPUs"),
        (["-q", "nosuch"], 172, "nosuch"),
        (["-q", "closed"], 175, "closed"),
        (["-l", "walltime=1:2:x"], 168, "duration"),
        (["-W", "depend=afterok:999999"], 208, "999999"),
        (["-W", "depend=afterok:1.elsewhere"], 208, "elsewhere"),
        (["-W", "depend=synccount:2"], 208, "one job on many nodes"),
        (["-t", "0-1000000"], 3, "1000000"),
        (["-W", "depend=afterokarray:1[][5]"], 208, "1"),
        (["-I"], 2, "terminal"),
        (["-Y"], 2, "Y"),
        (["-N", "a b"], 168, "-N"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_refused_words(api: Api, argv: list[str], code: int, words: str) -> None:
    before = api.counts()
    done = api.stub("qsub", *argv, stdin=SCRIPT)
    lines = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (code, b"", 1), done.stderr
    assert lines[0].startswith("qsub: ")
    assert words in lines[0]
    assert api.counts() == before


@pytest.mark.parametrize(
    ("script", "words"),
    [(b"#!/bin/sh\n" + b"# padding\n" * 524_288, "large"), (b"#!/bin/sh\necho \0\n", "NUL")],
    ids=["5-MiB", "NUL"],
)
def test_refused_scripts(api: Api, script: bytes, words: str) -> None:
    before = api.counts()
    path = api.work / "refused.sh"
    path.write_bytes(script)
    done = api.stub("qsub", str(path))
    assert (done.returncode, done.stdout) == (1, b"")
    assert len(done.stderr.splitlines()) == 1
    with api.client() as client, pytest.raises(InvalidScript, match=words):
        client.command("qsub", [], script=script, environ={})
    assert api.counts() == before


def test_a_missing_script_is_reported_by_the_stub(api: Api) -> None:
    before = api.counts()
    done = api.stub("qsub", "/no/such/script")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, b"", 1)
    assert api.counts() == before


def test_text_that_no_database_holds_is_refused_in_one_line(api: Api) -> None:
    before = api.counts()
    with api.client() as client:
        for argv, script in (
            (["-N", "a\0b"], SCRIPT),
            (["-v", "X=a\0"], SCRIPT),
            ([], b"#!/bin/sh\n#PBS -A \xff\n"),
        ):
            with pytest.raises(HpcmesosError) as refused:
                client.command("qsub", argv, script=script, environ={})
            assert refused.value.http_status == 400
    assert api.counts() == before


def test_holds_times_and_dependencies_decide_the_first_state(api: Api) -> None:
    parent = api.qsub("-h")
    assert (parent.state, parent.holds) == (JobState.HELD, "u")
    child = api.qsub("-W", f"depend=afterok:{parent.seq}")
    assert (child.state, child.holds) == (JobState.HELD, "d")
    assert [(d.kind, d.seq) for d in child.dependencies] == [(DependencyKind.AFTER_OK, parent.seq)]
    later = api.qsub("-a", "203012312359")
    assert later.state is JobState.WAITING


def test_block_is_gone_on_with_by_the_full_client(api: Api) -> None:
    with api.client() as client:
        reply = client.command("qsub", ["-W", "block=true"], script=SCRIPT, environ={})
    assert reply.then == ["wait", "--exit-status", reply.stdout.strip()]


def test_help_and_version_submit_nothing(api: Api) -> None:
    before = api.counts()
    with api.client() as client:
        assert client.command("qsub", ["--help"]).stdout.startswith("usage: qsub")
        assert client.command("qsub", ["--version"]).stderr.startswith("Version: ")
        assert client.command("qsub", ["--version"], personality="pbspro").stdout.startswith("pbs_version = ")
    assert api.counts() == before


def test_the_schema_describes_the_routes(api: Api) -> None:
    import http.client
    import socket

    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(api.socket))
    connection.request("GET", "/schema/openapi.json")
    schema = json.loads(connection.getresponse().read())
    connection.request("POST", "/v1/commands/qsub", json.dumps({"argv": [1]}))
    refused = connection.getresponse()
    body = json.loads(refused.read())
    connection.close()
    assert "/v1/commands/{name}" in schema["paths"]
    assert (refused.status, body["code"]) == (400, "usage")


def test_more_than_a_program_can_be_given_is_refused(api: Api) -> None:
    environ = {"HOME": "/", **{f"V{number}": "x" * 100_000 for number in range(30)}}
    with api.client() as client:
        with pytest.raises(InvalidValue, match="environment and words of the job have 3"):
            client.command("qsub", ["-V"], script=b"true\n", cwd="/tmp", environ=environ)
        few = dict(list(environ.items())[:15])
        reply = client.command("qsub", ["-V", "-h"], script=b"true\n", cwd="/tmp", environ=few)
        job = reply.stdout.strip()
        asked = client.command("qalter", ["-v", f"LATER={'y' * 1_000_000}", job])
        assert (asked.code, "at most" in asked.stderr) == (168, True), "nor may it become more"


def test_nobody_has_more_schedules_than_he_may(api: Api) -> None:
    many = "INSERT INTO schedules (owner, name, rule) SELECT %s, 's' || n, '@daily' FROM generate_series(1, 500) n"
    with psycopg.connect(api.database.owner, autocommit=True) as connection:
        connection.execute(many, [api.me])
    wanted = ScheduleRequest(name="one-more", rule="@daily", job=Submission(argv=["--", "true"]))
    with api.client() as client, pytest.raises(InvalidValue, match="has 500 schedules, the most"):
        client.add_schedule(wanted)
