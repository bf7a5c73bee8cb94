"""Keeps one plug-in's process and watches it: every question has a deadline, every answer is checked.

In a thread of its own, so that nothing of it holds up the planner. What goes wrong ends the process; the next question
starts a new one.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import msgspec

from hpcmesos.errors import HpcmesosError
from hpcmesos.master.plugin_child import Ask, Reply, frame

DEADLINE = 2.0
"""Seconds for an answer; the first of a process has START more, for it has to load."""

START = 10.0
_BYTES_A_KEY, _BYTES_MORE = 16, 4096
_KEPT = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ", "HOME")
_LONGEST_TEXT = 200

Keys = list[float] | list[int | None] | list[list[float]]


class PluginFault(HpcmesosError):
    """A plug-in has not answered, or not what it should."""

    code = "plugin"


class PluginHost:
    """``ask`` returns at once; ``told`` is called in this object's thread, with the keys or with what is wrong."""

    def __init__(
        self,
        kind: str,
        name: str,
        log: Path,
        told: Callable[[Ask, Keys | PluginFault], None],
        deadline: float = DEADLINE,
    ) -> None:
        """``log``: where what it prints goes; begun anew by each process."""
        self.kind, self.name = kind, name
        self._log, self._told, self._deadline = log, told, deadline
        self._questions: SimpleQueue[Ask | None] = SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name=f"plug-in {kind} {name}", daemon=True)
        self._thread.start()

    def ask(self, question: Ask) -> None:
        self._questions.put(question)

    def close(self) -> None:
        """Ends the process, as soon as the question in progress is over; does not wait for it."""
        self._questions.put(None)

    def _run(self) -> None:
        while (question := self._next()) is not None:
            try:
                answer: Keys | PluginFault = checked(self.kind, question, self._answer(question))
            except PluginFault as fault:
                self._end()
                answer = fault
            except Exception as error:  # whatever it is, the planner must hear of it
                self._end()
                answer = PluginFault(f"{type(error).__name__}: {error}")
            self._told(question, answer)
        self._end()

    def _next(self) -> Ask | None:
        """The newest question; None: the end."""
        question = self._questions.get()
        with contextlib.suppress(Empty):
            while question is not None:
                question = self._questions.get_nowait()
        return question

    def _answer(self, question: Ask) -> Any:
        limit = self._deadline
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = self._start()
            limit += START
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        until = time.monotonic() + limit
        self._write(stdin.fileno(), frame(question), until)
        size = int.from_bytes(self._read(stdout.fileno(), 4, until), "big")
        entries = len(question.classes) * max(1, len(question.nodes))
        if size > (most := _BYTES_MORE + _BYTES_A_KEY * entries):
            raise PluginFault(f"an answer of {size} bytes, for {entries} keys at most {most}")
        try:
            reply = msgspec.msgpack.decode(self._read(stdout.fileno(), size, until), type=Reply)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise PluginFault(f"an answer that cannot be read: {error}") from error
        if reply.error:
            raise PluginFault(reply.error[:_LONGEST_TEXT])
        return reply.keys

    def _start(self) -> subprocess.Popen[bytes]:
        environ = {name: os.environ[name] for name in _KEPT if name in os.environ}
        command = [
            sys.executable,
            "-m",
            "hpcmesos.master.plugin_child",
            self.kind,
            self.name,
            str(os.getpid()),
        ]
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environ,
                cwd="/",
                bufsize=0,
                start_new_session=True,
            )
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
        return process

    def _write(self, descriptor: int, data: bytes, until: float) -> None:
        left = memoryview(data)
        while left:
            self._wait([], [descriptor], until)
            try:
                left = left[os.write(descriptor, left) :]
            except BrokenPipeError:
                raise self._died() from None

    def _read(self, descriptor: int, size: int, until: float) -> bytes:
        found = bytearray()
        while len(found) < size:
            self._wait([descriptor], [], until)
            piece = os.read(descriptor, size - len(found))
            if not piece:
                raise self._died()
            found += piece
        return bytes(found)

    def _wait(self, reads: list[int], writes: list[int], until: float) -> None:
        left = until - time.monotonic()
        poll = select.poll()  # select() takes no descriptor above 1023; a leader has one for each agent
        for descriptor in reads:
            poll.register(descriptor, select.POLLIN)
        for descriptor in writes:
            poll.register(descriptor, select.POLLOUT)
        if left <= 0 or not poll.poll(left * 1000):
            raise PluginFault(f"no answer within {self._deadline:g} s")

    def _died(self) -> PluginFault:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        status = self._process.returncode
        how = f"signal {-status}" if status is not None and status < 0 else f"status {status}"
        return PluginFault(f"its process ended ({how})")

    def _end(self) -> None:
        """Kills the process and all that it started in its session."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def checked(kind: str, question: Ask, keys: Any) -> Keys:
    """The keys, if they are what was asked for.

    Raises:
        PluginFault: they are not as many, or no numbers.
    """
    try:
        if kind == "limits":
            limits = msgspec.convert(keys, list[int | None])
            _check_number(len(limits), len(question.classes), "limits")
            if any(limit is not None and limit < 0 for limit in limits):
                raise PluginFault("a limit below 0")
            return limits
        if kind == "rank":
            rows = msgspec.convert(keys, list[list[float]])
            _check_number(len(rows), len(question.classes), "rows of keys")
            for row in rows:
                _check_number(len(row), len(question.nodes), "keys of nodes")
                _check_finite(row)
            return rows
        found = msgspec.convert(keys, list[float])
    except msgspec.ValidationError as error:
        raise PluginFault(f"an answer that is no list of keys: {error}") from error
    _check_number(len(found), len(question.classes), "keys")
    _check_finite(found)
    return found


def _check_number(number: int, wanted: int, what: str) -> None:
    if number != wanted:
        raise PluginFault(f"{number} {what} for {wanted} that were asked for")


def _check_finite(row: list[float]) -> None:
    if not all(map(isfinite, row)):
        raise PluginFault("a key that is no finite number")
