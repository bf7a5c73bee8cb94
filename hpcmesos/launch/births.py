"""A process on its way: asked of the starter or forked by us, until it executes its program."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from hpcmesos.launch import enclosure
from hpcmesos.launch.processes import Children, Launch, OnExit, Report, read_report

_STARTER_PATIENCE = 5.0
"""Seconds that the starter may take to begin a process; then it is killed, and the shepherd forks by itself."""
_NEVER = frozenset({errno.ENOSYS, errno.EINVAL, errno.E2BIG, errno.EPERM})
"""What clone3(2) says where it is unknown, older than its flags, or forbidden by a filter; anything else concerns the
one process: EAGAIN is a limit that it would break, ENODEV an attempt that is over."""


class Birth:
    """One process of an attempt. ``pid`` is 0 until it is known, and for one that never was.

    ``on_born``: its pid is known. ``on_program``: its program runs, or it has ended before that; the report says
    which. ``on_exit``: it was reaped, after the other two. ``retry``: what to start when the starter could not, None
    for nothing any more; ``on_failure``: nothing was, or it cannot be.
    """

    def __init__(
        self,
        children: Children,
        report: Report,
        *,
        on_born: Callable[[], None] = lambda: None,
        on_program: Callable[[], None] = lambda: None,
        on_exit: OnExit,
        retry: Callable[[], Launch | None],
        on_failure: Callable[[Exception | None], None],
    ) -> None:
        self.pid = 0
        self.report = report
        self._children = children
        self._on_born = on_born
        self._on_program = on_program
        self._on_exit = on_exit
        self._retry = retry
        self._on_failure = on_failure
        self._connection: socket.socket | None = None
        self._asked: asyncio.TimerHandle | None = None
        self._enclosed: enclosure.Enclosure

    @property
    def unknown(self) -> bool:
        """The starter was asked, and has not answered."""
        return self._asked is not None

    def begin(self, launch: Launch, enclosed: enclosure.Enclosure, *, quickly: bool) -> None:
        """Its pid is known at once, or (``quickly``) by its report. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._enclosed = enclosed
        if quickly and isinstance(enclosed, enclosure.Cgroup):
            self.pid, self._connection = self._children.start(launch, enclosed.entry, self._exited)
        else:  # one that waits at its gate would outlive us unseen, for it has our environment still
            self.pid, self._connection = self._children.spawn(replace(launch, gated=False), self._exited)
        loop.add_reader(self._connection.fileno(), self._read)
        if self.pid:
            enclosed.adopt(self.pid)
            self._on_born()
        else:
            enclosed.coming += 1
            self._asked = loop.call_later(_STARTER_PATIENCE, self._children.replace_starter, self._connection)

    def open_gate(self) -> None:
        """It may execute its program."""
        if self._connection is not None:
            with suppress(OSError):  # it has done so, or is gone
                self._connection.send(b".")

    def _read(self) -> None:
        """What the child opened; the end of that is the start of the program."""
        if self._connection is None:
            return
        over = read_report(self._connection, self.report)
        if self._asked and (over or self.report.pid):
            self._claim(self._connection)
            over = over and self.report.pid != 0  # else it is begun once more
        if over:
            self._close()

    def _claim(self, connection: socket.socket) -> None:
        """The starter's child is known now, or there is none."""
        if self._asked:
            self._asked.cancel()
            self._enclosed.coming -= 1
        self._asked = None
        self.pid = self.report.pid
        if not self.pid:
            asyncio.get_running_loop().remove_reader(connection.fileno())
            self._connection = None
        else:
            self._on_born()
        self._children.claim(connection, self.pid, self._exited)
        if self.pid:
            return
        connection.close()
        if self.report.unable in _NEVER:
            self._children.give_up_starter()
        elif self.report.unable:
            self._on_failure(OSError(self.report.unable, os.strerror(self.report.unable)))
            return
        self._begin_again()

    def _begin_again(self) -> None:
        """Nobody told its pid, so it executed nothing: it may be begun once more, by us."""
        try:
            if (launch := self._retry()) is None:
                self._on_failure(None)
                return
            self.report.unable = 0
            self.begin(launch, self._enclosed, quickly=False)
        except Exception as error:  # whatever it is, somebody waits to hear of it
            self._on_failure(error)

    def _close(self) -> None:
        if self._connection is not None:
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
            self._connection.close()
            self._connection = None
            self._on_program()

    def _exited(self, status: int, usage: resource.struct_rusage) -> None:
        self._read()
        self._close()  # the starter may hold its copy of the other end still
        self._on_exit(status, usage)
