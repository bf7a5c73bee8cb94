"""``queue export``: the live queue as a file that ``simulate`` goes on from."""

from __future__ import annotations

from pathlib import Path

import click

from hpcmesos.cli.connect import connect


@click.group()
def queue() -> None:
    """The queue as a whole."""


@queue.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), default="-")
@click.option("--state", type=click.Path(path_type=Path), help="State directory of an embedded cluster.")
def export(file: Path, state: Path | None) -> None:
    """Write what waits and runs, the nodes and the rules to FILE (JSON).

    `hpcmesos simulate FILE.json` goes on from there.
    """
    text = connect(state).export_queue()
    if str(file) == "-":
        click.echo(text.decode())
    else:
        file.write_bytes(text)
