"""What users' processes have the shepherd hold open. It serves all users of a node, so nobody may take all of it."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

_SHARE = 2
"""A user takes one part in so many of the descriptors that this process may have, at most."""
OF_CONNECTION = 1
"""Descriptors of a connection to us."""
OF_PROCESS = 4
"""Those of a command or a rank: two pipes, what tells of its start, and its input or its PMI."""


class Load:
    """Descriptors, by the users' ids."""

    def __init__(self) -> None:
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE
        self._of: Counter[int] = Counter()

    @contextmanager
    def hold(self, uid: int, descriptors: int) -> Iterator[bool]:
        """Yields whether this user may have so many more; then they count until the block is over."""
        if not self._room(uid, descriptors):
            yield False
            return
        self._of[uid] += descriptors
        try:
            yield True
        finally:
            self._of[uid] -= descriptors
            if not self._of[uid]:
                del self._of[uid]

    def _room(self, uid: int, descriptors: int) -> bool:
        return self._of[uid] + descriptors <= self._most
