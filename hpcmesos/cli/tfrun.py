"""``tfrun``: TensorFlow's ps and workers on the cluster with the options of tfmesos' command of that name."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from hpcmesos.cli.connect import connect
from hpcmesos.cli.mpirun import Follower
from hpcmesos.cli.pbs_commands import submit
from hpcmesos.pbs.values import default_name


def qsub_words(
    workers: int,
    servers: int,
    gpus: int,
    name: str,
    options: tuple[str, ...],
    command: tuple[str, ...],
    cwd: str,
) -> list[str]:
    """The job: each task where there is room, started by ``hpcmesos run``, which ends with the last worker."""
    chunks = [f"{workers}:ncpus=1:mpiprocs=1:ngpus={gpus}"]
    roles = [f"worker={workers}"]
    if servers:
        chunks.append(f"{servers}:ncpus=1:mpiprocs=1")
        roles.append(f"ps={servers}")
    return [
        *options, "-V", "-W", f"capture=true,framework=tfmesos:{','.join(roles)}",
        "-l", f"select={'+'.join(chunks)}", "-d", cwd, "-N", name,
        "--", "hpcmesos", "run", "--label", *command,
    ]  # fmt: skip


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--state", type=click.Path(path_type=Path), help="State directory of an embedded cluster.")
@click.option("-w", "--nworker", type=click.IntRange(1), required=True, help="Workers.")
@click.option(
    "-s", "--nserver", type=click.IntRange(0), default=0, show_default=True, help="Parameter servers."
)
@click.option(
    "-Gw", "--gpus", type=click.IntRange(0), default=0, show_default=True, help="GPUs of each worker."
)
@click.option("-n", "--name", help="The job's name.")
@click.option("-q", "--queue", help="The job's queue.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def tfrun(
    state: Path | None,
    nworker: int,
    nserver: int,
    gpus: int,
    name: str | None,
    queue: str | None,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND as every task of a TensorFlow cluster, and follow it here.

    {ps_hosts}, {worker_hosts}, {job_name} and {task_index} in COMMAND stand for what each task is; TFMESOS_* and
    TF_CONFIG say the same. Every line tells its rank and node. The job is over with its last worker, servers are ended
    then; the exit code is that of the first task that failed.
    """
    options = ("-q", queue) if queue else ()
    words = qsub_words(
        nworker, nserver, gpus, name or default_name(command[0]), options, command, str(Path.cwd())
    )
    job = submit(connect(state), words, None)
    sys.exit(Follower(lambda: connect(state), job).run())
