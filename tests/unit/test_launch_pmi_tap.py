"""Between a rank and Hydra: everything goes on as it was said, and an abort is heard of before Hydra hears it."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from hpcmesos.launch import rank_wrapper
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


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2048)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_a_launcher_of_hundreds_of_ranks_has_lines_beyond_the_reach_of_select() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        hydra = fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD_CLOEXEC, 1500)
        try:
            tap = Tap(hydra, lambda _: None)
            ours.sendall(b"cmd=response_to_init rc=0\n")
            words = [sys.executable, "-IS", "-c", RANK, str(tap.theirs)]
            with subprocess.Popen(words, pass_fds=[tap.theirs]) as rank:
                try:
                    tap.serve(rank.pid)
                except ValueError:
                    rank.kill()
                    raise
            assert (rank.returncode, ours.recv(4096)) == (0, b"cmd=init\n")
            ours.sendall(b"cmd=finalize_ack\n")
            rank_wrapper._say_goodbye(hydra)
            assert ours.recv(4096) == b"cmd=finalize\n"
        finally:
            os.close(hydra)


def test_where_python_knows_no_descriptors_of_processes_a_rank_speaks_to_hydra_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, hydra = socket.socketpair()
    with ours, hydra:
        monkeypatch.setenv("PMI_FD", str(hydra.fileno()))
        monkeypatch.delattr(os, "pidfd_open")
        assert rank_wrapper._tap(None, {}) is None
