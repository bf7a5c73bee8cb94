"""Delivered output on a gateway's host: written as its owner, once, whatever is killed on the way.

A delivery is fetched into STATE/incoming, written beside its place by a process of the owner, noted in STATE/moving
with both names, and only then given its name. So after a crash the note tells what there is to do: while the new file
has not been moved everything begins anew; once it has, the master only has to hear of it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from hpcmesos.agent.control import LAUNCH
from hpcmesos.launch.owners import Owner, Owners
from hpcmesos.launch.settings import Refusal
from hpcmesos.wire import Delivery

log = logging.getLogger(__name__)

_TIMEOUT = 120.0  # seconds that a file server may take
_NULL = "/dev/null"


class Source(Protocol):
    """The masters."""

    def fetch(self, one: Delivery, target: Path) -> None:
        """Writes the whole stream to ``target``. Raises HpcmesosError."""
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
            HpcmesosError: no master answers; the same again later does no harm.
        """
        name = f"{one.attempt}.{one.stream}"
        note, incoming = self._moving / name, self._incoming / name
        trouble = ""
        try:
            if not (one.path == _NULL or self._was_moved(one, note)):
                self._source.fetch(one, incoming)
                self._write(one, note, incoming)
        except (Failed, Refusal) as error:
            trouble = str(error)
            log.warning("cannot deliver %s of %s to %s: %s", one.stream, one.attempt, one.path, error)
        self._source.finish(one, trouble)
        for path in (incoming, note):
            path.unlink(missing_ok=True)

    def clean(self, waiting: Sequence[Delivery]) -> None:
        """Removes what no master speaks of any more."""
        named = {f"{one.attempt}.{one.stream}" for one in waiting}
        for directory in (self._incoming, self._moving):
            for path in directory.iterdir():
                if path.name not in named:
                    path.unlink(missing_ok=True)

    def _was_moved(self, one: Delivery, note: Path) -> bool:
        """Whether an earlier try came as far as the last step, and did it."""
        try:
            noted = json.loads(note.read_text())
        except (OSError, ValueError):
            return False
        return self._run(one, ["there", noted["temporary"]]) == "no"

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
            try:
                done = subprocess.run(
                    [sys.executable, "-IS", str(LAUNCH / "__main__.py"), "deliver", *words],
                    stdin=stdin,
                    capture_output=True,
                    cwd="/",
                    env=owner.environment(),
                    umask=one.umask,
                    timeout=_TIMEOUT,
                    check=False,
                    **_identity(owner),
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise Failed(str(error)) from error
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise Failed(lines[-1] if lines else f"exit code {done.returncode}")
        return str(done.stdout, errors="replace")


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
