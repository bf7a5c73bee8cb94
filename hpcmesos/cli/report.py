"""``report``: GPU-hours and CPU-hours, as a table, CSV, JSON or a picture."""

from __future__ import annotations

import csv
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TextIO

import click
import msgspec
from rich.table import Table

from hpcmesos.api_schema import UsageRow
from hpcmesos.cli.connect import STATE, connect
from hpcmesos.cli.tables import show
from hpcmesos.traces.pictures import stacked

_FIGURES = ("runs", "gpu_hours", "cpu_hours", "lost_gpu_hours")


@click.command()
@click.option("--since", help="First day, 2026-12-01.  [default: the first of this month]")
@click.option("--until", help="Day after the last one.  [default: tomorrow]")
@click.option(
    "--by",
    default="user",
    show_default=True,
    help="Of user, project, queue, month, day: one, or several with commas.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--svg", type=click.Path(path_type=Path), help="Write a picture: GPU-hours by month, stacked by --by."
)
@STATE
def report(
    since: str | None,
    until: str | None,
    by: str,
    as_csv: bool,
    as_json: bool,
    svg: Path | None,
    state: Path | None,
) -> None:
    """Show what was used: of all attempts, those that run until now; days and months are those of UTC. Lost GPU-hours
    are those of attempts that ended by no fault of the job's.
    """
    today = datetime.now(UTC).date()
    since = since or date(today.year, today.month, 1).isoformat()
    until = until or (today + timedelta(days=1)).isoformat()
    keys = by.split(",")
    client = connect(state)
    rows = client.report(since, until, keys)
    if svg is not None:
        svg.write_text(_picture(client.report(since, until, _columns_first(keys)), since, until))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))
    elif as_csv:
        _write_csv(sys.stdout, keys, rows)
    else:
        _show(keys, rows)


def _columns_first(keys: list[str]) -> list[str]:
    time = "day" if "day" in keys else "month"
    return [time, *(key for key in keys if key not in ("day", "month"))]


def _picture(rows: list[UsageRow], since: str, until: str) -> str:
    values = {(row.key[0], " ".join(row.key[1:]) or "all"): row.gpu_hours for row in rows}
    return stacked(values, f"GPU-hours from {since} until {until}")


def _write_csv(file: TextIO, keys: list[str], rows: list[UsageRow]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*keys, *_FIGURES])
    for row in rows:
        hours = (row.gpu_hours, row.cpu_hours, row.lost_gpu_hours)
        writer.writerow([*row.key, row.runs, *(f"{amount:.4f}" for amount in hours)])


def _show(keys: list[str], rows: list[UsageRow]) -> None:
    table = Table(*keys, box=None, pad_edge=False)
    for title in ("runs", "GPU-hours", "CPU-hours", "lost GPU-hours"):
        table.add_column(title, justify="right")
    for row in rows:
        hours = (row.gpu_hours, row.cpu_hours, row.lost_gpu_hours)
        table.add_row(*row.key, str(row.runs), *(f"{amount:.2f}" for amount in hours))
    show(table)
