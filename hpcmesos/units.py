"""Durations and sizes as PBS users write them, and back.

Pure; imports nothing of the project but its errors. Rules: pbs_resources(7B) of Torque 6.1.3 and OpenPBS 23.06.
"""

from __future__ import annotations

import re

from hpcmesos.errors import InvalidValue

_SIZE = re.compile(r"(\d+)([kmgtp]?)([bw]?)", re.IGNORECASE)
_SCALE = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_WORD_BYTES = 8
_LONGEST = 100  # characters; Python refuses to read numbers of thousands of digits
_DURATION_WEIGHTS = (1, 60, 3600, 86400)


def parse_duration(text: str) -> int:
    """Seconds of ``SS``, ``MM:SS``, ``HH:MM:SS`` or ``DD:HH:MM:SS``; fields need no padding.

    Raises:
        InvalidValue: when the text is none of these forms.
    """
    fields = text.strip().split(":")
    if (
        len(text) > _LONGEST
        or not 1 <= len(fields) <= len(_DURATION_WEIGHTS)
        or not all(f.isascii() and f.isdigit() for f in fields)
    ):
        raise InvalidValue(
            f"'{text[:_LONGEST]}' is no duration; write seconds or [[DD:]HH:]MM:SS, e.g. 01:30:00"
        )
    return sum(
        int(field) * weight for field, weight in zip(reversed(fields), _DURATION_WEIGHTS, strict=False)
    )


def format_duration(seconds: float) -> str:
    """``HH:MM:SS``; hours grow past two digits rather than turn into days, as both PBS families print them."""
    whole = max(0, int(seconds))
    return f"{whole // 3600:02d}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def parse_size(text: str) -> int:
    """Bytes of a PBS size: an integer, an optional k/m/g/t/p (powers of 1024), an optional b(ytes) or w(ords of 8).

    Raises:
        InvalidValue: when the text is no size.
    """
    match = _SIZE.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    if match is None:
        raise InvalidValue(
            f"'{text[:_LONGEST]}' is no size; write an integer with kb, mb, gb or tb, e.g. 4gb"
        )
    number, scale, unit = match.groups()
    scaled: int = int(number) * 1024 ** _SCALE[scale.lower()]
    return scaled * (_WORD_BYTES if unit.lower() == "w" else 1)


def format_size(size: int) -> str:
    """The largest unit that divides ``size`` (bytes) without a rest: ``1gb``, ``1536mb``, ``10240kb``, ``17b``."""
    for power, unit in ((4, "tb"), (3, "gb"), (2, "mb"), (1, "kb")):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{unit}"
    return f"{size}b"
