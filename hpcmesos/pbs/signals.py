"""Signals as qsig takes them: names with or without SIG, and numbers (qsig(1B))."""

from __future__ import annotations

import signal

from hpcmesos.errors import BadSignal

_LARGEST = 64
_SUSPENSIONS = {"suspend": True, "admin-suspend": True, "resume": False, "admin-resume": False}


def parse_signal(text: str) -> int:
    """The number; 0, NULL: nothing is sent, but the job must run.

    Raises:
        BadSignal: there is no such signal.
    """
    word = text.strip()
    if word.isascii() and word.isdigit() and len(word) < 4 and int(word) <= _LARGEST:
        return int(word)
    name = word.upper().removeprefix("SIG")
    if name == "NULL":
        return 0
    found = signal.Signals.__members__.get(f"SIG{name}")
    if found is None:
        raise BadSignal(f"Unknown/illegal signal name {word[:20]}")
    return int(found)


def parse_suspension(text: str) -> bool | None:
    """True for ``suspend``, False for ``resume`` and for OpenPBS' forms of both; None: it is a signal."""
    return _SUSPENSIONS.get(text.strip())
