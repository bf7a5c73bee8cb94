"""Secrets of jobs on this node: files of the owner's in memory, from PREPARE to the end of the attempt.

They lie beside the sockets, in /run, and are in no journal, argument or variable; HPCMESOS_SECRETS names their
directory.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Mapping

from hpcmesos.launch.owners import Owner
from hpcmesos.launch.settings import Config, Refusal

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)


class Secrets:
    """Of all attempts of this shepherd."""

    def __init__(self, config: Config) -> None:
        self._place = os.path.join(config.sockets, "secrets")

    def directory(self, attempt: str) -> str:
        return os.path.join(self._place, attempt)

    def make(self, attempt: str, owner: Owner, values: Mapping[str, str | None]) -> None:
        """Writes them, base64 in ``values``; None: the owner has taken it away since the job was submitted.

        Raises:
            Refusal: one is not there any more, or its name is none.
            OSError: they cannot be written; nothing of them is left.
        """
        if not values:
            return
        for name, value in values.items():
            if not NAME.fullmatch(name) or value is None:
                raise Refusal(f"secret {name} of {owner.name} is not there any more")
        directory = self.directory(attempt)
        os.makedirs(self._place, 0o711, exist_ok=True)
        shutil.rmtree(directory, ignore_errors=True)
        try:
            os.mkdir(directory, 0o700)
            for name, value in values.items():
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with open(os.open(os.path.join(directory, name), flags, 0o400), "wb") as file:
                    file.write(base64.b64decode(value or ""))
                    if owner.switch:
                        os.fchown(file.fileno(), owner.uid, owner.gid)
            if (
                owner.switch
            ):  # root's: the job could fill it else, and its end would take as long as that is to remove
                os.chown(directory, -1, owner.gid)
                os.chmod(directory, 0o750)  # noqa: S103  (its group may list it)
        except BaseException:
            self.remove(attempt)
            raise

    def remove(self, attempt: str) -> None:
        """The attempt has ended."""
        if os.path.lexists(directory := self.directory(attempt)):
            shutil.rmtree(directory, ignore_errors=True)

    def clear(self) -> None:
        """Removes all, which an earlier shepherd left."""
        shutil.rmtree(self._place, ignore_errors=True)
