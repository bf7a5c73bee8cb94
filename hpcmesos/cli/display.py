"""The user's X server, for the programs of ``qsub -X``: a connection of theirs, as they would make it here.

A program far away knows nothing of this server's cookie, and never hears it: the first message of each connection,
in which a program says who it is, is given the cookie here.
"""

from __future__ import annotations

import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

from hpcmesos.launch.display import COOKIE, introduced

_TCP = 6000
_XAUTH_PATIENCE = 10.0
_CHUNK = 65536


def connect(display: str) -> socket.socket:
    """A connection to the server that DISPLAY names.

    Raises:
        OSError: it is not there.
        ValueError: that is no name of a display.
    """
    if display.startswith("/"):
        return _unix(display)
    match = re.fullmatch(r"(?:unix)?:(\d+)(?:\.\d+)?", display)
    if match:
        path = f"/tmp/.X11-unix/X{match[1]}"  # noqa: S108  (where X servers listen)
        try:
            return _unix(path)
        except OSError:
            return _unix("\0" + path)
    match = re.fullmatch(r"(?:tcp/)?\[?([^]/]+)\]?:(\d+)(?:\.\d+)?", display)
    if match:
        return socket.create_connection((match[1], _TCP + int(match[2])))
    raise ValueError(f"DISPLAY {display!r} names no display")


def cookie(display: str) -> bytes:
    """What the server wants to be told, as xauth(1) knows it; empty: nothing."""
    local = re.sub(r"^localhost:", "unix:", display)  # as ssh writes it down
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        words = ["xauth", "list", local]
        done = subprocess.run(words, capture_output=True, text=True, timeout=_XAUTH_PATIENCE, check=False)
        for line in done.stdout.splitlines():
            fields = line.split()
            if len(fields) == 3 and fields[1].encode() == COOKIE:
                return bytes.fromhex(fields[2])
    return b""


def forward(display: str, incoming: Iterator[bytes], send: Callable[[bytes], None]) -> None:
    """One connection: what comes from the program goes to the server, and the answers back, until either closes it.

    Raises:
        OSError, ValueError: there is no such server.
    """
    server = connect(display)
    answering = threading.Thread(target=_answer, args=(server, send), daemon=True)
    with server:
        secret, first = cookie(display), b""
        with suppress(OSError):  # the server has closed it
            for data in incoming:
                if answering.ident:
                    server.sendall(data)
                    continue
                first += data
                if (message := introduced(first, secret)) is not None:
                    server.sendall(message)
                    answering.start()
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


def _answer(server: socket.socket, send: Callable[[bytes], None]) -> None:
    with suppress(OSError):
        while data := server.recv(_CHUNK):
            send(data)
    send(b"")


def _unix(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection
