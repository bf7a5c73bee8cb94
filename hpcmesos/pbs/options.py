"""Reads a q-command's words by the table of its options, as GNU getopt does: options may follow operands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from hpcmesos.errors import UsageError
from hpcmesos.pbs.option_table import COMMANDS, Command

_HELP_COLUMN = 34


@dataclass(frozen=True, slots=True)
class ParsedCommand:
    """The words of one command, sorted out."""

    command: str
    options: tuple[tuple[str, str | None], ...]  # (name without dashes, value), in the order given
    operands: tuple[str, ...]
    rest: tuple[str, ...] | None  # the words after ``--``; None: no ``--``

    def has(self, name: str) -> bool:
        return any(given == name for given, _ in self.options)

    def last(self, name: str) -> str | None:
        """The value of the last ``name``; None when it was not given or takes none."""
        return next((value for given, value in reversed(self.options) if given == name), None)

    def all(self, name: str) -> tuple[str, ...]:
        return tuple(value for given, value in self.options if given == name and value is not None)


def parse(command: str, argv: Sequence[str]) -> ParsedCommand:
    """Sorts ``argv`` (without the command's own name) into options, operands and the rest after ``--``.

    Raises:
        UsageError: for an option that the command does not have, and for one that lacks its argument.
    """
    return _parse(command, tuple(argv))


@lru_cache(maxsize=16)  # qsub reads the same words for what it needs, which variables, and the job
def _parse(command: str, argv: tuple[str, ...]) -> ParsedCommand:
    table = COMMANDS[command]
    options: list[tuple[str, str | None]] = []
    operands: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            return ParsedCommand(command, tuple(options), tuple(operands), tuple(words))
        if word in table.aliases:
            options.append((table.aliases[word], _argument(table, word, words)))
        elif word.startswith("--"):
            options.append(_long(table, word, words))
        elif word.startswith("-") and word != "-":
            options.extend(_cluster(table, word[1:], words))
        else:
            operands.append(word)
    return ParsedCommand(command, tuple(options), tuple(operands), None)


def help_text(command: str) -> str:
    """The text of ``--help``: synopsis, summary and one line for each option."""
    table = COMMANDS[command]
    lines = [f"usage: {table.name} [options] {table.operands}".rstrip(), table.summary, ""]
    for option in table.options:
        left = f"  {option.written}" + (f" {option.value}" if option.value else "")
        lines.append(f"{left:<{_HELP_COLUMN}} {option.text}")
    return "\n".join(lines) + "\n"


def _long(table: Command, word: str, words: Iterator[str]) -> tuple[str, str | None]:
    name, equals, value = word[2:].partition("=")
    option = table.find(name) if len(name) > 1 else None
    if option is None:
        raise UsageError(f"unrecognized option '--{name}'; see {table.name} --help")
    if option.value is None:
        if equals:
            raise UsageError(f"option '--{name}' takes no argument")
        return name, None
    return name, value if equals else _argument(table, word, words)


def _cluster(table: Command, letters: str, words: Iterator[str]) -> Iterator[tuple[str, str | None]]:
    """``-fx`` is two flags, ``-lwalltime=1`` an option with its value attached, ``-fFjson`` both."""
    for position, letter in enumerate(letters):
        option = table.find(letter)
        if option is None:
            raise UsageError(f"invalid option -- '{letter}'; see {table.name} --help")
        if option.value is None:
            yield letter, None
            continue
        attached = letters[position + 1 :]
        yield letter, attached or _argument(table, f"-{letter}", words)
        return


def _argument(table: Command, written: str, words: Iterator[str]) -> str:
    value = next(words, None)
    if value is None:
        raise UsageError(f"option requires an argument -- '{written.lstrip('-')}'; see {table.name} --help")
    return value
