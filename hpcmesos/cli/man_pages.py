"""Writes the man pages of the q-commands, and of `hpcmesos NAME` as hpcmesos-NAME(1); beside the commands, for the same
reasons (see ``commands_dir``). Both are made from what the parsers read."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from hpcmesos.cli.commands_dir import COMMANDS as Q_COMMANDS
from hpcmesos.pbs.man import SECTION, page, plain
from hpcmesos.pbs.option_table import COMMANDS

_EXIT_STATUS = """.SH EXIT STATUS
0; 2 for words that it does not know; 255 when no server answers; else the code of the error that its line names.
"""


def write(directory: Path) -> Path:
    """Writes ``directory/man/man1/NAME.1`` for every command; answers what belongs into MANPATH."""
    from hpcmesos.cli.main import root  # it loads us with the command that writes pages

    pages = directory / "man" / f"man{SECTION}"
    pages.mkdir(parents=True, exist_ok=True)
    for name, command in COMMANDS.items():
        (pages / f"{name}.{SECTION}").write_text(page(command))
    context = click.Context(root)
    for name in root.list_commands(context):
        found = root.get_command(context, name)
        if name not in Q_COMMANDS and found is not None and not found.hidden:
            (pages / f"hpcmesos-{name}.{SECTION}").write_text(page_of(f"hpcmesos {name}", found))
    return pages.parent


def page_of(name: str, command: click.Command) -> str:
    """The page of one of our own commands, with its subcommands, in man(7)'s macros."""
    title = plain(name.replace(" ", "-"))
    summary, _, rest = _help(command).partition("\n\n")
    parts = [
        f'.TH {title.upper()} {SECTION} "" hpcmesos "User Commands"',
        ".SH NAME",
        f"{title} \\- {plain(summary)}",
        ".SH SYNOPSIS",
        *_usage(name, command),
    ]
    if rest:
        parts += [".SH DESCRIPTION", *_paragraphs(rest)]
    if isinstance(command, click.Group):
        parts.append(".SH COMMANDS")
        context = click.Context(command)
        for word in command.list_commands(context):
            if (one := command.get_command(context, word)) is not None and not one.hidden:
                parts += [f".SS {plain(word)}", *_usage(f"{name} {word}", one), ".PP"]
                parts += [*_paragraphs(_help(one)), *_options(one)]
    elif options := list(_options(command)):
        parts += [".SH OPTIONS", *options]
    return "\n".join(parts) + "\n" + _EXIT_STATUS


def _help(command: click.Command) -> str:
    """One line for each paragraph."""
    text = inspect.cleandoc(command.help or "").replace("\b\n", "")
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _usage(name: str, command: click.Command) -> list[str]:
    words = command.collect_usage_pieces(click.Context(command))
    return [f".B {plain(name)}", plain(" ".join(words))]


def _paragraphs(text: str) -> Iterator[str]:
    for number, part in enumerate(text.split("\n\n")):
        if number:
            yield ".PP"
        yield plain(part)


def _options(command: click.Command) -> Iterator[str]:
    context = click.Context(command)
    for parameter in command.get_params(context):
        if (record := parameter.get_help_record(context)) is not None:
            written, text = record
            yield from (".TP", f"\\fB{plain(written)}\\fR", plain(" ".join(text.split())))
