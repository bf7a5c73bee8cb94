"""What must survive the shepherd: one file an attempt, lines of JSON, with room kept for the end.

The first record is the spec, the last one the end. Only the end is forced to the disk: a crash of the node ends the
attempt anyway, and until then the page cache outlives the shepherd. A full disk cannot lose an end: the room for it is
allocated before the attempt may start, and when the whole report does not fit, it is written without its tails and
tables. Files of forgotten attempts are used again: to allocate and to free costs more than to write.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Any

_ROOM = 64 * 1024
"""Bytes kept free for the phases and the end."""
_DISPENSABLE = ("stdout_tail", "stderr_tail", "ranks", "steps")
_SUFFIX = ".jsonl"
_SPARE = "spare."
_MOST_SPARES = 64


class Journal:
    """The directory ``STATE/journal``."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        os.makedirs(directory, 0o700, exist_ok=True)
        self._spares = [name for name in os.listdir(directory) if name.startswith(_SPARE)]

    def create(self, attempt: str, record: dict[str, Any]) -> Entry:
        """A new entry, with room for its end. Raises OSError: the attempt must not start."""
        path = self._path(attempt)
        if self._spares:
            os.rename(os.path.join(self._directory, self._spares.pop()), path)
        fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            os.posix_fallocate(fd, 0, len(_encode(record)) + _ROOM)
            entry = Entry(fd, 0)
            entry.append(record)
        except OSError:
            os.close(fd)
            os.unlink(path)
            raise
        return entry

    def remove(self, attempt: str) -> None:
        path = self._path(attempt)
        with suppress(FileNotFoundError):
            if len(self._spares) < _MOST_SPARES and os.path.getsize(path) <= 2 * _ROOM:
                spare = _SPARE + attempt
                os.rename(path, os.path.join(self._directory, spare))
                self._spares.append(spare)
            else:
                os.unlink(path)

    def load(self) -> dict[str, list[dict[str, Any]]]:
        """What an earlier shepherd left: the records of each attempt, in order; an unreadable rest is dropped."""
        found = {}
        for name in sorted(os.listdir(self._directory)):
            if name.endswith(_SUFFIX):
                with open(os.path.join(self._directory, name), "rb") as file:
                    records = _decode(file.read())
                attempt = name.removesuffix(_SUFFIX)
                if records and records[0].get("spec", {}).get("attempt") == attempt:
                    found[attempt] = records
                else:
                    os.unlink(file.name)  # it died before the spec was written: nothing had started
        return found

    def reopen(self, attempt: str, records: list[dict[str, Any]]) -> Entry:
        """The entry of an earlier shepherd, to be continued."""
        fd = os.open(self._path(attempt), os.O_RDWR)
        return Entry(fd, sum(len(_encode(record)) for record in records))

    def _path(self, attempt: str) -> str:
        return os.path.join(self._directory, attempt + _SUFFIX)


class Entry:
    """The open journal of one attempt."""

    def __init__(self, fd: int, offset: int) -> None:
        self._fd = fd
        self._offset = offset

    def append(self, record: dict[str, Any]) -> None:
        """Outlives this process when it returns. Raises OSError."""
        line = _encode(record)
        # The zero ends what counts: behind it may stand what an earlier attempt wrote.
        view, offset = memoryview(line + b"\0"), self._offset
        while view:
            written = os.pwrite(self._fd, view, offset)
            view, offset = view[written:], offset + written
        self._offset = offset - 1

    def end(self, record: dict[str, Any]) -> None:
        """The end of the attempt, on the disk when it returns; where that is full, without what can be missed."""
        try:
            self.append(record)
        except OSError:
            short = {key: value for key, value in record.items() if key not in _DISPENSABLE}
            os.pwrite(self._fd, _encode(short) + b"\0", self._offset)
        os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def _encode(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"


def _decode(content: bytes) -> list[dict[str, Any]]:
    records = []
    for line in content.partition(b"\0")[0].split(b"\n"):
        try:
            value = json.loads(line)
        except ValueError:
            break
        records.append(value)
    return records
