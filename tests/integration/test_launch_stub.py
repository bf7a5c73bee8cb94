"""The compiled stub by itself: what it understands without Python, and answers that nobody should send. It is built
here so that it tells of every misuse of memory, and without a warning."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcmesos.launch import programs

from .qstub_kit import Commands, Server, commands_of, http, http_bytes, serving

SOURCES = sorted(Path(programs.STUB).parent.glob("stub*.c"))
CHECKED = ("-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined")
MISUSE = 99
"""Exit code of a program that has misused memory."""
CHECKS = {"ASAN_OPTIONS": f"exitcode={MISUSE}:detect_leaks=0", "UBSAN_OPTIONS": f"exitcode={MISUSE}"}
FULL = {"stdout": 'a "b"\\\n\t\x01\x1fé\x7f', "stderr": "", "code": 7, "need": None, "then": None}
SCRIPT = {"script": "-", "terminal": None, "environ": None, "filter": False}
"""What the API needs of a submission without a script."""


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The compiled one, with sanitizers."""
    program = tmp_path_factory.mktemp("stub") / "stub"
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    subprocess.run(["cc", *CHECKED, "-fno-sanitize-recover=all", "-o", program, *SOURCES], check=True)
    return str(program)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "api.sock") as server:
        yield server


@pytest.fixture
def commands(server: Server, tmp_path: Path, checked: str) -> Commands:
    return commands_of(tmp_path / "bin", server.path, stub=checked)


@pytest.fixture
def alone(commands: Commands) -> Commands:
    """Where the stub would become Python it fails."""
    commands.have_for_python("/bin/false")
    return commands


