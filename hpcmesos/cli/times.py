"""Times as people read them."""

from __future__ import annotations

from datetime import datetime


def local_time(at: float) -> str:
    """Epoch seconds in this host's time zone, to the minute."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M")
