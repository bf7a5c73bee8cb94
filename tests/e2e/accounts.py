"""The users as whom tests submit, when they run as root."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.cluster_kit import THIRD_USER, USERS


@contextlib.contextmanager
def accounts() -> Iterator[None]:
    """Makes the users as root; the last of several test runs on this machine removes them."""
    if os.getuid() != 0:
        yield
        return
    with Path("/run/lock/hpcmesos-test-users").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        for user in (*USERS, THIRD_USER):
            subprocess.run(
                ["useradd", "--create-home", "--shell", "/bin/bash", user], check=False, capture_output=True
            )
        yield
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for user in (*USERS, THIRD_USER):
                subprocess.run(["userdel", "--remove", user], check=False, capture_output=True)
