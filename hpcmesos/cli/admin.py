"""``token``, ``doctor``, ``install-commands``: for those who run a cluster."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import msgspec
from rich.table import Table
from rich.text import Text

from hpcmesos.api_schema import AuditStatus, AuthorityStatus
from hpcmesos.cli import checks, commands_dir, man_pages
from hpcmesos.cli.connect import STATE, connect
from hpcmesos.cli.tables import show
from hpcmesos.cli.times import local_time
from hpcmesos.model import Scope


@click.group()
def token() -> None:
    """Bearer tokens of users, one-time tokens by which agents and gateways join."""


@token.command("create")
@click.option("--join", is_flag=True, help="A one-time token for an agent.")
@click.option("--gateway", is_flag=True, help="A one-time token for the gateway of a login host.")
@click.option("--node", help="With --join and --gateway: good for this host only.")
@click.option("--user", help="A bearer token for this user.")
@click.option("--days", type=float, default=1.0, show_default=True, help="How long it is good.")
@click.option(
    "--scope",
    type=click.Choice([scope.value for scope in Scope]),
    default=Scope.ALL.value,
    show_default=True,
    help="read: changes nothing; jobs: also the user's own jobs; all: whatever the user may do.",
)
@STATE
def create(
    join: bool,
    gateway: bool,
    node: str | None,
    user: str | None,
    days: float,
    scope: str,
    state: Path | None,
) -> None:
    """Print a new token; it is stored hashed and cannot be shown again."""
    if [join, gateway, bool(user)].count(True) != 1:
        raise click.UsageError("give one of --join, --gateway and --user NAME")
    kind = "join" if join else "gateway" if gateway else "user"
    reply = connect(state).create_token(kind, user=user, node=node, lifetime=days * 86400, scope=scope)
    click.echo(reply.token)


@token.command("list")
@STATE
def listing(state: Path | None) -> None:
    """List tokens that are good: one's own; a manager sees all."""
    table = Table("id", "kind", "for", "scope", "made by", "good until", box=None, pad_edge=False)
    for one in connect(state).tokens():
        whose = one.user or one.node or "any node"
        table.add_row(one.id, one.kind, whose, one.scope, one.created_by, local_time(one.expires_at))
    show(table)


@token.command("revoke")
@click.argument("ids", nargs=-1, required=True)
@STATE
def revoke(ids: tuple[str, ...], state: Path | None) -> None:
    """End the tokens with these IDS, and all tokens that were made by them."""
    for ended in connect(state).revoke_tokens(ids):
        click.echo(ended)


@click.group()
def certificate() -> None:
    """Certificates of nodes; they are renewed by themselves."""


@certificate.command("list")
@STATE
def certificates(state: Path | None) -> None:
    """List the authorities that are trusted, and the certificates that have not run out."""
    client = connect(state)
    authorities = _authorities(client.authorities())
    table = Table("node", "serial", "authority", "issued", "good until", "", box=None, pad_edge=False)
    for one in client.certificates():
        revoked = "" if one.revoked_at is None else f"revoked {local_time(one.revoked_at)}"
        times = local_time(one.issued_at), local_time(one.expires_at)
        table.add_row(one.node, one.serial[:16], one.authority[:16], *times, revoked)
    show(authorities, table)


def _authorities(found: list[AuthorityStatus]) -> Table:
    """``next``: it will sign; ``old``: it goes."""
    table = Table("authority", "state", "good until", "signs from", "waits for", box=None, pad_edge=False)
    for one in found:
        start = "" if one.signs_from is None else local_time(one.signs_from)
        waits = ", ".join(one.lacking)
        table.add_row(one.fingerprint[:16], one.state, local_time(one.expires_at), start, waits)
    return table


@certificate.command("ca")
@STATE
def trusted(state: Path | None) -> None:
    """Print the certificates of the authorities that are trusted: what clients need as their ca_file."""
    click.echo(connect(state).trusted_authorities(), nl=False)


