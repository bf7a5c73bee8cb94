"""Jobs of one call that are alike: what their words have in common is read once. Pure.

Kin differ in nothing but their names (``-N``), the program behind ``--`` and its arguments, their variables (``-v``)
and their scripts' arguments (``-F``): thousands of them make a sweep.
"""

from __future__ import annotations

import shlex
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from hpcmesos.pbs.directives import scan_directives
from hpcmesos.pbs.options import ParsedCommand, parse
from hpcmesos.pbs.quoting import unquote
from hpcmesos.pbs.submission import SubmitContext, arguments, directive_prefix, origin_variables
from hpcmesos.pbs.values import check_name, check_printable, parse_variables

_NAME, _VARIABLES, _ARGUMENTS = "N", "v", "F"
_OWN = frozenset({_NAME, _VARIABLES, _ARGUMENTS})
_OVERRIDING = ((_NAME, "own"), (_ARGUMENTS, ""))
"""Stand among the shared words for what a job has of its own: nothing of its script may be judged, or told apart,
that it overrides. Variables add up, so those of the script count beside its own.
"""


@dataclass(frozen=True, slots=True)
class Words:
    """qsub's words of one job among many: as given, sorted out, and those of them that it shares with its kin.

    Where it has a name or arguments of its own, as its kin have, ``shared`` has others in their place.
    """

    argv: Sequence[str]
    command: ParsedCommand
    shared: ParsedCommand

    @classmethod
    def read(cls, argv: Sequence[str]) -> Words:
        """Raises UsageError, as parse()."""
        command = parse("qsub", argv)
        shared = [option for option in command.options if option[0] not in _OWN]
        shared += [other for other in _OVERRIDING if command.has(other[0])]
        return cls(
            argv, command, ParsedCommand(command.command, tuple(shared), command.operands, command.rest)
        )

    def kind(self, script: str | None, context: SubmitContext) -> Hashable:
        """The same for kin. ``script``: its text, of which only the directives matter here.

        Raises:
            InvalidScript: for directives that cannot be read.
        """
        program = self.program
        # A job without -N is called after its program; `--` without a program is refused.
        behind = None if program is None else bool(program) if self.command.has(_NAME) else program[:1]
        directives = None
        if script is not None and program is None:
            directives = scan_directives(script, directive_prefix(self.shared, context))
        return self.shared.options, self.shared.operands, behind, directives

    @property
    def program(self) -> tuple[str, ...] | None:
        """What stands behind ``--``; None: there is no ``--``."""
        return self.command.rest

    @property
    def submit_args(self) -> str:
        """As a shell would read them."""
        return shlex.join(self.argv)

    def name(self, otherwise: str) -> str:
        """Its name; ``otherwise``: what its kin are called that have none of their own. Raises InvalidValue."""
        given = self.command.last(_NAME)
        return otherwise if given is None else check_name(check_printable(_NAME, unquote(given)))

    def variables(self, context: SubmitContext) -> dict[str, str]:
        """Those of its ``-v``, beside what its kin have; nothing overrides PBS_O_*. Raises InvalidValue."""
        own: dict[str, str] = {}
        for value in reversed(self.command.all(_VARIABLES)):
            own |= parse_variables(value, context.environ)
        if not own:
            return own
        origin = origin_variables(context)
        return {name: value for name, value in own.items() if name not in origin}

    @property
    def script_args(self) -> tuple[str, ...] | None:
        """Of its ``-F``; None: those of its kin. Raises InvalidValue."""
        given = self.command.last(_ARGUMENTS)
        return None if given is None else arguments(given, f"-{_ARGUMENTS}")
