"""Tables, for people and for pipes."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

_WIDE = 1000


def show(*tables: Table) -> None:
    """Within the width of the terminal; in a file or a pipe each row is one line. An empty line stands between two.

    Brackets and colons in notes and names are what they are: no markup, no emoji.
    """
    width = None if sys.stdout.isatty() else _WIDE
    console = Console(soft_wrap=True, width=width, markup=False, emoji=False)
    for number, table in enumerate(tables):
        if number:
            console.print()
        console.print(table)
