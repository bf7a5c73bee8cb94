"""The seccomp filters of one process, read by the kernel's leave and put upon another."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpcmesos.agent import seccomp
from hpcmesos.launch.container import Container
from tests.integration.shepherd_kit import wait_until

_KEYCTL, _ERRNO, _ALLOW = 250, 0x00050000, 0x7FFF0000
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
FILTER = b"".join(
    struct.pack("=HBBI", *words)
    for words in (
        (_LOAD, 0, 0, 0),  # the number of the system call
        (_EQUAL, 0, 1, _KEYCTL),
        (_RETURN, 0, 0, _ERRNO | 38),  # ENOSYS, which nobody else would give
        (_RETURN, 0, 0, _ALLOW),
    )
)
_PR_SET_NO_NEW_PRIVS = 38


def forbidden() -> bool:
    """Whether keyctl(2) is unknown to this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(_KEYCTL, 0, -3, 1) == -1 and ctypes.get_errno() == 38


def restrict(*filters: bytes) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    Container({}, filters).restrict()


@contextmanager
def stopped(before: Callable[[], None]) -> Iterator[int]:
    """A process that has done something and stopped itself."""
    pid = os.fork()
    if pid == 0:
        before()
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture(autouse=True)
def root() -> None:
    if os.getuid() != 0:
        pytest.skip("needs root: to read a filter")


def test_another_process_takes_it_on() -> None:
    with stopped(lambda: restrict(FILTER)) as pid:
        found = seccomp.filters(pid)
    assert found == [FILTER]
    assert not forbidden()
    child = os.fork()
    if child == 0:
        restrict(*found)
        os._exit(0 if forbidden() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_all_of_them_and_it_stays_stopped() -> None:
    with stopped(lambda: restrict(FILTER, FILTER)) as pid:
        assert seccomp.filters(pid) == [FILTER, FILTER]
        status = Path(f"/proc/{pid}/status")
        wait_until(lambda: "State:\tT (stopped)" in status.read_text(), "it stays stopped")
        assert len(seccomp.filters(pid)) == 2, "and may be read again"


def test_none_is_none() -> None:
    with stopped(lambda: None) as pid:
        assert seccomp.filters(pid) == []


def test_one_that_is_gone() -> None:
    with stopped(lambda: None) as pid:
        gone = pid
    with pytest.raises(OSError, match="No such"):
        seccomp.filters(gone)
