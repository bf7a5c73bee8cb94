"""Writes the man pages of the q-commands; beside them, for the same reasons (see ``commands_dir``)."""

from __future__ import annotations

from pathlib import Path

from hpcmesos.pbs.man import SECTION, page
from hpcmesos.pbs.option_table import COMMANDS


def write(directory: Path) -> Path:
    """Writes ``directory/man/man1/NAME.1`` for every command; answers what belongs into MANPATH."""
    pages = directory / "man" / f"man{SECTION}"
    pages.mkdir(parents=True, exist_ok=True)
    for name, command in COMMANDS.items():
        (pages / f"{name}.{SECTION}").write_text(page(command))
    return pages.parent
