"""Brings output that lies on this node alone to the masters' log store, before the shepherd may forget it.

Where the gateway of a login host writes it at its place, the end of the attempt is told some seconds later, so that
a job that is over has its output; whatever fails, the end is told, and the transfer goes on. A shepherd keeps what it
was not told to forget, so nothing is lost when the agent ends: the next one begins where the transfer stopped.

A transfer is given up only a while after the leader has taken the end: before that masters are away, however long.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hpcmesos.agent import api
from hpcmesos.config import AgentSettings
from hpcmesos.errors import HpcmesosError

log = logging.getLogger(__name__)

HOLD = 10.0
"""Seconds, at most, that an end waits until the gateway has written the output."""
_GIVE_UP = (
    3600.0  # seconds since a leader took the end, after which what no log store takes is left to the tails
)
_THREADS = 4  # few, and the courier's own: who leads is asked in the agent's other threads
_PIECE = 1024 * 1024
_WAIT = 3.0  # seconds of one question, less than api.TIMEOUT
_LONGEST_PAUSE = 5.0
_STREAMS = ("stdout", "stderr")

Message = dict[str, Any]


class Courier:
    """``sink``: takes the shepherd's events on. ``forget``: lets the shepherd forget an attempt."""

    def __init__(
        self, settings: AgentSettings, sink: Callable[[Message], None], forget: Callable[[Message], None]
    ) -> None:
        self._settings = settings
        self._sink = sink
        self._forget = forget
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._held: dict[str, Message] = {}  # ends that are not told yet
        self._forgettable: dict[str, tuple[Message, float]] = {}  # with when it came
        self._threads = ThreadPoolExecutor(_THREADS, "courier")

    def holds(self, event: Message) -> bool:
        """Whether this event of the shepherd's will come by the sink later; begins the transfer of what has ended."""
        attempt = str(event.get("attempt", ""))
        if event.get("event") != "ended" or not event.get("head") or not event.get("undelivered"):
            return False
        if attempt in self._under_way:
            return attempt in self._held
        found = _spooled(self._settings.state / "attempts" / attempt)
        if not found:
            return False
        if event.get("delivered"):
            self._held[attempt] = event
        self._under_way[attempt] = asyncio.create_task(self._carry(attempt, found, event))
        return attempt in self._held

    def keeps(self, message: Message) -> bool:
        """Whether the shepherd has to wait with forgetting; it is told when the transfer is over."""
        attempt = str(message.get("attempt", ""))
        if message.get("op") != "forget" or attempt not in self._under_way:
            return False
        self._forgettable.setdefault(attempt, (message, time.monotonic()))
        return True

    def close(self) -> None:
        for task in self._under_way.values():
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _hopeless(self, attempt: str) -> bool:
        """Masters are there, and have not taken the output for long."""
        _, since = self._forgettable.get(attempt, ({}, time.monotonic()))
        return time.monotonic() > since + _GIVE_UP

    async def _carry(self, attempt: str, streams: dict[str, int], event: Message) -> None:
        transfer = _Transfer(self._settings, attempt, streams, self._threads)
        wanted = set(event.get("delivered") or ()) & streams.keys()
        others = "" if streams.keys() <= wanted else event["undelivered"]

        def tell() -> None:
            """The end, with what is known by now of its output."""
            if self._held.pop(attempt, None) is not None:
                if transfer.told:
                    event["undelivered"] = "; ".join(filter(None, [others, *transfer.told.values()]))
                self._sink(event)

        timer = asyncio.get_running_loop().call_later(HOLD, tell)
        try:
            await transfer.run(wanted, lambda: attempt in self._held, lambda: self._hopeless(attempt))
        finally:  # also when the agent stops: the next one is told of this end again
            timer.cancel()
        transfer.close()
        tell()
        del self._under_way[attempt]
        message, _ = self._forgettable.pop(attempt, (None, 0.0))
        if message is not None:
            self._forget(message)


