"""``master``, ``agent``, ``gateway``, ``migrate``: the daemons, started by hand, by systemd, or by ``up``."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hpcmesos.config import AgentSettings, GatewaySettings, MasterSettings, load

CONFIG = click.option("--config", type=click.Path(path_type=Path, exists=True), help="TOML file of settings.")


def _settings_options(kind: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """One ``--option`` for every setting, so that flags, variables and the file never differ."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        for item in reversed(dataclasses.fields(kind)):
            function = click.option(f"--{item.name.replace('_', '-')}", item.name, default=None)(function)
        return CONFIG(function)

    return decorate


@click.command()
@_settings_options(MasterSettings)
def master(config: Path | None, **flags: Any) -> None:
    """Run a master: API processes and a leader candidate. Any number of hosts may run one on the same database."""
    from hpcmesos.master.daemon import run_master

    settings = load(MasterSettings, flags, os.environ, config)
    _log_to_stderr(settings.log_level)
    sys.exit(run_master(settings))


@click.command()
@_settings_options(AgentSettings)
def agent(config: Path | None, **flags: Any) -> None:
    """Run the agent of this node; jobs outlive it."""
    from hpcmesos.agent.daemon import run

    settings = load(AgentSettings, flags, os.environ, config)
    _log_to_stderr(settings.log_level)
    sys.exit(run(settings))


@click.command()
@_settings_options(GatewaySettings)
def gateway(config: Path | None, **flags: Any) -> None:
    """Run the gateway of a login host without a master: commands there need no token, and output arrives."""
    from hpcmesos.agent.gateway import run

    settings = load(GatewaySettings, flags, os.environ, config)
    _log_to_stderr(settings.log_level)
    sys.exit(run(settings))


@click.command()
@click.option("--database-url", envvar="HPCMESOS_DATABASE_URL", required=True, help="postgresql://...")
@click.option(
    "--restored", is_flag=True, help="This database is a backup that was restored: skip what may be in use."
)
def migrate(database_url: str, restored: bool) -> None:
    """Bring a database to this version's schema."""
    from hpcmesos.queue import leadership, schema

    schema.migrate(database_url)
    click.echo("hpcmesos: the database has this version's schema")
    if restored:
        leadership.after_restore(database_url)
        click.echo("hpcmesos: agents obey its leaders again; new jobs get new numbers")


def write_settings(settings: MasterSettings | AgentSettings, path: Path) -> None:
    """Writes the settings that differ from the defaults as TOML; mode 0600, for a URL may hold a password."""
    lines = []
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        if value is None or value == item.default:
            continue
        shown = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
        lines.append(
            f"{item.name} = {json.dumps(shown)}"
        )  # JSON's strings, numbers, booleans, lists are TOML's
    path.touch(mode=0o600)
    path.write_text("\n".join(lines) + "\n")


def agent_settings(path: Path) -> AgentSettings | None:
    """What ``write_settings`` wrote; None: not written yet."""
    return load(AgentSettings, {}, {}, path) if path.exists() else None


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
