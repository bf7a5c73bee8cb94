"""The shepherd's own log: its standard error, a file in its state directory."""

from __future__ import annotations

import sys
from contextlib import suppress


def write(text: str) -> None:
    """One line. Where the disk is full it is lost, and what it is about goes on: the end of a job, mostly."""
    with suppress(OSError):
        sys.stderr.write(f"shepherd: {text}\n")