class _Transfer:
    """Of the streams of one attempt; ``told``: by stream, why it is not where it belongs, empty: it is."""

    def __init__(
        self, settings: AgentSettings, attempt: str, streams: dict[str, int], threads: ThreadPoolExecutor
    ) -> None:
        self._threads = threads
        self._settings = settings
        self._attempt = attempt
        self._streams = streams
        self._masters = api.several(settings.master)
        self.told: dict[str, str] = {}

    def close(self) -> None:
        for fd in self._streams.values():
            os.close(fd)

    async def run(self, wanted: set[str], may_wait: Callable[[], bool], hopeless: Callable[[], bool]) -> None:
        """Until the log store has all, and gateways, as long as ``may_wait``, have written what is ``wanted``.

        Or until it is ``hopeless``.
        """
        loop, pause = asyncio.get_running_loop(), 0.1
        left = set(self._streams)
        while True:
            for stream in sorted(left):
                wait = stream in wanted and may_wait()
                reply = await loop.run_in_executor(self._threads, self._try, stream, wait)
                if reply is not None:
                    self.told[stream] = _trouble(reply)
                    if not (reply.get("pending") and reply.get("soon", True) and may_wait()):
                        left.discard(stream)
            if not left or hopeless():
                break
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _try(self, stream: str, wait: bool) -> dict[str, Any] | None:
        """The last answer; None: another master may do better, later."""
        try:
            return self._send(stream, wait)
        except HpcmesosError as error:
            if error.transient:
                self._masters.append(self._masters.pop(0))
                return None
            log.warning("no master keeps %s of %s: %s", stream, self._attempt, error)
            return {"trouble": f"{stream} is kept nowhere: {error}"}
        except (OSError, KeyError, TypeError, ValueError) as error:
            log.warning("%s of %s cannot be sent now: %s", stream, self._attempt, error)
            return None

    def _send(self, stream: str, wait: bool) -> dict[str, Any]:
        """What of a stream the log store lacks; blocks.

        A spool that its owner has cut meanwhile ends where it ends now.

        Raises:
            HpcmesosError. OSError: our certificate cannot be read. KeyError, TypeError, ValueError: an odd answer.
        """
        fd = self._streams[stream]
        total, have = os.fstat(fd).st_size, 0
        while True:
            try:
                piece = os.pread(fd, min(_PIECE, total - have), have)
            except OSError as error:
                return {"trouble": f"{stream} cannot be read: {error.strerror}"}
            if not piece:
                total = have
            query = f"offset={have}&total={total}&wait={_WAIT if wait else 0}"
            path = f"/v1/outputs/{quote(self._attempt, safe='')}/{stream}?{query}"
            reply = api.call(self._masters[0], "PUT", path, piece, _context(self._settings, self._masters[0]))
            if int(reply["have"]) >= total:
                return reply
            have = int(reply["have"])


def _trouble(reply: dict[str, Any]) -> str:
    """Why a stream is not where it belongs; empty: it is."""
    place = f"{reply['gateway']}:{reply['path']}: " if reply.get("gateway") else ""
    if reply.get("pending"):
        return f"{place}not written yet; see hpcmesos logs"
    return f"{place}{reply['trouble']}" if reply.get("trouble") else ""


def _context(settings: AgentSettings, master: str) -> ssl.SSLContext | None:
    if not master.startswith("https://"):
        return None
    return api.context(settings.state)


def _spooled(directory: Path) -> dict[str, int]:
    """The streams that lie in the spool of an attempt, open; nothing that its owner has put there in their place."""
    found: dict[str, int] = {}
    with suppress(OSError):
        owner = directory.lstat().st_uid
        for stream in _STREAMS:
            with suppress(OSError):
                seen = os.open(directory / stream, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    status = os.fstat(seen)
                    if stat.S_ISREG(status.st_mode) and status.st_uid == owner and status.st_nlink == 1:
                        found[stream] = os.open(f"/proc/self/fd/{seen}", os.O_RDONLY | os.O_CLOEXEC)
                finally:
                    os.close(seen)
    return found
