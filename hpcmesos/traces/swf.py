"""The Standard Workload Format: 18 columns, lines that begin with ``;`` are the header.

Feitelson et al., https://www.cs.huji.ac.il/labs/parallel/workload/swf.html
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpcmesos.errors import InvalidValue
from hpcmesos.gang.simulate import TraceJob
from hpcmesos.gang.snapshot import NodeView
from hpcmesos.model import Chunk, JobId, NodeName, Placement, Request

_COLUMNS = 18


@dataclass(frozen=True, slots=True)
class SwfJob:
    """The columns that matter; -1: unknown."""

    number: int
    submit: int
    run: int  # seconds; 0: less than half a second, -1: mostly cancelled before it began
    allocated: int  # processors
    requested: int
    estimate: int
    user: int
    group: int
    queue: int

    @property
    def procs(self) -> int:
        """The larger of allocated and requested."""
        return max(self.allocated, self.requested)


@dataclass(frozen=True, slots=True)
class Swf:
    """A log; ``procs``: of the machine, from the header, else the largest job's."""

    jobs: tuple[SwfJob, ...]
    procs: int


def read(path: Path) -> Swf:
    """Reads a log, ``.gz`` or plain.

    Raises:
        InvalidValue: a line that is none of the format; file and line are named.
    """
    jobs, procs = [], 0
    for number, line in enumerate(lines(path), 1):
        if line.startswith(";"):
            name, _, value = line[1:].strip().partition(":")
            if name in ("MaxProcs", "MaxNodes") and value.strip().isdigit():
                procs = max(procs, int(value))
        elif line.strip():
            try:
                fields = [int(float(text)) for text in line.split()[:_COLUMNS]]
                run, allocated, requested, estimate = fields[3], fields[4], fields[7], fields[8]
                user, group, queue = fields[11], fields[12], fields[14]
            except (ValueError, IndexError) as error:
                raise InvalidValue(
                    f"{path}:{number}: no line of the Standard Workload Format: {line[:60]!r}"
                ) from error
            jobs.append(SwfJob(fields[0], fields[1], run, allocated, requested, estimate, user, group, queue))
    return Swf(tuple(jobs), procs or max((job.procs for job in jobs), default=0))


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file that may be compressed."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            yield from file
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InvalidValue(f"cannot read {path}: {error}") from error


def trace_jobs(log: Swf, *, cut: bool = True, requested: bool = False) -> list[TraceJob]:
    """The jobs that ran, as requests for CPUs wherever they are.

    ``cut``: nothing runs longer than its estimate. ``requested``: with as many processors as they asked for, when that
    is known, instead of the larger of asked and given.
    """
    jobs = []
    for job in log.jobs:
        if job.run > 0 and job.procs > 0:
            estimate = job.run if job.estimate <= 0 else job.estimate
            procs = job.requested if requested and job.requested > 0 else job.procs
            jobs.append(trace_job(job, min(job.run, estimate) if cut else job.run, estimate, procs))
    return jobs


def trace_job(job: SwfJob, run: float, estimate: float, procs: int) -> TraceJob:
    """One job with the times and the size that a study takes for it."""
    return TraceJob(
        id=JobId(job.number, "swf"),
        submitted_at=float(job.submit),
        runtime=float(run),
        request=Request((Chunk(cpus=procs, slots=procs),), Placement.PACK),
        walltime=float(estimate),
        user=str(job.user) if job.user >= 0 else "",
        project=str(job.group) if job.group >= 0 else "",
        queue=str(job.queue),
    )


def machine(procs: int) -> tuple[NodeView, ...]:
    """A machine of which nothing is known but the number of its processors: one node."""
    return (NodeView(NodeName("machine"), True, procs, procs, 0, 0, ()),)
