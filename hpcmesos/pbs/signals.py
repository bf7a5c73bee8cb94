"""Signals as qsig takes them: names with or without SIG, and numbers (qsig(1B))."""

from __future__ import annotations

import signal

from hpcmesos.errors import BadSignal, InvalidValue

_LARGEST = 64
_SUSPENDING = frozenset({"suspend", "resume", "admin-suspend", "admin-resume"})


def parse_signal(text: str) -> int:
    """The number; 0, NULL: nothing is sent, but the job must run.

    Raises:
        BadSignal: there is no such signal.
        InvalidValue: suspend and resume, which are not served.
    """
    word = text.strip()
    if word in _SUSPENDING:
        raise InvalidValue(
            f"{word} is not served; 'qsig -s STOP' and 'qsig -s CONT' reach the job's processes"
        )
    if word.isascii() and word.isdigit() and len(word) < 4 and int(word) <= _LARGEST:
        return int(word)
    name = word.upper().removeprefix("SIG")
    if name == "NULL":
        return 0
    found = signal.Signals.__members__.get(f"SIG{name}")
    if found is None:
        raise BadSignal(f"Unknown/illegal signal name {word[:20]}")
    return int(found)
