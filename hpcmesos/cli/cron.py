"""``cron``: jobs by the clock."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import click
from rich.table import Table

from hpcmesos.api_schema import ScheduleRequest, ScheduleStatus, Submission
from hpcmesos.cli.connect import STATE, connect
from hpcmesos.cli.tables import show
from hpcmesos.errors import InvalidScript
from hpcmesos.pbs import submission as pbs

ALWAYS_SENT = ("HOME", "LOGNAME", "PATH", "MAIL", "SHELL", "TZ", "LANG")
OWNER = click.option("--owner", help="Whose schedule it is (operators).  [default: you]")
_RAW: dict[str, Any] = {"ignore_unknown_options": True, "allow_interspersed_args": False}


@click.group()
def cron() -> None:
    """Submit jobs by the clock: crontab lines, repeating intervals, and jobs that follow them."""


@cron.command("add", context_settings=_RAW)
@click.option(
    "--timezone", help="Zone in which the rule is read, e.g. Europe/Berlin.  [default: this host's]"
)
@click.option(
    "--missed",
    type=click.Choice(["skip", "once", "all"]),
    default="once",
    show_default=True,
    help="What becomes of due times that were missed while no master was there.",
)
@click.option(
    "--deadline", type=int, default=60, show_default=True, help="Seconds after which one was missed."
)
@click.option(
    "--overlap",
    type=click.Choice(["allow", "skip", "replace"]),
    default="allow",
    show_default=True,
    help="What to do while the job of an earlier run has not ended.",
)
@click.option(
    "--retries", type=int, default=0, show_default=True, help="Runs that fail are tried again so often."
)
@click.option("--retry-delay", type=int, default=60, show_default=True, help="Seconds between two tries.")
@click.option("--paused", is_flag=True, help="It fires nothing until it is resumed.")
@STATE
@click.argument("name")
@click.argument("rule")
@click.argument("qsub", nargs=-1, type=click.UNPROCESSED)
def add(
    name: str, rule: str, qsub: tuple[str, ...], timezone: str | None, state: Path | None, **how: Any
) -> None:
    """Make the schedule NAME. RULE is a crontab line ('0 3 * * mon-fri', six fields with seconds, @daily), a repeating
    interval (R/2026-12-01T03:00/P1D, R10//PT1H), or after:A,B for a job that runs whenever the schedules A and B have
    each had a run that ended well. What follows is what qsub gets: options, and a script, `-` or `-- PROGRAM ARGS`.
    """
    argv = list(qsub)
    operand = pbs.needs(argv).script
    script = None if operand is None else _read(operand)
    umask = os.umask(0)
    os.umask(umask)
    wanted = ScheduleRequest(
        name=name,
        rule=rule,
        job=Submission(argv, script),
        timezone=timezone or local_timezone(),
        cwd=str(Path.cwd()),
        umask=umask,
        host=os.uname().nodename,
        environ=_environment(argv, script),
        personality=os.environ.get("HPCMESOS_PERSONALITY", "torque"),
        **how,
    )
    _show([connect(state).add_schedule(wanted)])


@cron.command("list")
@STATE
def listed(state: Path | None) -> None:
    """Show your schedules; operators see all."""
    _show(connect(state).schedules())


@cron.command("history")
@click.argument("name")
@click.option(
    "-n", "count", type=click.IntRange(1, 10_000), default=20, show_default=True, help="So many runs."
)
@OWNER
@STATE
def history(name: str, count: int, owner: str | None, state: Path | None) -> None:
    """Show what the last due times became, the latest first."""
    table = Table("due", "fired", "try", "job", "outcome", box=None, pad_edge=False)
    for run in connect(state).schedule_runs(owner or getpass.getuser(), name, count):
        again = f"; again at {_shown(run.retry_at)}" if run.retry_at else ""
        outcome = run.outcome or "has not ended"
        table.add_row(_shown(run.due), _shown(run.fired_at), str(run.number), run.job or "-", outcome + again)
    show(table)


@cron.command("graph")
@STATE
def graph(state: Path | None) -> None:
    """Print who follows whom, for Graphviz: hpcmesos cron graph | dot -Tsvg > graph.svg"""
    click.echo("digraph schedules {")
    for one in connect(state).schedules():
        me = f"{one.owner}/{one.name}"
        click.echo(f'  "{me}" [label="{one.name}\\n{one.rule}"];')
        for parent in one.parents:
            click.echo(f'  "{one.owner}/{parent}" -> "{me}";')
    click.echo("}")


def _changing(word: str, action: str, summary: str) -> Callable[..., None]:
    @cron.command(word, help=summary)
    @click.argument("name")
    @OWNER
    @STATE
    def change(name: str, owner: str | None, state: Path | None) -> None:
        connect(state).change_schedule(owner or getpass.getuser(), name, action)

    return change


_changing("rm", "remove", "Take a schedule and its history away; its jobs stay.")
_changing("run-now", "run", "Run it once more, now.")
_changing("pause", "pause", "Fire nothing until it is resumed.")
_changing("resume", "resume", "Go on; what was due meanwhile is not made up for.")


def local_timezone() -> str:
    """The name of this host's time zone, or of the one that TZ names; UTC where it has none."""
    named = os.environ.get("TZ", "").removeprefix(":")
    link = str(Path("/etc/localtime").resolve()).partition("zoneinfo/")[2]
    return next((name for name in (named, link) if name and name in available_timezones()), "UTC")


def _read(operand: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if operand == "-" else Path(operand).read_bytes()
    except OSError as error:
        raise InvalidScript(f"script file {operand}: {error.strerror}") from error


def _environment(argv: list[str], script: bytes | None) -> dict[str, str]:
    """What the job's words and directives ask for, beside what clients always send."""
    text = None if script is None else pbs.check_script(script)
    asked = pbs.environment_names(argv, text)
    names = set(os.environ) if asked.all else {*ALWAYS_SENT, *asked.names}
    return {name: os.environ[name] for name in sorted(names) if name in os.environ}


def _show(schedules: list[ScheduleStatus]) -> None:
    table = Table(
        "owner", "name", "rule", "next", "missed", "overlap", "job", "queue", box=None, pad_edge=False
    )
    for one in schedules:
        if one.paused:
            upcoming = "paused"
        elif one.next_due is None:
            upcoming = "" if one.parents else "never"
        else:
            upcoming = datetime.fromtimestamp(one.next_due, ZoneInfo(one.timezone)).isoformat(" ", "seconds")
        table.add_row(
            one.owner, one.name, one.rule, upcoming, one.missed, one.overlap, one.job_name, one.queue
        )
    show(table)


def _shown(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(" ", "milliseconds")[:23]
