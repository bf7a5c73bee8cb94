"""The commands that users type, against a server that answers as the API does, and as a broken one does: with the
compiled stub before them, and without."""

from __future__ import annotations

import base64
import fcntl
import os
import resource
import signal
import socket
import subprocess
import termios
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hpcmesos.launch import programs

from .qstub_kit import Answer, Commands, Server, commands_of, http, serving
from .shepherd_kit import wait_until

FORMS = ["compiled", "interpreted"]


def form(name: str) -> str:
    """The program that the commands begin with, empty: Python."""
    if name == "interpreted":
        return ""
    if not os.access(programs.STUB, os.X_OK):
        pytest.skip("no C compiler when hpcmesos was installed")
    return programs.STUB


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "api.sock") as server:
        yield server


@pytest.fixture(params=FORMS)
def commands(server: Server, tmp_path: Path, request: pytest.FixtureRequest) -> Commands:
    return commands_of(tmp_path / "bin", server.path, stub=form(request.param))


@pytest.fixture(params=FORMS)
def stub(request: pytest.FixtureRequest) -> str:
    return form(request.param)


def test_a_command_and_its_answer(server: Server, commands: Commands, tmp_path: Path) -> None:
    server.answers = [lambda _: http({"stdout": "Größe\n", "stderr": "warning\n", "code": 35})]
    result = commands.run(
        "qstat",
        "-f",
        "12",
        personality="pbspro",
        cwd=tmp_path,
        umask=0o027,
        env={"HOME": "/h", "SECRET": "x", "TZ": "UTC"},
    )
    assert (result.stdout, result.stderr, result.returncode) == ("Größe\n", "warning\n", 35)
    request = server.requests[0]
    assert len(request.pop("key")) == 32
    assert request == {
        "target": "/v1/commands/qstat",
        "argv": ["-f", "12"],
        "cwd": str(tmp_path),
        "umask": 0o027,
        "host": os.uname().nodename,
        "environ": {"HOME": "/h", "TZ": "UTC"},
        "personality": "pbspro",
    }


def test_the_first_line_names_the_compiled_program_where_it_can(tmp_path: Path, stub: str) -> None:
    commands = commands_of(tmp_path / "bin", tmp_path / "api.sock", stub=stub)
    first = Path(commands.path("qstat")).read_text().splitlines()[0]
    assert first == f"#!{stub}" if stub else first.endswith(" -IS")


@pytest.mark.parametrize("place", ["stub", "a stub", "s" * 127, "no-program"])
def test_a_first_line_that_would_not_do_names_python(tmp_path: Path, place: str) -> None:
    program = tmp_path / place
    if place != "stub":
        program.write_text("no program" if place == "no-program" else "#!/bin/sh\n")
        program.chmod(0o755)
    commands = commands_of(tmp_path / "bin", tmp_path / "api.sock", stub=str(program))
    assert Path(commands.path("qstat")).read_text().splitlines()[0].endswith(" -IS")


def test_a_line_in_a_path_is_no_program(tmp_path: Path, stub: str) -> None:
    odd = tmp_path / "a\nraise"
    odd.mkdir()
    with serving(odd / "s") as server:
        server.answers = [lambda _: http({"stdout": "1\n"})]
        assert commands_of(tmp_path / "bin", server.path, stub=stub).run("qstat").stdout == "1\n"


def asking(complete: Answer, need: dict[str, Any]) -> Answer:
    """Asks for more until it is there: an argument that the test knows."""

    def answer(request: dict[str, Any]) -> bytes:
        return complete(request) or http({"stdout": "", "stderr": "", "code": 0, "need": need, "then": None})

    return answer


def test_script_is_sent_unasked_and_more_when_asked(
    server: Server, commands: Commands, tmp_path: Path
) -> None:
    script = tmp_path / "job.sh"
    script.write_bytes(b"#!/bin/sh\n\xff\n")
    server.answers = [
        asking(
            lambda request: http({"stdout": "12.hpcm\n"}) if request["environ"] else b"",
            {"environ": ["FOO", "MISSING"]},
        )
    ] * 3
    result = commands.run("qsub", "-v", "FOO", str(script), env={"FOO": "bar", "OTHER": "x"})
    assert (result.stdout, result.stderr, result.returncode) == ("12.hpcm\n", "", 0)
    first, last = server.requests[0], server.requests[-1]
    assert base64.b64decode(first["script"]) == base64.b64decode(last["script"]) == script.read_bytes()
    assert first["script_path"] == last["script_path"] == str(script)
    assert (first["environ"], last["environ"]) == ({}, {"FOO": "bar"})
    assert len(server.keys) == 1


