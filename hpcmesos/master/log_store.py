"""The log store: output of jobs that lies nowhere but on a node would go with the node, so masters keep it.

A directory that all masters see. A stream comes in pieces, each with its offset, so that a transfer that broke goes on
where it stopped; what is whole has no ``.part`` behind its name. The sum is bounded: what lies at its place elsewhere
goes first, then always the oldest of the user who has most there: nobody pushes out what is others'.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hpcmesos.errors import InvalidValue, LogStoreUnavailable

log = logging.getLogger(__name__)

_MIB = 1024 * 1024
_LOOK = 60.0  # seconds after which what others have put there is counted, too
_OTHERS = 8  # processes among which the room that a sum has shown is shared
_DELIVERED = 0o400  # mode of a stream that is a copy
_PART = ".part"


@dataclass(frozen=True, slots=True)
class Kept:
    """A file of the store. ``copy``: its content lies at its place, too."""

    path: Path
    size: int
    changed: float
    copy: bool

    @property
    def job(self) -> int:
        return _number(self.path.name)


@dataclass(slots=True)
class LogStore:
    """``of_all``, ``of_one``: bytes of everything, of one stream. ``directory`` is made when it is first used.

    ``dropped``: told attempt and stream of each whole one that was no copy and had to make room. ``owners``: whose
    jobs these are, by their numbers; those it does not know count as one user's.
    """

    directory: Path
    of_all: int = 10_240 * _MIB
    of_one: int = 1024 * _MIB
    dropped: Callable[[str, str], None] = lambda attempt, stream: None
    owners: Callable[[Sequence[int]], Mapping[int, str]] = lambda jobs: {}
    _looked: float = field(default=-_LOOK, repr=False)
    _share: int = field(default=0, repr=False)  # bytes that this process may still take before the next sum

    def __post_init__(self) -> None:
        self.of_one = min(self.of_one, self.of_all // 2)  # one that is under way is no reason to drop itself

    def take(self, attempt: str, stream: str, offset: int, data: bytes, total: int) -> int:
        """Stores a piece at ``offset`` of a stream of ``total`` bytes; answers how much of it is there.

        A piece that does not continue what is there changes nothing: the sender goes on from the answer.

        Raises:
            InvalidValue: a piece beyond the end. LogStoreUnavailable: it cannot be written.
        """
        if offset + len(data) > total:
            raise InvalidValue(f"a piece of {len(data)} bytes at {offset} of a stream of {total}")
        target = self._path(attempt, stream)
        try:
            if (whole := _size(target)) is not None:
                return max(total, whole)
            return self._append(target, offset, data, total)
        except OSError as error:
            raise LogStoreUnavailable(f"cannot keep output in {self.directory}: {error.strerror}") from error

    def open(self, attempt: str, stream: str) -> int | None:
        """A descriptor of a stream that is whole; None: not here."""
        try:
            return os.open(self._path(attempt, stream), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("cannot read %s of %s: %s", stream, attempt, error)
            return None

    def delivered(self, attempt: str, stream: str) -> None:
        """It lies at its place, too: of what makes room it is among the first."""
        with suppress(OSError):
            self._path(attempt, stream).chmod(_DELIVERED)

    def _append(self, target: Path, offset: int, data: bytes, total: int) -> int:
        part = target.with_name(target.name + _PART)
        self._make_room(len(data))
        part.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "r+b", buffering=0) as file:
            fcntl.flock(fd, fcntl.LOCK_EX)  # of the same sender, who has given up an earlier try
            have = os.fstat(fd).st_size
            if have > total:  # the spool was cut since: begin again
                os.ftruncate(fd, 0)
                have = 0
            if offset != have:
                return have
            kept = data[: max(0, self.of_one - have)]
            file.seek(have)
            _write(file.fileno(), kept)
            have += len(kept)
            if have < total and have < self.of_one:
                return have
            if have < total:
                line = f"\nhpcmesos: {total - have} more bytes are not kept (log_stream_mib)\n"
                _write(file.fileno(), line.encode())
            os.fsync(fd)
            part.rename(target)
            return total

    def _make_room(self, wanted: int) -> None:
        """Removes some until ``wanted`` bytes more fit, and a sixteenth of all, so that not each piece needs a sum."""
        self._share -= wanted
        if self._share >= 0 and time.monotonic() < self._looked + _LOOK:
            return
        self._looked = time.monotonic()
        found = list(self._files())
        used = wanted + sum(one.size for one in found)
        if used > self.of_all:
            owners = self.owners(sorted({one.job for one in found}))
            for one in in_turn(found, owners):
                if used <= self.of_all - self.of_all // 16:
                    break
                used -= self._drop(one)
        self._share = (self.of_all - used) // _OTHERS

    def _files(self) -> Iterator[Kept]:
        for path in self.directory.glob("*/*"):
            with suppress(OSError, ValueError):  # ValueError: none of ours
                status = path.stat()
                _number(path.name)
                yield Kept(path, status.st_size, status.st_mtime, status.st_mode & 0o777 == _DELIVERED)

    def _drop(self, one: Kept) -> int:
        """How many bytes that has freed."""
        path = one.path
        try:
            path.unlink()
        except OSError as error:
            log.warning("the log store is full, but %s stays: %s", path.name, error.strerror)
            return 0
        log.warning("the log store is full: %s is dropped", path.name)
        if not one.copy and path.suffix != _PART:
            attempt, _, stream = path.name.rpartition(".")
            self.dropped(attempt, stream)
        return one.size

    def _path(self, attempt: str, stream: str) -> Path:
        """Raises InvalidValue for a name that is none of an attempt."""
        if (
            "/" in attempt
            or "\0" in attempt
            or not attempt[:1].isdigit()
            or stream not in ("stdout", "stderr")
        ):
            raise InvalidValue(f"illegally formed attempt identifier: {ascii(attempt[:40])[1:-1]}")
        number = _digits(attempt[:20])
        return self.directory / number[-3:].zfill(3) / f"{attempt}.{stream}"


def in_turn(files: Iterable[Kept], owners: Mapping[int, str]) -> Iterator[Kept]:
    """In which order they make room. ``owners``: by the number of the job."""
    rest: defaultdict[str, list[Kept]] = defaultdict(list)
    for one in sorted(files, key=lambda one: one.changed):
        if one.copy:
            yield one
        else:
            rest[owners.get(one.job, "")].append(one)
    held = {owner: sum(one.size for one in theirs) for owner, theirs in rest.items()}
    oldest = {owner: iter(theirs) for owner, theirs in rest.items()}
    while held:
        owner = max(held, key=held.__getitem__)
        if (kept := next(oldest[owner], None)) is None:
            del held[owner]
        else:
            held[owner] -= kept.size
            yield kept


def _digits(attempt: str) -> str:
    return attempt.partition(".")[0].partition("[")[0]


def _number(name: str) -> int:
    """Of the job. Raises ValueError: this is no file of an attempt."""
    return int(_digits(name))


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
