"""The command stub against a server that answers as the API does, and as a broken one does."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from . import shepherd_kit as kit

Answer = Callable[[dict[str, Any]], bytes]


def http(value: object, status: str = "200 OK") -> bytes:
    body = json.dumps(value).encode()
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


class Server:
    """Takes one connection for each answer; an empty answer hangs up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[dict[str, Any]] = []
        self.answers: list[Answer] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                data = connection.recv(65536)
                if not data:
                    return
                head, _, body = data.partition(b"\r\n\r\n")
                length = next(
                    int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.startswith(b"Content-Length")
                )
                while len(body) < length:
                    body += connection.recv(65536)
                self.requests.append(json.loads(body) | {"target": head.split()[1].decode()})
                if answer := self.answers.pop(0)(self.requests[-1]):
                    connection.sendall(answer)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as last:
            last.connect(str(self.path))
        self._thread.join()
        self._socket.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "api.sock")
    yield server
    server.close()


def stub(
    server: Server, *words: str, client: str = "/bin/echo", **options: Any
) -> subprocess.CompletedProcess[str]:
    command, *arguments = words
    return subprocess.run(
        [
            sys.executable,
            "-IS",
            str(kit.LAUNCH),
            "qstub",
            command,
            str(server.path),
            "pbspro",
            client,
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        **options,
    )


def qstat_of(server: Server) -> list[str]:
    """The stub as qstat of Torque's family."""
    return [sys.executable, "-IS", str(kit.LAUNCH), "qstub", "qstat", str(server.path), "torque", "/bin/echo"]


def test_a_command_and_its_answer(server: Server, tmp_path: Path) -> None:
    server.answers = [lambda _: http({"stdout": "Größe\n", "stderr": "warning\n", "code": 35})]
    result = stub(
        server, "qstat", "-f", "12", cwd=tmp_path, umask=0o027, env={"HOME": "/h", "SECRET": "x", "TZ": "UTC"}
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


def test_script_is_sent_unasked_and_more_when_asked(server: Server, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_bytes(b"#!/bin/sh\n\xff\n")
    server.answers = [
        lambda _: http({"need": {"environ": ["FOO", "MISSING"]}}),
        lambda _: http({"stdout": "12.hpcm\n"}),
    ]
    result = stub(server, "qsub", "-v", "FOO", str(script), env={"FOO": "bar", "OTHER": "x"})
    assert (result.stdout, result.returncode) == ("12.hpcm\n", 0)
    first, second = server.requests
    assert base64.b64decode(first["script"]) == script.read_bytes()
    assert first["script_path"] == str(script)
    assert (first["environ"], second["environ"]) == ({}, {"FOO": "bar"})
    assert first["key"] == second["key"]


def test_a_directory_at_the_end_of_the_words_is_no_script(server: Server, tmp_path: Path) -> None:
    server.answers = [lambda _: http({"stdout": "1.hpcm\n"})]
    assert stub(server, "qsub", "-d", str(tmp_path)).returncode == 0
    assert "script" not in server.requests[0]


def test_script_from_standard_input(server: Server) -> None:
    server.answers = [
        lambda _: http({"need": {"script": "-", "environ": ["*"]}}),
        lambda _: http({"stdout": "1\n"}),
    ]
    stub(server, "qsub", input="echo hi\n", env={"A": "1"})
    assert "script" not in server.requests[0]
    assert base64.b64decode(server.requests[1]["script"]) == b"echo hi\n"
    assert server.requests[1]["environ"]["A"] == "1"


def test_full_client_follows(server: Server) -> None:
    server.answers = [lambda _: http({"stdout": "12.hpcm\n", "then": ["wait", "12.hpcm"]})]
    assert stub(server, "qsub", "-W", "block=true").stdout == "12.hpcm\nwait 12.hpcm\n"


def test_errors_of_the_server(server: Server) -> None:
    server.answers = [
        lambda _: http({"code": "x", "message": "no such thing", "exit_code": 159}, "403 Forbidden")
    ]
    result = stub(server, "qdel", "12")
    assert (result.stderr, result.returncode) == ("qdel: no such thing\n", 159)


def test_a_broken_connection_is_tried_again_with_the_same_key(server: Server) -> None:
    server.answers = [
        lambda _: b"",
        lambda _: b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{",
        lambda _: (
            b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"std\r\na\r\nout":"ok"}\r\n0\r\n\r\n'
        ),
    ]
    assert stub(server, "qsub", "-").stdout == "ok"
    assert len({request["key"] for request in server.requests}) == 1


def test_nobody_there(server: Server, tmp_path: Path) -> None:
    server.path.rename(tmp_path / "elsewhere")
    result = stub(server, "qsub", "-N", "x")
    server.path = tmp_path / "elsewhere"
    assert result.returncode == 255
    path = tmp_path / "api.sock"
    assert result.stderr == (
        f"qsub: cannot connect to server ({path}: No such file or directory); is the master running?\n"
    )


def test_a_reader_that_has_seen_enough_ends_it_without_a_word(server: Server) -> None:
    server.answers = [lambda _: http({"stdout": "line\n" * 100_000})]
    words = qstat_of(server)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reading:
        assert reading.stdout is not None and reading.stderr is not None
        assert reading.stdout.readline() == b"line\n"
        reading.stdout.close()
        assert reading.stderr.read() == b""
    assert reading.returncode == -signal.SIGPIPE


def test_an_answer_that_cannot_be_written_is_told(server: Server) -> None:
    server.answers = [lambda _: http({"stdout": "12.hpcm\n"})]
    with open("/dev/full", "wb") as full:
        words = qstat_of(server)
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (1, "qstat: cannot write the answer: No space left on device\n")


def test_an_interrupt_ends_it_without_a_word(server: Server) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slowly(_: dict[str, Any]) -> bytes:
        asked.set()
        go_on.wait(30)
        return b""

    server.answers = [slowly]
    words = qstat_of(server)
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


def test_somebody_at_a_terminal_is_told_what_is_waited_for(server: Server) -> None:
    gone = {"message": "the database does not answer", "exit_code": 255}
    server.answers = [lambda _: http(gone, "503 Service Unavailable")] * 100
    ours, theirs = os.openpty()
    words = qstat_of(server)
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


def test_nobody_is_told_of_tries_that_will_not_be_made(tmp_path: Path) -> None:
    """Where what is there is not a master's: it gives up soon."""
    ours, theirs = os.openpty()
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
        os.fdopen(ours, "rb", buffering=0) as terminal,
    ):
        other.bind(str(tmp_path / "sock"))
        words = [
            sys.executable,
            "-IS",
            str(kit.LAUNCH),
            "qstub",
            "qstat",
            str(tmp_path / "sock"),
            "torque",
            "/bin/echo",
        ]
        asked = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=theirs, timeout=60, check=False)
        said = terminal.read(65536)
        os.close(theirs)
    assert asked.returncode == 255
    assert said.startswith(b"qstat: cannot connect to server"), said
