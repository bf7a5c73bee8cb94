"""Logs of GPU clusters as CSV: Muri's (Philly, cut by its authors), adaptdl's Philly, and Alibaba's openb.

The kind is known by the header line. A job of up to 8 GPUs asks for one node, a larger one for nodes of 8.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from hpcmesos.errors import InvalidValue
from hpcmesos.gang.simulate import TraceJob
from hpcmesos.model import Chunk, JobId, Placement, Request
from hpcmesos.traces.swf import lines

Row = Mapping[str, str]
_NODE_GPUS = 8
_MIB = 1 << 20


def read(path: Path) -> list[TraceJob]:
    """The jobs of a log, ``.gz`` or plain.

    Raises:
        InvalidValue: a header of no kind that is known, or a line that does not fit it; file and line are named.
    """
    rows = csv.DictReader(lines(path))
    columns = frozenset(rows.fieldnames or ())
    reader = next((reader for needed, reader in KINDS.items() if needed <= columns), None)
    if reader is None:
        raise InvalidValue(
            f"{path}: no GPU log that is known; its columns are {', '.join(sorted(columns)[:6])}"
        )
    jobs = []
    for number, row in enumerate(rows):
        try:
            job = reader(number, row)
        except (ValueError, TypeError) as error:
            raise InvalidValue(f"{path}:{rows.line_num}: {error}") from error
        if job is not None:
            jobs.append(job)
    return jobs


def gpus(count: int, cpus: int = 1) -> Request:
    """``count`` GPUs: on one node if one has so many, else whole nodes, the last of them in part. ``cpus`` for each."""
    if count <= _NODE_GPUS:
        return Request((Chunk(gpus=count, cpus=cpus * count),), Placement.SCATTER)
    whole, rest = divmod(count, _NODE_GPUS)
    chunks = [Chunk(whole, gpus=_NODE_GPUS, cpus=cpus * _NODE_GPUS)]
    if rest:
        chunks.append(Chunk(1, gpus=rest, cpus=cpus * rest))
    return Request(tuple(chunks), Placement.SCATTER)


def _muri(number: int, row: Row) -> TraceJob:
    return TraceJob(
        id=JobId(int(row["job_id"]), "muri"),
        submitted_at=int(row["submit_time"]) / 1000,
        runtime=int(row["duration"]) / 1000,
        request=gpus(int(row["num_gpu"])),
    )


def _philly(number: int, row: Row) -> TraceJob | None:
    submitted = datetime.strptime(row["timestamp"], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    runtime = float(row["duration"])
    if runtime <= 0:
        return None
    return TraceJob(
        id=JobId(number, "philly"),
        submitted_at=submitted.timestamp(),
        runtime=runtime,
        request=gpus(int(row["num_gpus"])),
        project=row["cluster"],
    )


def _openb(number: int, row: Row) -> TraceJob | None:
    """Pods that share a GPU ask for a whole one: that is what we give."""
    created, deleted = float(row["creation_time"]), float(row["deletion_time"] or 0)
    started = float(row["scheduled_time"] or created)
    if deleted <= started:
        return None
    cpus = -(-int(row["cpu_milli"]) // 1000)
    chunk = Chunk(gpus=int(row["num_gpu"]), cpus=cpus, mem=int(row["memory_mib"]) * _MIB)
    request = Request((chunk,), Placement.SCATTER)
    return TraceJob(
        id=JobId(number, "openb"),
        submitted_at=created,
        runtime=deleted - started,
        request=request,
        queue=row["qos"].lower(),
    )


KINDS: dict[frozenset[str], Callable[[int, Row], TraceJob | None]] = {
    frozenset({"job_id", "num_gpu", "submit_time", "duration"}): _muri,
    frozenset({"timestamp", "duration", "num_gpus", "cluster"}): _philly,
    frozenset({"cpu_milli", "memory_mib", "num_gpu", "creation_time", "deletion_time"}): _openb,
}
