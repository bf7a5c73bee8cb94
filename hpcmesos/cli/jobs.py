"""``logs`` and ``wait``: follow a job from anywhere."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import click

from hpcmesos.api_schema import JobStatus
from hpcmesos.cli.connect import STATE, connect
from hpcmesos.client import Client
from hpcmesos.errors import HpcmesosError

_LOOK = 0.2


@click.command()
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Wait for the job to start, follow until it has ended.")
@click.option("--stream", type=click.Choice(["stdout", "stderr", "both"]), default="both", show_default=True)
@STATE
def logs(job: str, follow: bool, stream: str, state: Path | None) -> None:
    """Print what a job has written; its stderr goes to stderr."""
    streams = ("stdout", "stderr") if stream == "both" else (stream,)
    failures: list[Exception] = []
    # A client belongs to one thread, hence one for each stream.
    threads = [
        threading.Thread(target=copy_stream, args=(connect(state), job, name, follow, failures), daemon=True)
        for name in streams
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive() and not any(isinstance(failure, OSError) for failure in failures):
            thread.join(_LOOK)  # whom nobody reads any more (`| head`) waits for no end of the job
    if failures:
        raise failures[0]


def copy_stream(client: Client, job: str, stream: str, follow: bool, failures: list[Exception]) -> None:
    """Prints one stream of a job as it comes; what goes wrong is added to ``failures``."""
    target = sys.stdout.buffer if stream == "stdout" else sys.stderr.buffer
    try:
        for piece in client.logs(job, stream, follow=follow):
            target.write(piece)
            target.flush()
    except (HpcmesosError, OSError) as error:
        failures.append(error)


@click.command()
@click.argument("jobs", nargs=-1, required=True)
@click.option(
    "--exit-status", is_flag=True, help="Exit with the (last) job's Exit_status & 255, as qsub -W block=true."
)
@click.option("--timeout", type=float, help="Seconds to wait at most; exit code 124 then.")
@STATE
def wait(jobs: tuple[str, ...], exit_status: bool, timeout: float | None, state: Path | None) -> None:
    """Wait until jobs have ended."""
    client = connect(state)
    code = 0
    for job in jobs:
        status = client.wait(job, timeout=timeout)
        if status.state != "C":
            click.echo(f"hpcmesos: {job} has not ended after {timeout:g} s", err=True)
            sys.exit(124)
        if status.exit_status is None:
            click.echo(f"hpcmesos: {status.id} was deleted before it ran", err=True)
        code = exit_code(status)
    sys.exit(code if exit_status else 0)


def exit_code(status: JobStatus) -> int:
    """What a command that stands for a job exits with; 3, as OpenPBS's qsub: it was deleted before it ran."""
    return 3 if status.exit_status is None else status.exit_status & 255
