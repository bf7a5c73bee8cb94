"""The language of qmgr (qmgr(8B) of Torque 6.1.3 and OpenPBS 23.06): text to directives. Pure.

A directive is ``VERB OBJECT [NAME,...] [ATTRIBUTE OP VALUE,...]``; verbs and objects may be cut short as long as they
stay unique. A line that begins with ``#`` is a comment, a backslash at its end joins the next one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from hpcmesos.errors import BadDirective, InvalidValue

VERBS = ("active", "create", "delete", "set", "unset", "list", "print", "help", "quit", "exit")
OBJECTS = ("server", "queue", "node")
OPERATORS = ("+=", "-=", "=")

_BARE_VERBS = frozenset({"help", "quit", "exit"})
_PLURALS = {"servers": "server", "queues": "queue", "nodes": "node"}
_ATTRIBUTE = re.compile(r"[A-Za-z_]\w*(?:\.[\w-]+)?", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Change:
    """``name OP value``; without operator and value: the attribute is named only (unset, list)."""

    name: str  # with its resource: "resources_max.walltime"
    operator: str = ""
    value: str = ""


@dataclass(frozen=True, slots=True)
class Directive:
    """One command. ``names`` empty: the active objects, else all (list, print) or none."""

    text: str  # as written
    verb: str
    kind: str = ""  # of OBJECTS; empty: the verb stands alone
    names: tuple[str, ...] = ()
    every: bool = False  # ``@server``: all objects of that kind
    changes: tuple[Change, ...] = ()


def lines(text: str) -> Iterator[str]:
    """The commands of a file or of ``-c``, without comments and empty lines."""
    pending = ""
    for line in text.splitlines():
        whole = pending + line
        if whole.endswith("\\"):
            pending = whole[:-1]
            continue
        pending = ""
        if whole.strip() and not whole.lstrip().startswith("#"):
            yield whole
    if pending.strip():
        yield pending


def parse_line(line: str) -> Directive:
    """Reads one command.

    Raises:
        InvalidValue: an unknown verb or object.
        BadDirective: anything else that is not of the grammar.
    """
    return _Reader(line).directive()


class _Reader:
    """Walks through one line; every fault knows where it is."""

    def __init__(self, line: str) -> None:
        self.line = line
        self.at = 0

    def directive(self) -> Directive:
        verb = self._choice(self._word(), VERBS, "operation")
        if verb in _BARE_VERBS:
            return Directive(self.line.strip(), verb)
        if self._ends():
            if verb == "active":
                return Directive(self.line.strip(), verb)
            raise self._fault("an object is missing (server, queue or node)")
        word = self._word()
        kind = self._choice(_PLURALS.get(word, word), OBJECTS, "object type")
        names, every = self._names(verb, kind)
        changes = tuple(self._changes(needs_value=verb in ("set", "create")))
        if verb == "create" and (kind == "server" or not names):
            raise self._fault("create wants the name of a queue or node")
        if verb in ("set", "unset") and not changes:
            raise self._fault("an attribute is missing")
        return Directive(self.line.strip(), verb, kind, names, every, changes)

    def _names(self, verb: str, kind: str) -> tuple[tuple[str, ...], bool]:
        """The object names, told from attributes by what comes after them, and whether ``@server`` means all."""
        if self._ends():
            return (), False
        if self._peek() == "@":
            self._word()
            return (), True
        start = self.at
        words = [word.strip() for word in self._list_word().split(",")]
        follows_operator = any(self.line.startswith(operator, self._skip()) for operator in OPERATORS)
        named = all(_NAME.fullmatch(word.partition("@")[0]) for word in words)
        if follows_operator or not named or (kind == "server" and not self._is_server_name(verb)):
            self.at = start
            return (), False
        return tuple(word.partition("@")[0] for word in words), False

    def _is_server_name(self, verb: str) -> bool:
        """Only a word that more words follow can be the server's: ``list server managers`` names an attribute."""
        return not self._ends() and verb in ("set", "unset", "list", "print", "active")

    def _changes(self, *, needs_value: bool) -> Iterator[Change]:
        while not self._ends():
            match = _ATTRIBUTE.match(self.line, self._skip())
            if match is None:
                raise self._fault("an attribute is expected here")
            self.at = match.end()
            operator = next((op for op in OPERATORS if self.line.startswith(op, self._skip())), "")
            if operator:
                self.at = self._skip() + len(operator)
                yield Change(match[0], operator, self._value())
            elif needs_value:
                self.at = self._skip()
                raise self._fault(f"{match[0]} lacks an operator and a value")
            else:
                yield Change(match[0])
            if self._peek() == ",":
                self.at = self._skip() + 1

    def _value(self) -> str:
        """Up to a comma, or what stands in quotes."""
        self.at = self._skip()
        quote = self.line[self.at : self.at + 1]
        if quote in ("'", '"'):
            end = self.line.find(quote, self.at + 1)
            if end < 0:
                raise self._fault("a quote is not closed")
            value, self.at = self.line[self.at + 1 : end], end + 1
            if not self._ends() and self._peek() != ",":
                raise self._fault("a comma is expected behind the quote")
            return value
        end = self.line.find(",", self.at)
        end = len(self.line) if end < 0 else end
        value, self.at = self.line[self.at : end].strip(), end
        return value

    def _choice(self, word: str, known: tuple[str, ...], what: str) -> str:
        found = [name for name in known if word and name.startswith(word.lower())]
        if not found and word == "?":
            return "help"
        if not found:
            raise InvalidValue(f"Illegal {what}: {word or self.line.strip()}")
        return found[0]

    def _word(self) -> str:
        self.at = self._skip()
        start = self.at
        while self.at < len(self.line) and not self.line[self.at].isspace():
            self.at += 1
        return self.line[start : self.at]

    def _list_word(self) -> str:
        """A word, and what commas join to it even over blanks; ends before an operator."""
        match = re.compile(r"[^\s,=+]+(?:\s*,\s*[^\s,=+]+)*").match(self.line, self._skip())
        if match is None:
            raise self._fault("a name is expected here")
        self.at = match.end()
        return match[0]

    def _skip(self) -> int:
        at = self.at
        while at < len(self.line) and self.line[at].isspace():
            at += 1
        return at

    def _peek(self) -> str:
        return self.line[self._skip() : self._skip() + 1]

    def _ends(self) -> bool:
        return self._skip() >= len(self.line)

    def _fault(self, why: str) -> BadDirective:
        return BadDirective(f"Syntax error\n{self.line}\n{' ' * self.at}^ {why}")
