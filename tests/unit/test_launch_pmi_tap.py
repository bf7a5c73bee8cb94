"""Between a rank and Hydra: everything goes on as it was said, and an abort is heard of before Hydra hears it."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import suppress

import pytest

from hpcmesos.launch.pmi_tap import Tap

RANK = """
import os, sys
fd, *pieces = sys.argv[1:]
os.write(int(fd), b"cmd=init\\n")
answer = b""
while not answer.endswith(b"\\n"):
    answer += os.read(int(fd), 1)
for piece in pieces:
    os.write(int(fd), piece.encode())
    assert os.read(int(fd), 1) == b"."
sys.exit(answer != b"cmd=response_to_init rc=0\\n")
"""


def between(*pieces: str) -> tuple[bytes, list[tuple[int, bool]], int]:
    """What Hydra heard, (code, whether Hydra had heard of it before) of each abort, and the rank's own exit code."""
    ours, hydra = socket.socketpair()
    aborts: list[tuple[int, bool]] = []

    def aborted(code: int) -> None:
        heard = b""
        with suppress(BlockingIOError):
            heard = ours.recv(4096, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        aborts.append((code, b"abort" in heard))

    with ours, hydra:
        tap = Tap(hydra.fileno(), aborted)
        ours.sendall(b"cmd=response_to_init rc=0\n")
        ours.sendall(b"." * len(pieces))
        words = [sys.executable, "-IS", "-c", RANK, str(tap.theirs), *pieces]
        with subprocess.Popen(words, pass_fds=[tap.theirs]) as rank:
            tap.serve(rank.pid)
        hydra.close()
        heard = b""
        while data := ours.recv(4096):
            heard += data
        return heard, aborts, rank.returncode


@pytest.mark.parametrize(
    ("pieces", "code"),
    [
        (["cmd=abort exitcode=7 error_msg=bad\n"], 7),
        (["cmd=put k=v\ncmd=abort exitcode=-1\n"], -1),
        (["cmd=abort;exitcode=3;\n", "cmd=abort exitcode=4\n"], 3),
        (["cmd=abort\n"], 1),
    ],
)
def test_an_abort_is_told_once_and_before_hydra_hears_it(pieces: list[str], code: int) -> None:
    heard, aborts, _ = between(*pieces)
    assert heard == b"cmd=init\n" + "".join(pieces).encode()
    assert aborts == [(code, False)]


def test_other_words_pass() -> None:
    heard, aborts, own = between("cmd=barrier_in\n", "cmd=fin", "alize\n")
    assert (heard, aborts, own) == (b"cmd=init\ncmd=barrier_in\ncmd=finalize\n", [], 0)
