"""A server that answers as it is told, and the commands that users type, generated for it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from hpcmesos.cli import commands_dir
from hpcmesos.launch import programs

Answer = Callable[[dict[str, Any]], bytes]


def http(value: object, status: str = "200 OK") -> bytes:
    """As the API writes it."""
    return http_bytes(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(), status)


def http_bytes(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


class Server:
    """Takes one connection for each answer; an empty answer hangs up. ``piece``: so many bytes are sent at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[dict[str, Any]] = []
        self.answers: list[Answer] = []
        self.piece = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def keys(self) -> set[str]:
        return {request["key"] for request in self.requests}

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
                self._answer(connection, self.answers.pop(0)(self.requests[-1]))

    def _answer(self, connection: socket.socket, answer: bytes) -> None:
        size = self.piece or len(answer) or 1
        try:
            for at in range(0, len(answer), size):
                connection.sendall(answer[at : at + size])
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has seen enough

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as last:
            last.connect(str(self.path))
        self._thread.join()
        self._socket.close()


@contextmanager
def serving(path: Path) -> Iterator[Server]:
    server = Server(path)
    try:
        yield server
    finally:
        server.close()


class Commands:
    """A directory of them. Instead of the full client there is ``echo``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, command: str, personality: str = "torque") -> str:
        return str(self.directory / personality / command)

    def run(
        self, *words: str, personality: str = "torque", **options: Any
    ) -> subprocess.CompletedProcess[str]:
        command, *arguments = words
        return subprocess.run(
            [self.path(command, personality), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            **options,
        )

    def have_for_python(self, program: str) -> None:
        """What the compiled stub becomes; nothing changes for commands without it."""
        for file in self.directory.glob("*/q*"):
            told = f"# python: {os.path.realpath(sys.executable)}\n"
            file.write_text(file.read_text().replace(told, f"# python: {program}\n"))


def commands_of(directory: Path, *sockets: Path, stub: str = programs.STUB) -> Commands:
    """``stub``: the compiled one, empty: none."""
    with mock.patch.object(programs, "STUB", stub):
        commands_dir.write(directory, *sockets, submit_filter=directory / "submitfilter")
    for personality in commands_dir.PERSONALITIES:
        client = directory / personality / "hpcmesos"
        client.unlink()
        client.symlink_to("/bin/echo")
    return Commands(directory)
