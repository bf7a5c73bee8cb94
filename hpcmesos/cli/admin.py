"""``token``, ``doctor``, ``install-commands``: for those who run a cluster."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from hpcmesos.cli import checks, commands_dir, man_pages
from hpcmesos.cli.connect import connect

STATE = click.option(
    "--state", type=click.Path(path_type=Path), help="State directory of an embedded cluster."
)


@click.group()
def token() -> None:
    """Bearer tokens of users, one-time tokens by which agents join."""


@token.command("create")
@click.option("--join", is_flag=True, help="A one-time token for an agent.")
@click.option("--node", help="With --join: good for this node only.")
@click.option("--user", help="A bearer token for this user.")
@click.option("--days", type=float, default=1.0, show_default=True, help="How long it is good.")
@STATE
def create(join: bool, node: str | None, user: str | None, days: float, state: Path | None) -> None:
    """Print a new token; it is stored hashed and cannot be shown again."""
    if join == bool(user):
        raise click.UsageError("give either --join or --user NAME")
    kind = "join" if join else "user"
    reply = connect(state).create_token(kind, user=user, node=node, lifetime=days * 86400)
    click.echo(reply.token)


@click.command()
@STATE
def doctor(state: Path | None) -> None:
    """Check this machine and the cluster; every finding says what to do."""
    table = Table("check", "", "what was found", box=None, pad_edge=False)
    failed = False
    for finding in checks.run_all(lambda: connect(state)):
        failed |= finding.verdict == "bad"
        colour = {"good": "green", "note": "yellow", "bad": "red"}[finding.verdict]
        table.add_row(finding.check, f"[{colour}]{finding.verdict}[/{colour}]", finding.text)
    Console().print(table)
    sys.exit(1 if failed else 0)


@click.command("install-commands")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--socket", type=click.Path(path_type=Path), default="/run/hpcmesos/api.sock", show_default=True
)
def install_commands(directory: Path, socket: Path) -> None:
    """Write the q-commands into DIRECTORY/torque and DIRECTORY/pbspro, their man pages into DIRECTORY/man."""
    commands_dir.write(directory.absolute(), socket.absolute())
    pages = man_pages.write(directory.absolute())
    click.echo(f"put {directory.absolute() / 'torque'} (or pbspro) first in PATH, and {pages} into MANPATH")
