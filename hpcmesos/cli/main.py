"""``hpcmesos``: the click root. Commands are loaded when they are called, so that each starts quickly."""

from __future__ import annotations

import importlib
import sys

import click

from hpcmesos.cli.commands_dir import COMMANDS as Q_COMMANDS
from hpcmesos.errors import HpcmesosError

COMMANDS = {
    "up": "cluster",
    "down": "cluster",
    "env": "cluster",
    "master": "daemons",
    "agent": "daemons",
    "gateway": "daemons",
    "migrate": "daemons",
    **dict.fromkeys((*Q_COMMANDS, "qmgr-shell"), "pbs_commands"),
    "qsub-terminal": "interactive",
    "mpirun": "mpirun",
    "tfrun": "tfrun",
    "logs": "jobs",
    "wait": "jobs",
    "ring": "ring",
    "reserve": "standing",
    "share": "standing",
    "cron": "cron",
    "report": "report",
    "simulate": "simulate",
    "queue": "queue_export",
    "token": "admin",
    "secret": "secrets",
    "audit": "admin",
    "certificate": "admin",
    "doctor": "admin",
    "install-commands": "admin",
}
"""Name of each command and the module of this package that holds it."""


class LazyGroup(click.Group):
    """Imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "run":
            raise click.UsageError("run is for scripts of jobs; from here it is hpcmesos mpirun", ctx)
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"hpcmesos.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hpcmesos")
def root() -> None:
    """Batch computing on GPU clusters: whole GPUs on several nodes at once, all or nothing."""


def main() -> None:
    """Entry point: every error of ours, and of the system's, is one line on stderr and an exit code."""
    try:
        root(prog_name="hpcmesos", standalone_mode=False)
    except HpcmesosError as error:
        click.echo(f"hpcmesos: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"hpcmesos: {where}{error.strerror or error}", err=True)
        sys.exit(1)
