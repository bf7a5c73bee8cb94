"""Jobs of one call that are alike: what their words have in common is read once. Pure.

Kin differ in nothing but their names, the program behind ``--`` and its arguments: thousands of them make a sweep.
"""

from __future__ import annotations

import shlex
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from hpcmesos.pbs.directives import scan_directives
from hpcmesos.pbs.options import ParsedCommand, parse
from hpcmesos.pbs.quoting import unquote
from hpcmesos.pbs.submission import SubmitContext, directive_prefix
from hpcmesos.pbs.values import check_name, check_printable

_NAME = "N"


@dataclass(frozen=True, slots=True)
class Words:
    """qsub's words of one job among many."""

    argv: Sequence[str]
    command: ParsedCommand

    @classmethod
    def read(cls, argv: Sequence[str]) -> Words:
        """Raises UsageError, as parse()."""
        return cls(argv, parse("qsub", argv))

    @property
    def program(self) -> tuple[str, ...] | None:
        """What stands behind ``--``; None: there is no ``--``."""
        return self.command.rest

    @property
    def submit_args(self) -> str:
        """As a shell would read them."""
        return shlex.join(self.argv)

    def kind(self, script: str | None, context: SubmitContext) -> Hashable:
        """The same for kin. ``script``: its text, of which only the directives matter here.

        Raises:
            InvalidScript: for directives that cannot be read.
        """
        command, program = self.command, self.program
        named = command.has(_NAME)
        shared = command.options
        if named:
            shared = tuple(option for option in shared if option[0] != _NAME)
        # A job without -N is called after its program; `--` without a program is refused.
        behind = None if program is None else bool(program) if named else program[:1]
        directives = None
        if script is not None and program is None:
            directives = scan_directives(script, directive_prefix(command, context))
        return shared, named, command.operands, behind, directives

    def name(self, otherwise: str) -> str:
        """Its name; ``otherwise``: what its kin are called that have none of their own. Raises InvalidValue."""
        given = self.command.last(_NAME)
        return otherwise if given is None else check_name(check_printable(_NAME, unquote(given)))
