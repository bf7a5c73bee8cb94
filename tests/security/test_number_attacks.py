"""Attacks by numbers of processes that came round again."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

import pytest

from hpcmesos import pidfile
from hpcmesos.launch import enclosure
from tests.security.cases import Case, Told, check, replaced


class Numbers:
    """A process that has the number of another one that is over."""

    def renew(self) -> None:
        pass

    def counts(self) -> Any:
        return None

    def signals(self, ours: bool) -> Told:
        """The attempt to whom the process belonged before (``ours``: to whom it belongs) is told to end."""
        trees = enclosure.Trees("HPCMESOS_SOCKET=/of/this/test")
        before, now = (enclosure.Tree(trees, f"{number}.hpcm#1", os.getuid()) for number in (1, 2))
        with subprocess.Popen(["/bin/sleep", "60"], start_new_session=True) as process:
            before.adopt(process.pid)
            now.adopt(process.pid)
            (now if ours else before).signal(signal.SIGTERM)
            try:
                process.wait(timeout=5 if ours else 0.5)
            except subprocess.TimeoutExpired:
                process.kill()
                return Told(False)
        return Told(True)

    def ends(self, started: int) -> Told:
        """A daemon of a pid file is stopped; ``started``: ticks by which its start differs from the process'."""
        with subprocess.Popen(["/bin/sleep", "60"]) as process:
            begun = pidfile.start_time(process.pid)
            assert begun is not None
            pidfile.end(pidfile.Daemon(process.pid, begun + started), 5.0)
            try:
                process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                process.kill()
                return Told(False)
        return Told(True)


def adopt_alone(self: enclosure.Tree, pid: int) -> None:
    self._sessions.add(pid)


NUMBERS: list[Case[Numbers]] = [
    Case(
        "a signal to a number that came round again",
        lambda n: n.signals(False),
        lambda n: n.signals(True),
        replaced(enclosure.Tree, "adopt", adopt_alone),
        silent=True,
    ),
    Case(
        "a stale pid file",
        lambda n: n.ends(-7),
        lambda n: n.ends(0),
        replaced(pidfile, "start_time", lambda pid: _Any()),
        silent=True,
    ),
]


class _Any(int):
    """A start time that is like any other."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def __add__(self, other: int) -> int:
        return self

    __hash__ = int.__hash__


@pytest.mark.parametrize("case", NUMBERS, ids=lambda case: case.name)
def test_number(case: Case[Numbers], monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, Numbers(), monkeypatch)