@certificate.command("rotate-ca")
@click.option(
    "--certificate",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The site's own (PEM).",
)
@click.option(
    "--key", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Its key (PEM, no password)."
)
@click.option(
    "--wait", type=float, default=0.0, show_default=True, metavar="DAYS", help="Before the new one signs."
)
@click.option("--force", is_flag=True, help="Take the next step now, without the nodes that are waited for.")
@STATE
def rotate_ca(
    certificate: Path | None, key: Path | None, wait: float, force: bool, state: Path | None
) -> None:
    """Replace the certificate authority while jobs run: by one that is made here, or by the site's own.

    Nodes and masters get the new one by themselves, then new certificates; then the old one is dropped. Programs on
    other hosts that speak TLS need `hpcmesos certificate ca` as their ca_file before the new one signs: see --wait.
    """
    if (certificate is None) != (key is None):
        raise click.UsageError("--certificate and --key go together")
    client = connect(state)
    if force:
        found = client.force_authority()
    else:
        pem, key_pem = (path.read_text() if path else "" for path in (certificate, key))
        found = client.rotate_authority(pem, key_pem, wait * 86400)
    show(_authorities(found))


@certificate.command("revoke")
@click.argument("node")
@STATE
def revoke_certificates(node: str, state: Path | None) -> None:
    """End NODE's certificates at once: it loses its link and needs a new join token. Its jobs run on."""
    connect(state).revoke_certificates(node)


@click.command()
@click.option("--days", type=float, default=1.0, show_default=True, help="How far back.")
@click.option("--user", help="What this user changed.")
@click.option("--job", help="What was changed of this job.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="The newest so many."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object in each line.")
@STATE
def audit(
    days: float, user: str | None, job: str | None, limit: int, as_json: bool, state: Path | None
) -> None:
    """Show who changed what, from where, and by which credential."""
    found = connect(state).audit(max(0.0, time.time() - days * 86400), user, job, limit)
    if as_json:
        for change in found:
            click.echo(msgspec.json.encode(change))
        return
    table = Table("when", "who", "did", "to", "by way of", box=None, pad_edge=False)
    for change in found:
        table.add_row(
            local_time(change.at), change.user, change.action, change.job or _named(change), change.via
        )
    show(table)


def _named(change: AuditStatus) -> str:
    """What a change that is about no job was made to."""
    return " ".join(
        str(change.details[key]) for key in ("kind", "name", "node", "for") if change.details.get(key)
    )


@click.command()
@STATE
def doctor(state: Path | None) -> None:
    """Check this machine and the cluster; every finding says what to do."""
    table = Table("check", "", "what was found", box=None, pad_edge=False)
    failed = False
    for finding in checks.run_all(lambda: connect(state)):
        failed |= finding.verdict == "bad"
        colour = {"good": "green", "note": "yellow", "bad": "red"}[finding.verdict]
        table.add_row(finding.check, Text(finding.verdict, colour), finding.text)
    show(table)
    sys.exit(1 if failed else 0)


@click.command("install-commands")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--socket", type=click.Path(path_type=Path), default="/run/hpcmesos/api.sock", show_default=True
)
@click.option(
    "--submit-filter",
    type=click.Path(path_type=Path),
    default="/etc/hpcmesos/submit_filter",
    show_default=True,
    help="A program that, if it is there, sees every script before it is submitted.",
)
def install_commands(directory: Path, socket: Path, submit_filter: Path) -> None:
    """Write the q-commands into DIRECTORY/torque and DIRECTORY/pbspro, their man pages into DIRECTORY/man."""
    commands_dir.write(directory.absolute(), socket.absolute(), submit_filter=submit_filter.absolute())
    pages = man_pages.write(directory.absolute())
    click.echo(f"put {directory.absolute() / 'torque'} (or pbspro) first in PATH, and {pages} into MANPATH")
