"""Delivered output on a gateway's host: written as its owner, once, whatever is killed on the way.

A delivery is fetched into STATE/incoming, written beside its place by a process of the owner, noted in STATE/moving
with both names, and only then given its name. So after a crash the note tells what there is to do: while the new file
has not been moved everything begins anew; once it has, the master only has to hear of it. Each owner has a line of his
own: a file server that hangs holds up nobody but those whose files it has.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import msgspec

from hpcmesos.agent.control import LAUNCH
from hpcmesos.api_schema import Delivery
from hpcmesos.errors import HpcmesosError, StateError, UnknownJob
from hpcmesos.launch.owners import Owner, Owners
from hpcmesos.launch.settings import Refusal

log = logging.getLogger(__name__)

_TIMEOUT = 120.0  # seconds that a file server may take
_DEATH = 2.0  # seconds that a killed process may take; one that waits for a dead file server does not die
_UNCLEAR = 86400.0  # seconds after which it is said that nobody can tell whether a file was written
_THREADS = 8
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 120.0  # seconds until a delivery that failed is tried again
_NULL = "/dev/null"


class Source(Protocol):
    """The masters."""

    def fetch(self, one: Delivery, target: Path) -> None:
        """Writes the whole stream to ``target``. Raises UnknownJob: no master has it; HpcmesosError."""
        ...

    def finish(self, one: Delivery, trouble: str) -> None:
        """Raises HpcmesosError: they may not know yet."""
        ...


class Failed(Exception):
    """It cannot be written, for a reason that its owner may read."""


class Deliverer:
    """``state``: a directory of root's, or of whoever runs the gateway."""

    def __init__(self, state: Path, source: Source) -> None:
        self._incoming, self._moving = state / "incoming", state / "moving"
        self._source = source
        self._owners = Owners()
        for directory in (self._incoming, self._moving):
            directory.mkdir(mode=0o700, exist_ok=True)

    def deliver(self, one: Delivery) -> None:
        """Writes what a master asks for, or only tells it that this was done.

        Raises:
            HpcmesosError, OSError: it cannot be done now; the same again later does no harm.
        """
        name = f"{one.attempt}.{one.stream}"
        note, incoming = self._moving / name, self._incoming / name
        trouble = ""
        try:
            if not (one.path == _NULL or self._was_moved(one, note)):
                self._source.fetch(one, incoming)
                self._write(one, note, incoming)
        except (Failed, Refusal, UnknownJob) as error:
            trouble = str(error)
            log.warning("cannot deliver %s of %s to %s: %s", one.stream, one.attempt, one.path, error)
        except (HpcmesosError, OSError):
            incoming.unlink(missing_ok=True)  # others need the room meanwhile
            raise
        self._source.finish(one, trouble)
        for path in (incoming, note):
            path.unlink(missing_ok=True)

    def clean(self) -> None:
        """Nothing is to be delivered: removes what is left of what was given up elsewhere."""
        for directory in (self._incoming, self._moving):
            for path in directory.iterdir():
                path.unlink(missing_ok=True)

    def _was_moved(self, one: Delivery, note: Path) -> bool:
        """Whether an earlier try came as far as the last step, and did it.

        Raises:
            StateError: nobody can tell now. Failed: nobody could for a day. Refusal.
        """
        try:
            noted, since = note.read_text(), note.stat().st_mtime
        except FileNotFoundError:
            return False
        try:
            return self._run(one, ["moved", noted]) == "yes"
        except Failed as error:
            if time.time() > since + _UNCLEAR:
                raise Failed(f"it may have been written: {error}") from error
            raise StateError(f"cannot tell whether {one.path} was written: {error}") from error

    def _write(self, one: Delivery, note: Path, incoming: Path) -> None:
        """Raises Failed, Refusal."""
        temporary = f".{one.attempt}.{one.stream}.delivery"
        words = ["write", one.path, one.name, temporary, str(int(one.append))]
        made = json.loads(self._run(one, words, incoming))
        _write_synced(note, json.dumps(made))
        self._run(one, ["move", made["temporary"], made["target"]])

    def _run(self, one: Delivery, words: list[str], source: Path | None = None) -> str:
        """What the owner's process prints. Raises Failed, Refusal."""
        owner = self._owners.resolve(one.owner)
        with (source or Path(os.devnull)).open("rb") as stdin:
            process = subprocess.Popen(
                [sys.executable, "-IS", str(LAUNCH / "__main__.py"), "deliver", *words],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                env=owner.environment(),
                umask=one.umask,
                **_identity(owner),
            )
        try:
            printed, said = process.communicate(timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            _abandon(process)
            raise Failed(f"the file system took longer than {_TIMEOUT:g} s") from None
        if process.returncode:
            lines = said.decode(errors="replace").strip().splitlines()
            raise Failed(lines[-1] if lines else f"exit code {process.returncode}")
        return str(printed, errors="replace")


class Lines:
    """Threads that deliver, one of an owner's at a time; what failed is tried again later, and holds up nothing."""

    def __init__(self, deliver: Callable[[Delivery], None], threads: int = _THREADS) -> None:
        self._deliver = deliver
        self._threads = threads
        self._owners: set[str] = set()  # whose line is at work
        self._later: dict[tuple[str, str], tuple[float, float]] = {}  # when, and the pause before
        self._changed = threading.Condition()

    def give(self, waiting: Sequence[Delivery]) -> bool:
        """Begins as many as there is room for; whether there were any."""
        begun = False
        with self._changed:
            named = {(one.attempt, one.stream) for one in waiting}
            self._later = {key: value for key, value in self._later.items() if key in named}
            for one in waiting:
                due, _ = self._later.get((one.attempt, one.stream), (0.0, 0.0))
                if len(self._owners) >= self._threads:
                    break
                if one.owner not in self._owners and time.monotonic() >= due:
                    try:
                        threading.Thread(target=self._run, args=(one,), daemon=True).start()
                    except RuntimeError as error:  # the host has no more
                        log.warning("cannot begin a delivery: %s", error)
                        break
                    self._owners.add(one.owner)
                    begun = True
        return begun

    def wait(self, seconds: float) -> None:
        """Until a line has come to its end, but not longer than that."""
        with self._changed:
            self._changed.wait(seconds)

    def _run(self, one: Delivery) -> None:
        key = (one.attempt, one.stream)
        failed = False
        try:
            self._deliver(one)
        except (HpcmesosError, OSError, ValueError, msgspec.MsgspecError) as error:
            log.warning("%s of %s is not delivered yet: %s", one.stream, one.attempt, error)
            failed = True
        with self._changed:
            self._owners.discard(one.owner)
            _, pause = self._later.pop(key, (0.0, 0.0))
            if failed:
                pause = min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
                self._later[key] = (time.monotonic() + pause, pause)
            self._changed.notify_all()


def _abandon(process: subprocess.Popen[bytes]) -> None:
    """Kills it, and waits no longer than a healthy one takes to die."""
    process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_DEATH)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _identity(owner: Owner) -> dict[str, Any]:
    if not owner.switch:
        return {}
    return {"user": owner.uid, "group": owner.gid, "extra_groups": owner.groups}


def _write_synced(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