def test_the_ordinary_case_needs_no_python(server: Server, alone: Commands, tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text("true\n")
    server.answers = [lambda _: http(FULL)] * 2
    for words in (["qstat", "12"], ["qsub", str(tmp_path / "job.sh")]):
        done = alone.run(*words, env=CHECKS | {"HOME": "/h"}, encoding="utf-8")
        assert (done.stdout, done.stderr, done.returncode) == (FULL["stdout"], "", 7)


def test_a_script_from_standard_input_needs_none_either(server: Server, alone: Commands) -> None:
    """Also where a word looked like one."""
    server.answers = [lambda _: http(FULL | {"need": SCRIPT}), lambda _: http(FULL)]
    assert alone.run("qsub", "-S", "/bin/sh", input="true\n", env=CHECKS).returncode == 7
    assert [request["script_path"] for request in server.requests] == ["/bin/sh", "-"]
    assert server.requests[1]["script"] == "dHJ1ZQo="
    assert len(server.keys) == 1


def test_all_variables_need_none_where_they_are_ascii(server: Server, alone: Commands) -> None:
    server.answers = [
        lambda _: http(FULL | {"need": SCRIPT}),
        lambda _: http(FULL | {"need": SCRIPT | {"script": None, "environ": ["*"]}}),
        lambda _: http(FULL),
    ]
    variables = {"A": "b=c\n", "HOME": "/h", "HPCMESOS_BEGUN_COMMAND": "0"}
    assert alone.run("qsub", "-V", input="true\n", env=CHECKS | variables).returncode == 7
    last = server.requests[-1]
    assert (last["script"], len(server.keys)) == ("dHJ1ZQo=", 1)
    assert {name: last["environ"].get(name) for name in variables} == variables | {
        "HPCMESOS_BEGUN_COMMAND": None
    }


def test_of_a_variable_that_is_there_twice_the_first_one_counts(server: Server, alone: Commands) -> None:
    server.answers = [
        lambda _: http(FULL | {"need": SCRIPT | {"script": None, "environ": ["*"]}}),
        lambda _: http(FULL),
    ]
    twice = (
        "import ctypes, os, sys\n"
        "words = (ctypes.c_char_p * 3)(os.fsencode(sys.argv[1]), b'-V', None)\n"
        "variables = (ctypes.c_char_p * 5)(b'A=1', b'AB=3', b'A=2', b'ASAN_OPTIONS=detect_leaks=0', None)\n"
        "ctypes.CDLL(None).execve(words[0], words, variables)\n"
    )
    words = [sys.executable, "-c", twice, alone.path("qsub")]
    done = subprocess.run(words, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (7, b"")
    sent = server.requests[-1]["environ"]
    assert (sent["A"], sent["AB"]) == ("1", "3")


@pytest.mark.parametrize("need", [SCRIPT, SCRIPT | {"script": None, "environ": ["*"]}])
def test_what_is_there_is_not_sent_for_ever(server: Server, alone: Commands, need: dict[str, Any]) -> None:
    server.answers = [lambda _: http(FULL | {"need": need})] * 2
    assert alone.run("qsub", input="true\n", env=CHECKS).returncode == 1
    assert len(server.requests) == 2


def test_what_was_answered_is_not_asked_again(server: Server, commands: Commands) -> None:
    """Python goes on from there: an API asks once for what it lacks."""
    variable = SCRIPT | {"script": None, "environ": ["A"]}
    server.answers = [
        lambda _: http(FULL | {"need": SCRIPT}),
        lambda _: http(FULL | {"need": variable}),
        lambda _: http(FULL | {"stdout": "1.hpcm\n"}),
    ]
    done = commands.run("qsub", "-v", "A", input="true\n", env=CHECKS | {"A": "\udcff"})
    assert (done.stdout, done.returncode) == ("1.hpcm\n", 7)
    assert [request.get("script") for request in server.requests] == [None, "dHJ1ZQo=", "dHJ1ZQo="]
    assert server.requests[-1]["environ"] == {"A": "\udcff"}
    assert len(server.keys) == 1


WHOLE = json.dumps(FULL, separators=(",", ":")).encode()
HOSTILE = {
    "nothing": b"",
    "no HTTP": b"hello\r\n\r\n",
    "no end": b"HTTP/1.1 200 OK\r\n" + b"x" * 100_000,
    "zero bytes": b"\0" * 100_000,
    "truncated": http_bytes(WHOLE)[:-1],
    "too long": http_bytes(WHOLE) + b"}",
    "no length": b"HTTP/1.1 200 OK\r\n\r\n" + WHOLE,
    "a length of nothing": b"HTTP/1.1 200 OK\r\ncontent-length:\r\nx: y\r\ncontent-length: 0\r\n\r\n",
    "a negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n" + WHOLE,
    "a length beyond all": b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n" + WHOLE,
    "a length beyond memory": b"HTTP/1.1 200 OK\r\ncontent-length: 999999999\r\n\r\n" + WHOLE,
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\nContent-Length: %d\r\n\r\n" % len(WHOLE) + WHOLE,
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
    % (len(WHOLE), WHOLE),
    "an error": http({"message": "no", "exit_code": 9}, "404 Not Found"),
    "created": http_bytes(WHOLE, "201 Created"),
    "not now": http({"message": "later"}, "503 Service Unavailable"),
    "no JSON": http_bytes(b"hello"),
    "truncated JSON": http_bytes(WHOLE[:-1]),
    "a list": http_bytes(b"[]"),
    "nothing in it": http_bytes(b"{}"),
    "blanks": http_bytes(json.dumps(FULL, indent=1).encode()),
    "an unknown member": http(FULL | {"more": 1}),
    "then": http(FULL | {"stdout": 'a\n\\"', "then": ["wait", "1"]}),
    "another type": http_bytes(b'{"stdout":null,"code":3}'),
    "a member twice": http_bytes(b'{"stdout":"a","stdout":"b"}'),
    "a code beyond all": http(FULL | {"code": 256}),
    "a negative code": http(FULL | {"code": -1}),
    "no code at all": http_bytes(b'{"code":}'),
    "escapes": http_bytes(rb'{"stdout":"\u00e9\n\"\\\/\b\f\r\t\u0041\u001F\ud83d\ude00"}'),
    "half an escape": http_bytes(b'{"stdout":"\\'),
    "half a number": http_bytes(b'{"stdout":"\\u00'),
    "no such escape": http_bytes(rb'{"stdout":"\x41"}'),
    "a raw line": http_bytes(b'{"stdout":"a\nb"}'),
    "a zero byte": http_bytes(b'{"stdout":"a\0b"}'),
    "a quoted zero byte": http_bytes(rb'{"stdout":"a\u0000b"}'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_answers_that_nobody_should_send(server: Server, checked: str, tmp_path: Path, name: str) -> None:
    """Both forms make the same of them; one that neither understands is followed by a good one."""

    def hostile(_: dict[str, Any]) -> bytes:
        return HOSTILE[name]

    def good(_: dict[str, Any]) -> bytes:
        return http(FULL | {"stdout": "good\n"})

    said = []
    for form, stub, answers in (
        ("interpreted", "", [hostile, good]),
        ("compiled", checked, [hostile, hostile, good]),
    ):
        server.answers, server.requests[:] = answers, []
        commands = commands_of(tmp_path / form, server.path, stub=stub)
        done = commands.run("qdel", "12", env=CHECKS, encoding="utf-8", errors="surrogateescape")
        assert len(server.keys) == 1
        said.append((done.stdout, done.stderr, done.returncode))
    assert said[0] == said[1]


PIECES = st.sampled_from(
    [
        *(b"{", b"}", b",", b":", b'"', b"\\", b"\\u00", b"1", b"f", b"-", b"null", b"\n", b"\0", b"\xff"),
        *(b'"stdout":"', b'"stderr":"', b'"code":', b'"need":', b'"then":null', b'"need":{"script":"-",'),
    ]
)


@given(
    body=st.lists(PIECES, max_size=12).map(b"".join), at=st.integers(0, len(WHOLE)), gone=st.integers(0, 9)
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_answer_misuses_memory(server: Server, alone: Commands, body: bytes, at: int, gone: int) -> None:
    server.answers = [lambda _: http_bytes(WHOLE[:at] + body + WHOLE[at + gone :])]
    done = alone.run("qdel", "12", env=CHECKS, encoding="latin-1")
    assert (done.returncode >= 0, done.returncode != MISUSE, done.stderr.count("ERROR")) == (True, True, 0)
