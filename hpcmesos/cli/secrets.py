"""``secret``: what a user's jobs need and nobody else may see."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.table import Table

from hpcmesos.cli.connect import STATE, connect
from hpcmesos.cli.tables import show
from hpcmesos.cli.times import local_time


@click.group()
def secret() -> None:
    """Your secrets: kept sealed, given as files to your jobs that ask with -W secret=NAME."""


@secret.command("set")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True), required=False)
@STATE
def put(name: str, file: Path | None, state: Path | None) -> None:
    """Keep what FILE (standard input by default) holds under NAME; it is never shown again.

    A job that is submitted with -W secret=NAME finds it in $HPCMESOS_SECRETS/NAME on each of its nodes.
    """
    if file is not None:
        value = file.read_bytes()
    elif sys.stdin.isatty():
        value = click.prompt("Secret", hide_input=True, confirmation_prompt=True).encode()
    else:
        value = sys.stdin.buffer.read()
    connect(state).put_secret(name, value)


@secret.command("list")
@STATE
def listing(state: Path | None) -> None:
    """List the names of your secrets."""
    table = Table("name", "changed", box=None, pad_edge=False)
    for one in connect(state).secrets():
        table.add_row(one.name, local_time(one.changed_at))
    show(table)


@secret.command("remove")
@click.argument("name")
@STATE
def remove(name: str, state: Path | None) -> None:
    """Take a secret away; jobs that run keep theirs, jobs that have not begun cannot begin."""
    connect(state).remove_secret(name)
