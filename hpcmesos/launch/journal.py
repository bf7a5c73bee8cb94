"""What must survive the shepherd: lines of JSON, each of one attempt, in files that were allocated before.

The first record of an attempt is its spec, the last one its end; that it is forgotten is a line too. Only ends are
forced to the disk, all that come together at once: a crash of the node ends the attempts anyway, and until then the
page cache outlives the shepherd. A full disk cannot lose an end: room for it is allocated before the attempt may start,
and where the whole report does not fit, it is written without its tails and tables. Files of which no line counts any
more are used again: to allocate and to free costs more than to write. A line says in which file it belongs, so that
nothing counts which the file held before, and damage costs the lines that it hits alone. A journal with damage takes a
new identity: what its node does not know any more it may have had.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from hpcmesos.launch import quick

_SEGMENT = 4 * 1024 * 1024
"""Bytes of one file."""
_ROOM = 64 * 1024
"""Bytes kept free for the phases and the end of each attempt."""
_DISPENSABLE = ("stdout_tail", "stderr_tail", "ranks", "steps")
_FRAME = 24
"""Bytes around a line, at most."""
_SUFFIX, _SPARE = ".journal", ".spare"
_MOST_SPARES = 2
_IDENTITY = "identity"
_MANY = 8
"""Files from which on the few lines that count are moved out of the oldest one."""


class _Segment:
    """One file; ``names``: attempts, not forgotten, of which it has lines."""

    def __init__(self, directory: str, number: int, size: int, spare: str | None = None) -> None:
        """Raises OSError when ``size`` bytes cannot be had."""
        self.number = number
        self.path = os.path.join(directory, f"{number:012}{_SUFFIX}")
        self.offset = 0
        self.names: set[str] = set()
        self.dirty = False
        if spare:
            os.rename(spare, self.path)
        self.fd = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self.size = max(size, os.fstat(self.fd).st_size)
        try:
            if size:
                os.posix_fallocate(self.fd, 0, self.size)
        except OSError:
            os.close(self.fd)
            os.unlink(self.path)
            raise

    def write(self, name: str, line: bytes) -> None:
        """Outlives this process when it returns. Raises OSError."""
        view, offset = memoryview(self.framed(line)), self.offset
        while view:
            written = os.pwrite(self.fd, view, offset)
            view, offset = view[written:], offset + written
        self.offset = offset
        self.names.add(name)
        self.dirty = True

    def framed(self, line: bytes) -> bytes:
        return b"%d %b\n" % (self.number, line)

    @property
    def free(self) -> int:
        """Bytes that a line may still have."""
        return self.size - self.offset - _FRAME


class Journal:
    """The directory ``STATE/journal``."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        os.makedirs(directory, 0o700, exist_ok=True)
        self._segments: list[_Segment] = []
        self._spares = {
            entry.path: entry.stat().st_size for entry in os.scandir(directory) if entry.name.endswith(_SPARE)
        }
        """Their sizes by their paths: each attempt asks how much room there is."""
        self.identity = _identity(os.path.join(directory, _IDENTITY))
        """Another one than before: all that was written down here is lost."""
        self._entries: dict[str, Entry] = {}
        self._number = 0
        self._open = 0  # entries without an end
        self._compacting = False
        self._waiting: asyncio.Future[None] | None = None  # for the next sync
        self._syncing: tuple[asyncio.Future[None], list[_Segment]] | None = None
        self._thread = ThreadPoolExecutor(1, "journal")

    # --- attempts ---------------------------------------------------------------------------------------------------

    def create(self, attempt: str, record: dict[str, Any]) -> Entry:
        """A new entry, with room for its end. Raises OSError: the attempt must not start."""
        entry = Entry(self, attempt)
        line = _encode(attempt, record)
        self._ensure(len(line) + _ROOM * (self._open + 1))
        entry.write(line)
        self._entries[attempt] = entry
        self._open += 1
        return entry

    def remove(self, attempt: str) -> None:
        """It is forgotten; nothing happens if it is not here."""
        entry = self._entries.pop(attempt, None)
        if entry is None:
            return
        self._open -= not entry.ended
        for segment in self._segments:
            segment.names.discard(attempt)
        with suppress(
            OSError
        ):  # without this line its end is told once more after a restart, and forgotten again
            self.append(attempt, _encode(attempt, None), keep=False)
        self._recycle()

    def load(self) -> dict[str, list[dict[str, Any]]]:
        """What an earlier shepherd left: the records of each attempt, in order, the first with the spec.

        Damage makes a new ``identity``.
        """
        trails: dict[str, _Trail] = {}
        damaged = False
        for path in sorted(entry.path for entry in os.scandir(self._directory)):
            if not path.endswith(_SUFFIX):
                continue
            self._number = _number(path)
            if os.path.getsize(path) == 0:
                damaged = True
                os.unlink(path)
                continue
            segment = _Segment(self._directory, self._number, 0)
            self._segments.append(segment)
            for name, record, end in _lines(segment):
                segment.offset = end
                if name is None:
                    damaged = True
                elif record is None:
                    trails.pop(name, None)
                elif "spec" in record:
                    trails.setdefault(name, _Trail()).begin(record, segment)
                elif name in trails:
                    trails[name].go_on(record, segment)
        self._number = max([self._number, *map(_number, self._spares)])
        found = {name: trail.end() for name, trail in trails.items()}
        for name, records in found.items():
            entry = self._entries[name] = Entry(self, name)
            entry.lines = [_encode(name, record) for record in records]
            self._open += 1
            for segment in trails[name].segments:
                segment.names.add(name)
        self._recycle()
        if damaged:
            self.identity = _new_identity(os.path.join(self._directory, _IDENTITY))
        return found

    def reopen(self, attempt: str) -> Entry:
        """The entry of an earlier shepherd, to be continued."""
        return self._entries[attempt]

    async def synced(self) -> None:
        """Returns when what was written before is on the disk; those who wait together share one sync.

        Raises OSError: it may not be there.
        """
        if self._waiting is None:
            loop = asyncio.get_running_loop()
            self._waiting = loop.create_future()
            if self._syncing is None:
                loop.call_soon(self._sync)
        await asyncio.shield(self._waiting)

    def _sync(self) -> None:
        """In a thread: a disk is slow, and other attempts begin and end meanwhile."""
        assert self._waiting is not None
        dirty = [segment for segment in self._segments if segment.dirty]
        for segment in dirty:
            segment.dirty = False
        self._syncing, self._waiting = (self._waiting, dirty), None
        fds, loop = [segment.fd for segment in dirty], asyncio.get_running_loop()
        try:
            done = loop.run_in_executor(self._thread, _force, fds)
        except RuntimeError:  # no thread can be started: all wait for the disk then, but no end stays untold
            done = _forced(fds)
        done.add_done_callback(self._tell_synced)

    def _tell_synced(self, done: asyncio.Future[None]) -> None:
        assert self._syncing is not None
        (waiting, dirty), self._syncing = self._syncing, None
        if error := done.exception():
            for segment in dirty:
                segment.dirty = True
            waiting.set_exception(error)
        else:
            waiting.set_result(None)
        if self._waiting is not None:
            self._sync()
        self._recycle()

    def _sync_files(self) -> None:
        for segment in self._segments:
            if segment.dirty:
                os.fdatasync(segment.fd)
                segment.dirty = False

    # --- files ------------------------------------------------------------------------------------------------------

    def append(self, attempt: str, line: bytes, keep: bool = True) -> None:
        """Raises OSError. ``keep``: the line counts until its attempt is forgotten."""
        if not self._segments or self._segments[-1].free < len(line):
            self._extend(len(line))
        segment = self._segments[-1]
        segment.write(attempt, line)
        if not keep:
            segment.names.discard(attempt)

    def close(self, line: bytes) -> bool:
        """One entry ends with ``line``; whether that may be as long, without taking the room of others."""
        self._open -= 1
        try:
            self._ensure(len(line) + _ROOM * self._open)
        except OSError:
            return False
        return True

    def _ensure(self, size: int) -> None:
        """Raises OSError unless ``size`` bytes are free in what is allocated; at the end of a file some are lost."""
        there = self._segments[-1].free if self._segments else 0
        there += sum(max(0, allocated - _ROOM) for allocated in self._spares.values())
        while there < size:
            self._number += 1
            self._spares[_allocate(self._directory, self._number)] = _SEGMENT
            there += _SEGMENT - _ROOM

    def _extend(self, size: int) -> None:
        """Begins the next file, with at least ``size`` bytes."""
        self._number += 1
        spare = self._spares.popitem()[0] if self._spares else None
        self._segments.append(_Segment(self._directory, self._number, max(_SEGMENT, size + _FRAME), spare))
        if len(self._segments) > _MANY and not self._compacting:
            self._compacting = True
            with suppress(OSError):
                self._compact()
            self._compacting = False

    def _compact(self) -> None:
        """Writes the lines that count in the oldest file again, in the newest, if they are few."""
        entries = [self._entries[name] for name in self._segments[0].names]
        if sum(len(line) for entry in entries for line in entry.lines) > _SEGMENT // 2:
            return
        newest = self._segments[-1]
        for entry in entries:
            for line in entry.lines:
                self.append(entry.attempt, line)
        self._sync_files()
        for segment in self._segments[: self._segments.index(newest)]:
            segment.names -= {entry.attempt for entry in entries}
        self._recycle()

    def _recycle(self) -> None:
        """Oldest first: a line that says that an attempt is forgotten must outlast the attempt's own."""
        held = self._syncing[1] if self._syncing else []
        while len(self._segments) > 1 and not self._segments[0].names and self._segments[0] not in held:
            segment = self._segments.pop(0)
            os.close(segment.fd)
            if len(self._spares) < _MOST_SPARES and segment.size == _SEGMENT:
                spare = segment.path.removesuffix(_SUFFIX) + _SPARE
                os.rename(segment.path, spare)
                self._spares[spare] = segment.size
            else:
                os.unlink(segment.path)


