"""What must survive the shepherd: one file an attempt, lines of JSON, with room kept for the end.

The first record is the spec, the last one the end. Only the end is forced to the disk: a crash of the node ends the
attempt anyway, and until then the page cache outlives the shepherd. A full disk cannot lose an end: the room for it is
allocated before the attempt may start, and when the whole report does not fit, it is written without its tails and
tables. A damaged file still says by its name that the attempt was here. Files of forgotten attempts are used again: to
allocate and to free costs more than to write.
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
_IDENTITY = "identity"


class Journal:
    """The directory ``STATE/journal``."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        os.makedirs(directory, 0o700, exist_ok=True)
        self._spares = [name for name in os.listdir(directory) if name.startswith(_SPARE)]
        self.identity = _identity(os.path.join(directory, _IDENTITY))
        """Another one than before: all that was written down here is lost."""

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
        """What an earlier shepherd left: the records of each attempt, in order; an unreadable rest is dropped.

        No records: the file is damaged, and nobody knows how far the attempt was.
        """
        found: dict[str, list[dict[str, Any]]] = {}
        for name in sorted(os.listdir(self._directory)):
            if name.endswith(_SUFFIX):
                with open(os.path.join(self._directory, name), "rb") as file:
                    content = file.read()
                attempt = name.removesuffix(_SUFFIX)
                records = _decode(content)
                if _untouched(content, records, attempt):
                    os.unlink(file.name)  # it died before the spec was written: nothing had started
                else:
                    found[attempt] = records if _is_spec(records, attempt) else []
        return found

    def reopen(self, attempt: str, records: list[dict[str, Any]]) -> Entry:
        """The entry of an earlier shepherd, to be continued."""
        fd = os.open(self._path(attempt), os.O_RDWR | os.O_CREAT, 0o600)
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
        """A record that comes later fails, instead of going to whatever file has the number then."""
        fd, self._fd = self._fd, -1
        os.close(fd)


def _identity(path: str) -> str:
    """What the file says; a new one is written where there is none."""
    try:
        with open(path, encoding="ascii") as file:
            if found := file.read().strip():
                return found
    except (OSError, ValueError):
        pass
    made = os.urandom(16).hex()
    draft = f"{path}.new"
    with open(draft, "w", encoding="ascii") as file:
        file.write(made)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    return made


def _is_spec(records: list[dict[str, Any]], attempt: str) -> bool:
    return bool(records) and records[0].get("spec", {}).get("attempt") == attempt


def _untouched(content: bytes, records: list[dict[str, Any]], attempt: str) -> bool:
    """Allocated, but not written to yet: zeros, or the whole record of the attempt that had the file before."""
    if len(content) < _ROOM:
        return False
    return content[0] == 0 or (bool(records) and "spec" in records[0] and not _is_spec(records, attempt))


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
