"""``-W stagein=LOCAL@HOST:REMOTE,...`` and ``stageout``: files that come before a job and go after it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from hpcmesos.errors import InvalidValue
from hpcmesos.pbs.quoting import split_list

STAGINGS = ("stagein", "stageout")
_INDEX = "^array_index^"


@dataclass(frozen=True, slots=True)
class Transfer:
    """``local``: on the job's first node, relative to the owner's home; ``remote``: on ``host``."""

    local: str
    host: str
    remote: str

    def of_element(self, index: int | None) -> Transfer:
        """With the index of an array's element in place of ``^array_index^`` (OpenPBS)."""
        number = "" if index is None else str(index)
        return Transfer(self.local.replace(_INDEX, number), self.host, self.remote.replace(_INDEX, number))


def parse_staging(name: str, text: str) -> tuple[Transfer, ...]:
    """The transfers of an attribute, in their order.

    Raises:
        InvalidValue: one that is not ``LOCAL@HOST:REMOTE``.
    """
    found = []
    for word in split_list(text):
        local, _, rest = word.rpartition("@")
        host, colon, remote = rest.partition(":")
        if not (local and host and colon and remote) or host.startswith("-"):
            raise InvalidValue(f"illegal -W {name} value '{word}'; write LOCAL@HOST:REMOTE")
        found.append(Transfer(local, host, remote))
    return tuple(found)