class _Trail:
    """The records of an attempt as they are read: where its lines were moved, they come again from the first one on.

    A move may have been cut off, by a full disk or the shepherd's death, and what was written afterwards stands behind
    the part that was moved: ``records`` is all that the runs of lines say together.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.segments: set[_Segment] = set()
        self._run: list[dict[str, Any]] = []
        self._places: set[_Segment] = set()

    def begin(self, record: dict[str, Any], segment: _Segment) -> None:
        self.end()
        self._run, self._places = [record], {segment}

    def go_on(self, record: dict[str, Any], segment: _Segment) -> None:
        self._run.append(record)
        self._places.add(segment)

    def end(self) -> list[dict[str, Any]]:
        """The run is over; answers all records until here."""
        again = 0
        for known, record in zip(self.records, self._run, strict=False):
            if known != record:
                break
            again += 1
        whole = again == len(self.records)  # nothing counts any more of where they were before
        self.records = self.records + self._run[again:]
        self.segments = self._places if whole else self.segments | self._places
        self._run = []
        return self.records


class Entry:
    """The records of one attempt."""

    def __init__(self, journal: Journal, attempt: str) -> None:
        self.attempt = attempt
        self.lines: list[bytes] = []
        self.ended = False
        self._journal = journal

    def append(self, record: dict[str, Any]) -> None:
        """Outlives this process when it returns. Raises OSError."""
        self.write(_encode(self.attempt, record))

    def end(self, record: dict[str, Any]) -> None:
        """The end of the attempt; where the disk is full, without what can be missed. See `Journal.synced`."""
        line = _encode(self.attempt, record)
        if not self.ended:
            self.ended = True
            if self._journal.close(line):
                self.write(line)
                return
        short = {key: value for key, value in record.items() if key not in _DISPENSABLE}
        self.write(_encode(self.attempt, short))

    def write(self, line: bytes) -> None:
        self._journal.append(self.attempt, line)
        self.lines.append(line)


def _force(fds: list[int]) -> None:
    for fd in fds:
        os.fdatasync(fd)


def _forced(fds: list[int]) -> asyncio.Future[None]:
    """As `_force`, here and now."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    try:
        _force(fds)
    except OSError as error:
        done.set_exception(error)
    else:
        done.set_result(None)
    return done


