"""Man pages of the q-commands, made from the table that their parsers read. Pure."""

from __future__ import annotations

from hpcmesos.pbs.option_table import Command

SECTION = "1"

_EXIT_STATUS = """.SH EXIT STATUS
0; 2 for words that it does not know; 255 when no server answers; else the last byte of the server's error number,
e.g. 153 for an unknown job.
"""


def page(command: Command) -> str:
    """The page in man(7)'s macros."""
    parts = [
        f'.TH {command.name.upper()} {SECTION} "" hpcmesos "User Commands"',
        ".SH NAME",
        f"{plain(command.name)} \\- {plain(command.summary)}",
        ".SH SYNOPSIS",
        f".B {plain(command.name)}",
        f"[options] {plain(command.operands)}".rstrip(),
        ".SH OPTIONS",
        "Options may stand before, between and behind the operands; flags of one letter may be joined.",
    ]
    for option in command.options:
        value = "" if option.value is None else f" \\fI{plain(option.value)}\\fR"
        parts += [".TP", f"\\fB{plain(option.written)}\\fR{value}", plain(option.text)]
    return "\n".join(parts) + "\n" + _EXIT_STATUS


def plain(text: str) -> str:
    """Text without what troff would read as its own."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
