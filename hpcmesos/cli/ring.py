"""``ring``: a token round the nodes that an administrator names, as a job of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from hpcmesos.cli.connect import connect
from hpcmesos.client import Client
from hpcmesos.errors import HpcmesosError
from hpcmesos.gang import ring_picture, ring_report

_LONGEST_NOTE = 200


@click.command()
@click.option("--nodes", required=True, help="Names of the nodes, with commas between them.")
@click.option("--gpus", type=click.IntRange(min=0), default=0, help="Take so many GPUs of each, a rank each.")
@click.option("--svg", type=click.Path(path_type=Path, dir_okay=False), help="Draw the ring into this file.")
@click.option(
    "--offline-broken", is_flag=True, help="Mark the nodes at fault offline (managers and operators)."
)
@click.option("--state", type=click.Path(path_type=Path), help="State directory of an embedded cluster.")
def ring(nodes: str, gpus: int, svg: Path | None, offline_broken: bool, state: Path | None) -> None:
    """Measure the links round these nodes, and tell where the ring breaks. Exits with 1 if it does.

    It is a plain job that waits for its turn, with nothing of the caller's environment, and leaves its output in
    ring.oN. No node changes its state for what any ring finds; with --offline-broken the caller marks those at fault
    offline, as he may with pbsnodes -o. Inside a job, `hpcmesos ring` without --nodes passes the token round the nodes
    of that job.
    """
    names = list(dict.fromkeys(name.strip() for name in nodes.split(",") if name.strip()))
    if not names:
        raise click.UsageError("--nodes names no node")
    client = connect(state)
    job = _submit(client, names, gpus)
    click.echo(f"{job} submitted", err=True)
    try:
        report = _follow(client, job)
    except KeyboardInterrupt:
        client.delete(job)
        raise
    click.echo(ring_report.table(report), nl=False)
    if svg:
        svg.write_text(ring_picture.draw(report))
    if offline_broken and report.culprits:
        _mark_offline(client, report)
    sys.exit(0 if report.closed else 1)


def _submit(client: Client, names: list[str], gpus: int) -> str:
    share = f":ppn={gpus}:gpus={gpus}" if gpus else ":ppn=1"
    wanted = "nodes=" + "+".join(f"{name}{share}" for name in names)
    reply = client.command("qsub", ["-N", "ring", "-l", wanted, "--", "hpcmesos", "ring", "--json"])
    if reply.code:
        click.echo(reply.stderr, nl=False, err=True)
        sys.exit(reply.code)
    return reply.stdout.strip()


def _mark_offline(client: Client, report: ring_report.Report) -> None:
    """With the caller's own rights; the report is that of his own job."""
    reply = client.command("pbsnodes", ["-o", *report.culprits, "-N", report.message[:_LONGEST_NOTE]])
    if reply.code:
        click.echo(reply.stderr, nl=False, err=True)
        sys.exit(reply.code)
    click.echo(f"offline: {' '.join(report.culprits)}", err=True)


def _follow(client: Client, job: str) -> ring_report.Report:
    """The report that the job prints once it ran."""
    data = b"".join(client.logs(job, follow=True))
    try:
        return ring_report.Report.from_json(json.loads(data.strip().rpartition(b"\n")[2]))
    except (ValueError, TypeError, KeyError, IndexError):
        status = client.wait(job)
        told = status.comment or b"".join(client.logs(job, "stderr")).decode(errors="replace").strip()
        raise HpcmesosError(f"{job} has no report of its ring: {told or status.cause}") from None