def _number(path: str) -> int:
    return int(os.path.basename(path).partition(".")[0])


def _allocate(directory: str, number: int) -> str:
    path = os.path.join(directory, f"{number:012}{_SPARE}")
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, _SEGMENT)
    except OSError:
        os.unlink(path)
        raise
    finally:
        os.close(fd)
    return path


def _identity(path: str) -> str:
    """What the file says; a new one is written where there is none."""
    try:
        with open(path, encoding="ascii") as file:
            if found := file.read().strip():
                return found
    except (OSError, ValueError):
        pass
    return _new_identity(path)


def _new_identity(path: str) -> str:
    made = os.urandom(16).hex()
    draft = f"{path}.new"
    with open(draft, "w", encoding="ascii") as file:
        file.write(made)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    return made


def _encode(attempt: str, record: dict[str, Any] | None) -> bytes:
    value = {"attempt": attempt, "record": record}
    return quick.dumps(value).encode("ascii")


def _lines(segment: _Segment) -> Iterator[tuple[str | None, dict[str, Any] | None, int]]:
    """(attempt, record, offset behind it) of each line that counts; attempt None: it is damaged."""
    content, offset = os.pread(segment.fd, segment.size, 0), 0
    mark = b"%d " % segment.number
    *lines, rest = content.split(b"\n")
    for line in lines:
        offset += len(line) + 1
        if line.startswith(mark):
            try:
                value = json.loads(line[len(mark) :])
                yield value["attempt"], value["record"], offset
            except (ValueError, KeyError, TypeError):
                yield None, None, offset
    if rest.startswith(mark):
        yield None, None, offset
