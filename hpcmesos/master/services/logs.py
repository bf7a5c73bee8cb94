"""What a job has written: live from the head node's shepherd, after its end from the file, the log store or the tail.

A follower gets the bytes of every attempt in order, each once. Where the file cannot be seen from here and a node was
lost while its output was being read, what lies before the stored tail (the last 64 KiB) is passed over.
"""

from __future__ import annotations

import json
import os
import pwd
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

from hpcmesos.errors import InvalidValue
from hpcmesos.master.services import shepherds
from hpcmesos.master.services.site import Site
from hpcmesos.master.services.wait import Pace, in_thread
from hpcmesos.model import JobState
from hpcmesos.queue.records import AttemptRecord, JobRecord

STREAMS = ("stdout", "stderr")

_CHUNK = 65536
_TAIL = 65536  # a stored tail that is shorter is the whole stream
_STARTED = frozenset({JobState.RUNNING, JobState.EXITING})
_JOINED = {"stdout": "eo", "stderr": "oe"}


def check_stream(stream: str, offset: int) -> None:
    """Raises InvalidValue for a stream that jobs do not have, and for an offset below 0."""
    if stream not in STREAMS:
        raise InvalidValue(f"unknown stream '{stream}'; one of {', '.join(STREAMS)}")
    if offset < 0:
        raise InvalidValue("an offset is 0 or more")


class Reader:
    """One reader of one stream of one job."""

    def __init__(self, site: Site, job: JobRecord, stream: str, offset: int) -> None:
        self._site = site
        self._job = job
        self._stream = stream
        self._offset = offset
        self._number = job.attempt  # the attempt that is read
        self._whole = False  # True: it is over, and everything of it was sent

    async def read(self, *, follow: bool) -> AsyncIterator[bytes]:
        """The bytes from the offset on; with ``follow`` from the start of the job to its end."""
        if self._job.submission.get("join") == _JOINED[self._stream]:
            return
        pace = Pace()
        while True:
            async for chunk in self._available(follow):
                self._offset += len(chunk)
                yield chunk
            if not follow or self._is_over():
                return
            await pace.pause()
            await in_thread(self._refresh)

    async def _available(self, follow: bool) -> AsyncIterator[bytes]:
        """What the attempt has written since the last look."""
        if not self._number or self._whole:
            return
        attempt = await in_thread(self._attempt)
        if attempt is None:
            self._whole = True  # there is nothing of it
        elif attempt.ended_at is not None:
            async for chunk in self._stored(attempt):
                yield chunk
            self._whole = True
        elif self._job.state in _STARTED:
            with suppress(OSError, EOFError, TimeoutError, ValueError):
                async for chunk in self._live(follow):
                    yield chunk

    def _is_over(self) -> bool:
        """Whether no further byte can come. A job in R may yet run again, though its attempt has ended; one in E was
        deleted, and writes on until it is killed.
        """
        ended = self._job.state is JobState.COMPLETE or (self._job.state is JobState.EXITING and self._whole)
        return ended and self._is_current()

    def _is_current(self) -> bool:
        return self._number == self._job.attempt

    def _refresh(self) -> None:
        """Looks at the job again. The next attempt comes once this one was read."""
        self._job = self._site.store.job(self._job.seq, self._job.index) or self._job
        if not self._is_current() and (self._whole or not self._number):
            if self._number and not self._goes_on():
                self._offset = 0
            self._number, self._whole = self._number + 1, False

    def _goes_on(self) -> bool:
        """Whether the next attempt adds to the file that this one has written: only the first one empties it."""
        attempt = self._attempt()
        path = self._path(attempt) if attempt else ""
        if not any(PurePosixPath(path).is_relative_to(tree) for tree in self._site.settings.shared_paths):
            return False  # the next node has a file of its own there
        fd = self._open(attempt) if attempt else None
        if fd is not None:
            os.close(fd)
        return fd is not None

    def _path(self, attempt: AttemptRecord) -> str:
        return attempt.stdout_path if self._stream == "stdout" else attempt.stderr_path

    def _open(self, attempt: AttemptRecord) -> int | None:
        """The file of an attempt that is over, if it is at its place and that is in sight."""
        return None if attempt.undelivered else _open_owned(self._path(attempt), self._job.owner)

    def _attempt(self) -> AttemptRecord | None:
        found = self._site.store.attempts([self._job.key])
        keys = (self._job.index, self._number)
        return next((row for row in found if (row.key.index, row.key.number) == keys), None)

    async def _live(self, follow: bool) -> AsyncIterator[bytes]:
        """The stream from the shepherd, to the end of the attempt or for as long as the connection holds."""
        head = await in_thread(shepherds.head_of, self._site, self._job, self._number)
        if head is None or self._site.tls is None:
            return
        reader, writer = await shepherds.dial(self._site, head)
        try:
            writer.write(shepherds.message(self._request(follow)))
            while True:
                kind, body = await shepherds.read_frame(reader)
                if kind == b"O":
                    yield body
                elif kind == b"J":
                    told = json.loads(body)
                    self._whole = bool(told.get("end")) and not told.get("error")
                    return
        finally:
            writer.close()

    def _request(self, follow: bool) -> dict[str, Any]:
        return {
            "op": "log",
            "attempt": shepherds.attempt_id(self._job, self._number),
            "stream": self._stream,
            "offset": self._offset,
            "follow": follow,
        }

    async def _stored(self, attempt: AttemptRecord) -> AsyncIterator[bytes]:
        """The rest of an attempt that is over: from its file if that is in sight, else from the stored tail."""
        fd = await in_thread(self._open, attempt)
        if fd is None:
            name = shepherds.attempt_id(self._job, self._number)
            fd = await in_thread(self._site.logs.open, name, self._stream)
        if fd is None:
            tail = attempt.stdout_tail if self._stream == "stdout" else attempt.stderr_tail
            if len(tail) >= _TAIL:  # its node may have the whole for a little while
                with suppress(OSError, EOFError, TimeoutError, ValueError):
                    async for chunk in self._live(False):
                        yield chunk
                if self._whole:
                    return
            rest = tail[self._offset :] if len(tail) < _TAIL or not self._offset else b""
            if rest:
                yield rest
            return
        try:
            position = self._offset
            while chunk := await in_thread(os.pread, fd, _CHUNK, position):
                position += len(chunk)
                yield chunk
        finally:
            os.close(fd)


def _open_owned(path: str, owner: str) -> int | None:
    """The file, if it is a regular one of ``owner``; None: not in sight, or something else by now.

    The reader may be root and the path is the user's to change: the owner of what was opened decides.
    """
    try:
        seen = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)  # to open a device may do something
    except (OSError, ValueError):
        return None
    try:
        found = os.fstat(seen)
        if stat.S_ISREG(found.st_mode) and found.st_uid == pwd.getpwnam(owner).pw_uid:
            return os.open(f"/proc/self/fd/{seen}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, KeyError):
        pass
    finally:
        os.close(seen)
    return None