@pytest.mark.parametrize("size", [0, 1, 2, 3, 300_000, 1024 * 1024 + 2])
def test_scripts_of_any_size(server: Server, commands: Commands, tmp_path: Path, size: int) -> None:
    script = tmp_path / "job.sh"
    script.write_bytes((bytes(range(256)) * (size // 256 + 1))[:size])
    server.answers = [lambda _: http({"stdout": "1.hpcm\n"})]
    assert commands.run("qsub", str(script)).stdout == "1.hpcm\n"
    sent = base64.b64decode(server.requests[0]["script"])
    assert sent == script.read_bytes()[: 1024 * 1024 + 1], (
        "one byte more than is allowed tells the API enough"
    )


def test_a_directory_at_the_end_of_the_words_is_no_script(
    server: Server, commands: Commands, tmp_path: Path
) -> None:
    server.answers = [lambda _: http({"stdout": "1.hpcm\n"})]
    assert commands.run("qsub", "-d", str(tmp_path)).returncode == 0
    assert "script" not in server.requests[0]


def test_script_from_standard_input(server: Server, commands: Commands) -> None:
    server.answers = [
        asking(
            lambda request: http({"stdout": "1\n"}) if "script" in request else b"",
            {"script": "-", "environ": ["*"]},
        )
    ] * 3
    assert commands.run("qsub", input="echo hi\n", env={"A": "1"}).stdout == "1\n"
    last = server.requests[-1]
    assert base64.b64decode(last["script"]) == b"echo hi\n"
    assert last["environ"]["A"] == "1"
    assert not [name for name in last["environ"] if name.startswith("HPCMESOS_")], "the key is no job's"
    assert len(server.keys) == 1


def test_full_client_follows(server: Server, commands: Commands) -> None:
    server.answers = [lambda _: http({"stdout": "12.hpcm\n", "then": ["wait", "12.hpcm"]})] * 2
    assert commands.run("qsub", "-W", "block=true").stdout == "12.hpcm\nwait 12.hpcm\n"


def test_errors_of_the_server(server: Server, commands: Commands) -> None:
    """Which is not asked again: a limit may count how often."""
    server.answers = [
        lambda _: http({"code": "x", "message": "no such thing", "exit_code": 159}, "403 Forbidden")
    ]
    result = commands.run("qdel", "12")
    assert (result.stderr, result.returncode) == ("qdel: no such thing\n", 159)


def test_a_script_that_comes_late_through_a_pipe_that_does_not_wait(
    server: Server, commands: Commands
) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.write(writer, b"echo hi\n")

    def rest() -> None:
        wait_until(lambda: not fcntl.ioctl(reader, termios.FIONREAD, b"\0\0\0\0").strip(b"\0"), "is read")
        os.write(writer, b"echo there\n")
        os.close(writer)

    need = {"script": "-", "terminal": None, "environ": None, "filter": False}
    server.answers = [
        lambda _: http({"stdout": "", "stderr": "", "code": 0, "need": need, "then": None}),
        lambda _: http({"stdout": "1\n"}),
    ]
    late = threading.Thread(target=rest)
    late.start()
    with open(reader, "rb") as stdin:
        assert commands.run("qsub", stdin=stdin).stdout == "1\n"
    late.join()
    assert base64.b64decode(server.requests[-1]["script"]) == b"echo hi\necho there\n"


def test_a_limit_on_files_is_none_on_commands(server: Server, commands: Commands, tmp_path: Path) -> None:
    server.answers = [lambda _: http({"stdout": "1\n"})]
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))

    assert commands.run("qstat", preexec_fn=limit).stdout == "1\n"
    assert len(server.requests) == 1


def test_a_broken_connection_is_tried_again_with_the_same_key(server: Server, commands: Commands) -> None:
    server.answers = [
        lambda _: b"",
        lambda _: b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{",
        lambda _: (
            b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"std\r\na\r\nout":"ok"}\r\n0\r\n\r\n'
        ),
    ]
    assert commands.run("qsub", "-").stdout == "ok"
    assert len({request["key"] for request in server.requests}) == 1


def test_nothing_is_done_twice(server: Server, commands: Commands, tmp_path: Path) -> None:
    """A server that breaks after it has done what it was asked for knows the key when it is asked again."""
    script = tmp_path / "job.sh"
    script.write_text("true\n")
    server.answers = [lambda _: b"HTTP/1.1 200 OK\r\n", lambda _: http({"stdout": "1.hpcm\n"})]
    assert commands.run("qsub", str(script)).stdout == "1.hpcm\n"
    assert (len(server.requests), len(server.keys)) == (2, 1)


def test_qterm_is_sent_once(server: Server, commands: Commands) -> None:
    server.answers = [lambda _: b""]
    assert commands.run("qterm").returncode == 255
    assert len(server.requests) == 1


def test_each_command_has_a_key_of_its_own(server: Server, commands: Commands) -> None:
    server.answers = [lambda _: http({"stdout": ""})] * 3
    for key in ("", "x" * 32, "../" * 4):
        commands.run("qstat", "é", env={"HPCMESOS_BEGUN_COMMAND": key, "LC_ALL": "C.UTF-8"})
    assert len(server.keys) == 3
    assert all(len(key) == 32 and set(key) <= set("0123456789abcdef") for key in server.keys)


WORDS = ["Größe", "\udcff", 'q"\\', "\n\t\x01\x7f", "", "-"]


@pytest.mark.parametrize("word", WORDS)
def test_any_words(server: Server, commands: Commands, word: str, tmp_path: Path) -> None:
    server.answers = [lambda _: http({"stdout": "1\n"})]
    result = commands.run("qstat", word, cwd=tmp_path, env={"HOME": word, "LC_ALL": "C.UTF-8"})
    assert (result.stdout, result.stderr) == ("1\n", "")
    request = server.requests[0]
    assert (request["argv"], request["environ"]) == ([word], {"HOME": word})


def test_more_words_than_fit_into_a_small_program(server: Server, commands: Commands) -> None:
    server.answers = [lambda _: http({"stdout": "1\n"})]
    words = ["x" * 60_000] * 10
    assert commands.run("qstat", *words).stdout == "1\n"
    assert server.requests[0]["argv"] == words


def test_the_directory_as_the_user_came_there(server: Server, commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    server.answers = [lambda _: http({"stdout": "1\n"})] * 4
    for told in ("link", "there", ".", "nowhere"):
        commands.run("qstat", cwd=tmp_path / "there", env={"PWD": str(tmp_path / told)})
    directories = [request["cwd"] for request in server.requests]
    assert directories == [str(tmp_path / "link"), str(tmp_path / "there"), str(tmp_path / "there"), "/"]


def test_an_answer_in_pieces(server: Server, commands: Commands) -> None:
    text = "".join(map(chr, range(0x250))) + "\U0001f600\n"
    server.piece = 1
    server.answers = [lambda _: http({"stdout": text, "stderr": text, "code": 3, "need": None, "then": None})]
    result = commands.run("qstat", encoding="utf-8", errors="strict")
    universal = text.replace("\r", "\n")
    assert (result.stdout, result.stderr, result.returncode) == (universal, universal, 3)


@pytest.mark.parametrize("name", ["a b", "größe", "-", "#!"])
def test_directories_of_any_name(tmp_path: Path, stub: str, name: str) -> None:
    place = tmp_path / name
    place.mkdir()
    with serving(place / "api sock") as server:
        commands = commands_of(place / "the bin", server.path, stub=stub)
        server.answers = [lambda _: http({"stdout": "1\n"})]
        result = commands.run("qstat", cwd=place, env={"LC_ALL": "C.UTF-8"})
    assert (result.stdout, result.stderr) == ("1\n", "")
    assert server.requests[0]["cwd"] == str(place)


def test_another_master_is_asked(server: Server, tmp_path: Path, stub: str) -> None:
    commands = commands_of(tmp_path / "bin", tmp_path / "nobody.sock", server.path, stub=stub)
    server.answers = [lambda _: http({"stdout": "1\n"})]
    assert commands.run("qstat").stdout == "1\n"


@pytest.mark.full  # 20 s
def test_another_master_is_asked_when_one_is_silent(server: Server, tmp_path: Path) -> None:
    """One that is frozen takes connections, and what is sent, and says nothing; the other one is sent the same key."""
    silent = tmp_path / "silent.sock"
    server.answers = [lambda _: http({"stdout": "1\n"})] * 2
    with ExitStack() as opened:
        frozen = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        frozen.bind(str(silent))
        frozen.listen()
        asked, sent = [], []
        for name in FORMS:
            commands = commands_of(tmp_path / name, silent, server.path, stub=form(name))
            asked.append(subprocess.Popen([commands.path("qstat")], stdout=subprocess.PIPE))
            sent.append(opened.enter_context(frozen.accept()[0]).recv(65536))
        assert [process.communicate(timeout=30)[0] for process in asked] == [b"1\n", b"1\n"]
    assert len(server.keys) == 2
    assert all(any(key.encode() in data for data in sent) for key in server.keys)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(server: Server, commands: Commands, closed: str) -> None:
    """Nothing that is opened may take their place."""
    server.answers = [lambda _: http({"stdout": "1\n"})]
    shell = f'exec "$0" {closed}'
    done = subprocess.run(
        ["sh", "-c", shell, commands.path("qstat")], capture_output=True, text=True, check=False, timeout=60
    )
    assert len(server.requests) == 1
    unwritten = "qstat: cannot write the answer: Bad file descriptor\n"
    if closed == "<&-":
        assert (done.stdout, done.stderr, done.returncode) == ("1\n", "", 0)
    else:
        assert (done.stdout, done.returncode) == ("", 1)
        assert done.stderr == ("" if "2>" in closed else unwritten)


def test_nobody_there(commands: Commands, tmp_path: Path, server: Server) -> None:
    server.path.rename(tmp_path / "elsewhere")
    result = commands.run("qsub", "-N", "x")
    server.path = tmp_path / "elsewhere"
    assert result.returncode == 255
    path = tmp_path / "api.sock"
    assert result.stderr == (
        f"qsub: cannot connect to server ({path}: No such file or directory); is the master running?\n"
    )


def test_a_reader_that_has_seen_enough_ends_it_without_a_word(server: Server, commands: Commands) -> None:
    server.answers = [lambda _: http({"stdout": "line\n" * 100_000})]
    words = [commands.path("qstat")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reading:
        assert reading.stdout is not None and reading.stderr is not None
        assert reading.stdout.readline() == b"line\n"
        reading.stdout.close()
        assert reading.stderr.read() == b""
    assert reading.returncode == -signal.SIGPIPE


def test_an_answer_that_cannot_be_written_is_told(server: Server, commands: Commands) -> None:
    server.answers = [lambda _: http({"stdout": "12.hpcm\n"})]
    with open("/dev/full", "wb") as full:
        words = [commands.path("qstat")]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (1, "qstat: cannot write the answer: No space left on device\n")


def test_an_interrupt_ends_it_without_a_word(server: Server, commands: Commands) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slowly(_: dict[str, Any]) -> bytes:
        asked.set()
        go_on.wait(30)
        return b""

    server.answers = [slowly]
    words = [commands.path("qstat")]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # we may have inherited it as ignored
    try:
        waiting = subprocess.Popen(words, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)
    with waiting:
        try:
            assert asked.wait(30)
            waiting.send_signal(signal.SIGINT)
            assert waiting.stderr is not None
            assert waiting.stderr.read() == b""
        finally:
            waiting.kill()
            go_on.set()
    assert waiting.returncode == -signal.SIGINT


def test_somebody_at_a_terminal_is_told_what_is_waited_for(server: Server, commands: Commands) -> None:
    gone = {"message": "the database does not answer", "exit_code": 255}
    server.answers = [lambda _: http(gone, "503 Service Unavailable")] * 100
    ours, theirs = os.openpty()
    words = [commands.path("qstat")]
    with (
        subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=theirs) as waiting,
        os.fdopen(ours) as terminal,
    ):
        try:
            told = "qstat: the database does not answer; trying again for 30 s\n"
            assert terminal.readline() == told
        finally:
            waiting.kill()
            os.close(theirs)


def test_nobody_is_told_of_tries_that_will_not_be_made(tmp_path: Path, stub: str) -> None:
    """Where what is there is not a master's: it gives up soon."""
    ours, theirs = os.openpty()
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
        os.fdopen(ours, "rb", buffering=0) as terminal,
    ):
        other.bind(str(tmp_path / "sock"))
        words = [commands_of(tmp_path / "bin", tmp_path / "sock", stub=stub).path("qstat")]
        asked = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=theirs, timeout=60, check=False)
        said = terminal.read(65536)
        os.close(theirs)
    assert asked.returncode == 255
    assert said.startswith(b"qstat: cannot connect to server"), said
