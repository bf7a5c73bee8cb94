"""``reserve`` and ``share``: nodes kept for a time, and whose share of the cluster is what."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import click
from rich.table import Table

from hpcmesos.api_schema import Reservation, ReservationRequest, ShareRequest, ShareStatus
from hpcmesos.cli.connect import STATE, connect
from hpcmesos.cli.tables import show
from hpcmesos.cli.times import local_time
from hpcmesos.errors import InvalidValue
from hpcmesos.units import parse_duration


@click.group()
def reserve() -> None:
    """Keep nodes for a time: for users, for queues, or for nobody (maintenance)."""


@reserve.command("add")
@click.argument("name")
@click.option("--nodes", default="", help="Nodes, joined by commas.  [default: all]")
@click.option("--start", default="", help="Local time, e.g. 2026-12-01T08:00, or +2:00:00.  [default: now]")
@click.option("--end", default="", help="Local time, or +8:00:00 after the start.")
@click.option("--users", default="", help="Whose jobs may use them, joined by commas.")
@click.option("--queues", default="", help="Queues whose jobs may use them, joined by commas.")
@click.option("--note", default="", help="For those who read `reserve list`.")
@STATE
def add(
    name: str,
    nodes: str,
    start: str,
    end: str,
    users: str,
    queues: str,
    note: str,
    state: Path | None,
) -> None:
    """Make a reservation. Without users and queues it is maintenance: nobody's jobs run into it."""
    starts_at = _moment(start, time.time()) if start else time.time()
    if not end:
        raise click.UsageError("say until when: --end +8:00:00")
    wanted = ReservationRequest(
        name=name,
        starts_at=starts_at,
        ends_at=_moment(end, starts_at),
        nodes=_words(nodes),
        users=_words(users),
        queues=_words(queues),
        note=note,
    )
    _show([connect(state).reserve(wanted)])


@reserve.command("list")
@STATE
def listed(state: Path | None) -> None:
    """Show what is reserved and is not over."""
    _show(connect(state).reservations())


@reserve.command("rm")
@click.argument("name")
@STATE
def rm(name: str, state: Path | None) -> None:
    """Take a reservation away."""
    connect(state).unreserve(name)


@click.command()
@click.option("--project", default="", help='A project; "": jobs without one.')
@click.option("--user", help="A user in the project; without: the project itself.")
@click.option("--set", "shares", type=float, help="Give so many shares (managers).")
@click.option("--unset", is_flag=True, help="One share again (managers).")
@STATE
def share(project: str, user: str | None, shares: float | None, unset: bool, state: Path | None) -> None:
    """Show who has used how much of what is due to them, or set shares."""
    client = connect(state)
    if shares is not None or unset:
        _show_shares(client.set_shares(ShareRequest(project=project, user=user, shares=shares)))
    else:
        _show_shares(client.shares())


def _show(reservations: list[Reservation]) -> None:
    table = Table("name", "from", "until", "nodes", "for", "note", box=None, pad_edge=False)
    for one in reservations:
        users = [*one.users, *(f"queue {queue}" for queue in one.queues)]
        table.add_row(
            one.name,
            local_time(one.starts_at),
            local_time(one.ends_at),
            ",".join(one.nodes),
            ", ".join(users) or "nobody",
            one.note,
        )
    show(table)


def _show_shares(listed: list[ShareStatus]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("project", "user"):
        table.add_column(title)
    for title in ("shares", "GPU-hours", "usage", "target", "factor"):
        table.add_column(title, justify="right")
    for one in listed:
        table.add_row(
            one.project or "-",
            one.user or "-",
            f"{one.project_shares:g} x {one.shares:g}",
            f"{one.gpu_hours:.2f}",
            f"{100 * one.usage:.1f} %",
            f"{100 * one.target:.1f} %",
            f"{one.factor:.3f}",
        )
    show(table)


def _moment(text: str, start: float) -> float:
    """A local time, or ``+DURATION`` after ``start``. Raises InvalidValue."""
    if text.startswith("+"):
        return start + parse_duration(text[1:])
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError as error:
        raise InvalidValue(f"'{text}' is no time; write 2026-12-01T08:00 or +2:00:00") from error


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]
