"""Tests in several processes at once (`-n 2`): who takes which file, what a log shows meanwhile, and tests that run
without a neighbour.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

DOOR, ROOM = Path(__file__), Path(__file__).with_name("conftest.py")
"""Locked, for they are there; so two runs of one checkout count as one."""


@contextlib.contextmanager
def place(*, alone: bool) -> Iterator[None]:
    """In the room are many, or one who is alone. Nobody gets past one who waits at the door."""
    with DOOR.open() as door, ROOM.open() as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)  # whatever a fork of this process still has open


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """The marker ``alone``: whatever the test needs, too, is made and taken down without a neighbour."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    with place(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The first process takes files from the front, the others from the back, until they meet: whole clusters, which
    mostly wait, have tests beside them that mostly compute.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class FromBothEnds(LoadFileScheduling):
        def _assign_work_unit(self, node: Any) -> None:
            if node.gateway.id != "gw0":
                self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
            super()._assign_work_unit(node)

    return FromBothEnds(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str, sched: Any) -> None:
    """A test in which its process died has failed; xdist alone would begin it again in the next process."""
    for scope, unit in list(sched.workqueue.items()):
        if crashitem in unit:
            unit[crashitem] = True
            if all(unit.values()):
                del sched.workqueue[scope]


class Progress:
    """Each file as it begins, and each failure: what is known of a run that is ended before its summary."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._began = time.monotonic()
        self._files: set[str] = set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        file = nodeid.partition("::")[0]
        if file not in self._files:
            self._files.add(file)
            self._say(file)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._say(f"FAILED ({report.when}) {report.nodeid}\n{report.longreprtext}")

    def _say(self, text: str) -> None:
        terminal = self._config.pluginmanager.getplugin("terminalreporter")
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        terminal.write_line(f"{minutes:3}:{seconds:02} {text}")
        terminal.flush()


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Progress(config))
