"""``up``, ``down``, ``env``: a whole cluster on this machine."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import click

from hpcmesos.cli import commands_dir, lifecycle
from hpcmesos.cli.embedded import Cluster
from hpcmesos.cli.real_gpus import find_real_gpus
from hpcmesos.errors import HpcmesosError
from hpcmesos.units import parse_size

STATE = click.option(
    "--state",
    type=click.Path(path_type=Path),
    envvar="HPCMESOS_STATE",
    required=True,
    help="Directory that holds everything of the cluster but its sockets.",
)


@click.command()
@click.option("--agents", type=click.IntRange(1, 250), help="Number of agents (nodes).  [default: 2]")
@click.option(
    "--gpus",
    type=click.IntRange(0),
    help="GPUs in all, dealt out among the agents; simulated, unless this machine has as many.  [default: those of "
    "this machine, or 4 simulated ones an agent]",
)
@click.option(
    "--masters", type=click.IntRange(1, 9), help="Masters: one leads, the others stand by.  [default: 1]"
)
@click.option(
    "--cpus", type=click.IntRange(1), help="CPUs declared for each agent.  [default: 2 a GPU, at least 4]"
)
@click.option("--memory", default="8gb", show_default=True, help="Memory declared for each agent.")
@click.option("--server", default="hpcm", show_default=True, help="Name of the server in job ids.")
@click.option("--detach", is_flag=True, help="Return when everything runs, instead of waiting for Ctrl-C.")
@STATE
def up(
    state: Path,
    agents: int | None,
    gpus: int | None,
    masters: int | None,
    cpus: int | None,
    memory: str,
    server: str,
    detach: bool,
) -> None:
    """Start what is missing of a cluster on this machine; leave what runs."""
    state = state.absolute()
    state.mkdir(parents=True, exist_ok=True)
    state.chmod(0o711)  # owners of jobs pass through to their own directories
    with _interruptible(detach) as interrupted:
        # The lock is not kept while a foreground `up` waits: a second `up` may restore what was killed meanwhile.
        with lifecycle.locked(state):
            cluster = _described(state, agents, gpus, masters, cpus, memory, server)
            try:
                lifecycle.bring_up(cluster, _say, interrupted)
            except (HpcmesosError, KeyboardInterrupt):
                if not detach:
                    lifecycle.take_down(cluster, _say)
                raise
            commands_dir.write(
                cluster.state / "bin", *cluster.api_sockets, submit_filter=cluster.submit_filter
            )
        _say(f"up: {cluster.agents} agents, {cluster.gpus} GPUs; use it: {_env_hint(state)}")
        if detach:
            return
        interrupted.wait()
        lifecycle.take_down(cluster, _say)


def _described(
    state: Path,
    agents: int | None,
    gpus: int | None,
    masters: int | None,
    cpus: int | None,
    memory: str,
    server: str,
) -> Cluster:
    """The cluster of ``state`` as it was made, grown if asked, or a new one."""
    if (state / "cluster.json").exists():
        cluster = Cluster.load(state).grown(agents, gpus, masters)
        cluster.save()
        return cluster
    count = agents or 2
    total = len(find_real_gpus().uuids) or 4 * count if gpus is None else gpus
    declared = cpus or max(4, 2 * -(-total // count))
    return Cluster.create(state, count, total, declared, parse_size(memory), server, masters or 1)


@contextlib.contextmanager
def _interruptible(detach: bool) -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; detached starts keep the default: an interrupt ends the command."""
    event = threading.Event()
    if detach:
        yield event
        return
    previous = {
        number: signal.signal(number, lambda *_: event.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@click.command()
@STATE
def down(state: Path) -> None:
    """Stop a cluster: running jobs end, nothing is left behind but STATE itself."""
    state = state.absolute()
    cluster = Cluster.load(state)
    lifecycle.take_down(cluster, _say)


@click.command()
@click.option("--personality", type=click.Choice(["torque", "pbspro"]), default="torque", show_default=True)
@STATE
def env(state: Path, personality: str) -> None:
    """Print the shell lines that make this cluster the one in use: eval "$(hpcmesos env --state DIR)"."""
    cluster = Cluster.load(state.absolute())
    directory = cluster.state / "bin" / personality
    click.echo(f"export HPCMESOS_STATE={shlex.quote(str(cluster.state))}")
    click.echo(f"export HPCMESOS_PERSONALITY={personality}")
    click.echo(f'export PATH={shlex.quote(str(directory))}:"$PATH"')


def _env_hint(state: Path) -> str:
    relative = os.path.relpath(state)
    shown = str(state) if relative.startswith("..") else relative
    return f'eval "$(hpcmesos env --state {shlex.quote(shown)})"'


def _say(line: str) -> None:
    """Progress goes to stderr, unwrapped, as soon as it is known."""
    click.echo(line, err=True)
