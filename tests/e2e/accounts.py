"""The users as whom tests submit, when they run as root."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.cluster_kit import THIRD_USER, USERS

HELD = Path("/run/lock/hpcmesos-test-users")
"""Locked by all who use them."""
CHANGED = HELD.with_suffix(".change")
"""Locked by who makes or removes them: a user is in /etc/passwd before he has a home."""


@contextlib.contextmanager
def accounts() -> Iterator[None]:
    """Makes the users as root; the last of several test processes on this machine removes them."""
    if os.getuid() != 0:
        yield
        return
    with HELD.open("w") as held:
        with _alone():
            fcntl.flock(held, fcntl.LOCK_SH)
            for user in (*USERS, THIRD_USER):
                subprocess.run(
                    ["useradd", "--create-home", "--shell", "/bin/bash", user],
                    check=False,
                    capture_output=True,
                )
        yield
        with _alone(), contextlib.suppress(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for user in (*USERS, THIRD_USER):
                subprocess.run(["userdel", "--remove", user], check=False, capture_output=True)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    with CHANGED.open("w") as changed:
        fcntl.flock(changed, fcntl.LOCK_EX)
        yield
