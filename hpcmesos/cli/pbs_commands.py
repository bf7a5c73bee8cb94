"""The q-commands' full form: the same request as the stub's, answered by the same API, over any transport.

The stub (``hpcmesos.launch.qstub``) is what users normally run; this form serves ``hpcmesos qsub ...``, TLS clients,
and whatever has to go on after the answer (``-W block=true``).
"""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from pathlib import Path
from typing import NoReturn

import click

from hpcmesos.api_schema import CommandReply
from hpcmesos.cli.commands_dir import COMMANDS as Q_COMMANDS
from hpcmesos.cli.connect import connect, filter_of_site
from hpcmesos.client import Client
from hpcmesos.errors import HpcmesosError, InvalidScript
from hpcmesos.launch import submit_filter
from hpcmesos.pbs.option_table import COMMANDS

ALWAYS_SENT = ("HOME", "LOGNAME", "PATH", "MAIL", "SHELL", "TZ", "LANG")


def run(command: str, argv: tuple[str, ...]) -> None:
    """Sends the command, completes it as the server asks, prints what comes back, exits with its code."""
    try:
        reply = _ask(connect(), command, list(argv))
    except HpcmesosError as error:
        click.echo(f"{command}: {error}", err=True)
        sys.exit(error.exit_code)
    sys.stdout.write(reply.stdout)
    sys.stdout.flush()
    sys.stderr.write(reply.stderr)
    if reply.then and not reply.code:
        _become(reply.then)
    sys.exit(reply.code)


def _become(words: list[str]) -> NoReturn:
    """This very program with other words, however it was started."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", "hpcmesos.cli", *words])  # noqa: S606  (no shell is the point)


def submit(client: Client, argv: list[str], script: bytes | None = None) -> str:
    """Submits a job as qsub does, ``script`` as if from standard input; its id. Raises the server's refusal."""
    return _ask(client, "qsub", argv, script).stdout.strip()


def submit_interactive(client: Client, argv: list[str], personality: str) -> CommandReply:
    """Submits a job whose terminal the caller will attach to. Raises the server's refusal."""
    return _ask(client, "qsub", argv, terminal=True, personality=personality)


def _ask(
    client: Client,
    command: str,
    argv: list[str],
    given: bytes | None = None,
    *,
    terminal: bool = False,
    personality: str | None = None,
) -> CommandReply:
    umask = os.umask(0)
    os.umask(umask)
    environ = {name: os.environ[name] for name in ALWAYS_SENT if name in os.environ}
    script: bytes | None = None
    script_path: str | None = None
    key = uuid.uuid4().hex
    site_filter = filter_of_site() if command in ("qsub", "msub") else None
    filtered = False
    while True:
        reply = client.command(
            command,
            argv,
            script=script,
            script_path=script_path,
            umask=umask,
            environ=environ,
            personality=personality or os.environ.get("HPCMESOS_PERSONALITY", "torque"),
            key=key,
            terminal=terminal,
            submit_filter=site_filter,
            filtered=filtered,
        )
        if reply.need is None:
            return reply
        if reply.need.terminal and sys.stdin.isatty() and (reply.need.script or sys.stdout.isatty()):
            _become(reply.need.terminal)
        if reply.need.script is not None:
            script = given if given is not None else _read_script(reply.need.script)
            script_path = reply.need.script
        if reply.need.filter and site_filter:
            made, filtered = _filtered(site_filter, argv, script), True
            script = None if reply.need.script is None else made
        if reply.need.environ is not None:
            names = list(os.environ) if "*" in reply.need.environ else reply.need.environ
            environ = environ | {name: os.environ[name] for name in names if name in os.environ}


def _filtered(site_filter: str, argv: list[str], script: bytes | None) -> bytes:
    try:
        return submit_filter.run(site_filter, argv, script or b"")
    except submit_filter.Refused as error:
        raise InvalidScript(str(error)) from None


def _read_script(path: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise InvalidScript(f"script file {path}: {error.strerror}") from error


def _command(name: str, summary: str) -> click.Command:
    @click.command(
        name,
        help=summary,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    )
    @click.argument("argv", nargs=-1, type=click.UNPROCESSED)
    def command(argv: tuple[str, ...]) -> None:
        run(name, argv)

    return command


def __getattr__(name: str) -> click.Command:
    """The q-commands by their names."""
    if name in Q_COMMANDS:
        return _command(name, COMMANDS[name].summary)
    raise AttributeError(name)


@click.command(hidden=True)
def qmgr_shell() -> None:
    """What qmgr is at a terminal: directives one by one."""
    client = connect()
    active: dict[str, str] = {}
    with contextlib.suppress(EOFError):
        while True:
            line = input("Qmgr: ")
            words = line.split()
            if not words:
                continue
            if words[0] in ("quit", "exit", "q"):
                return
            reply = client.command("qmgr", ["-c", "\n".join((*active.values(), line))])
            sys.stdout.write(reply.stdout)
            sys.stderr.write(reply.stderr)
            if len(words) > 1 and "active".startswith(words[0]) and not reply.code:
                active[words[1][0]] = line
