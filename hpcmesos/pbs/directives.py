"""The ``#PBS`` lines of a job script (T:src/cmds/qsub_functions.c, qsub(1B) "Directives") and its plain checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from hpcmesos.errors import InvalidScript, InvalidValue
from hpcmesos.pbs.quoting import split_words

DEFAULT_PREFIX = "#PBS"
MAX_SCRIPT_BYTES = 1024 * 1024
"""The largest job script that is accepted, in bytes."""


@dataclass(frozen=True, slots=True)
class Directive:
    """The words of one directive and the line (from 1) that it begins on."""

    line: int
    words: tuple[str, ...]


def check_script(data: bytes) -> str:
    """The script as text; bytes that are not UTF-8 survive as surrogate escapes.

    Raises:
        InvalidScript: when it is larger than ``MAX_SCRIPT_BYTES``, holds NUL bytes or has DOS line ends.
    """
    if len(data) > MAX_SCRIPT_BYTES:
        raise InvalidScript(
            f"the script is larger than {MAX_SCRIPT_BYTES // 1024**2} MiB, the most that is accepted;"
            " put data into files of its own"
        )
    nul = data.find(b"\0")
    if nul >= 0:
        line = data.count(b"\n", 0, nul) + 1
        raise InvalidScript(f"script holds a NUL byte in line {line}; is it a binary file?")
    text = data.decode("utf-8", "surrogateescape")
    _refuse_dos_lines(text)
    return text


def scan(script: str, prefix: str = DEFAULT_PREFIX) -> tuple[str, ...]:
    """The words of all directives, in order; the rules are those of ``scan_directives``."""
    return tuple(word for directive in scan_directives(script, prefix) for word in directive.words)


@lru_cache(maxsize=16)  # jobs of one call often share their script
def scan_directives(script: str, prefix: str = DEFAULT_PREFIX) -> tuple[Directive, ...]:
    """The directives before the first executable line; an empty prefix reads none.

    Blanks may stand before the prefix; empty lines, comments and lines that begin with ``:`` are passed over; a
    backslash at the end joins the next line, whose own prefix goes.

    Raises:
        InvalidScript: for DOS line ends and quotes that are not closed, with the line's number.
    """
    _refuse_dos_lines(script)
    return tuple(_directives(script.split("\n"), prefix)) if prefix else ()


def _directives(lines: list[str], prefix: str) -> Iterator[Directive]:
    numbered = iter(enumerate(lines, 1))
    for number, line in numbered:
        body = _directive_body(line, prefix)
        if body is None:
            if line.strip() and not line.lstrip().startswith(("#", ":")):
                return
            continue
        while body.endswith("\\"):
            _, following = next(numbered, (0, ""))
            joined = _directive_body(following, prefix)
            body = f"{body[:-1]} {following if joined is None else joined}"
        try:
            words = split_words(body)
        except InvalidValue as error:
            raise InvalidScript(f"directive in line {number}: {error}") from None
        yield Directive(number, words)


def _directive_body(line: str, prefix: str) -> str | None:
    """What follows the prefix; None when the line is no directive (``#PBSX`` is a comment)."""
    body = line.lstrip().removeprefix(prefix)
    if body == line.lstrip() or (body and not body.startswith((" ", "\t", "-", "\\"))):
        return None
    return body.rstrip()


def _refuse_dos_lines(script: str) -> None:
    position = script.find("\r\n")
    if position >= 0:
        number = script.count("\n", 0, position) + 1
        raise InvalidScript(
            f"script contains cr, lf: line {number} has a DOS line end; convert it with dos2unix"
        )
