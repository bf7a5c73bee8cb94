"""Signals as qsig takes them: names with or without SIG, and numbers (qsig(1B))."""

from __future__ import annotations

import signal

from hpcmesos.errors import BadSignal, InvalidValue
from hpcmesos.units import parse_duration

_LARGEST = 64
_AHEAD = 60  # seconds
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


def parse_warning(text: str) -> tuple[int, int]:
    """``SIGNAL[@TIME]`` of ``-l signal=`` (Moab's form): its number, and how many seconds before the walltime ends.

    Without a time it is a minute.

    Raises:
        InvalidValue: there is no such signal, or the time is none.
    """
    name, at, ahead = text.partition("@")
    try:
        number = parse_signal(name)
        seconds = parse_duration(ahead) if at else _AHEAD
    except (BadSignal, InvalidValue) as error:
        raise InvalidValue(f"signal={text[:40]}: {error}; write SIGNAL@TIME, e.g. signal=USR1@120") from None
    if not number or not seconds:
        raise InvalidValue(f"signal={text[:40]}: write SIGNAL@TIME, e.g. signal=USR1@120")
    return number, seconds


def parse_suspension(text: str) -> bool | None:
    """True for ``suspend``, False for ``resume`` and for OpenPBS' forms of both; None: it is a signal."""
    return _SUSPENSIONS.get(text.strip())
