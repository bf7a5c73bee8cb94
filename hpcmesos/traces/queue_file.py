"""The live queue as a file: what ``hpcmesos queue export`` writes and ``hpcmesos simulate`` goes on from. JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from hpcmesos.errors import InvalidValue
from hpcmesos.gang.order import walltime
from hpcmesos.gang.policy import Policy
from hpcmesos.gang.simulate import TraceJob
from hpcmesos.gang.snapshot import Account, JobView, Limit, NodeView, QueueView, RunningView, Window
from hpcmesos.model import JobId

FORMAT = "hpcmesos-queue"
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFile:
    """A live queue at ``now`` (epoch seconds), as the scheduler sees it. ``held``: jobs that may not start yet."""

    format: str = FORMAT
    version: int = VERSION
    now: float
    server: str
    nodes: tuple[NodeView, ...]
    pending: tuple[JobView, ...]
    running: tuple[RunningView, ...]
    stopped_queues: frozenset[str] = frozenset()
    queues: Mapping[str, QueueView] = field(default_factory=dict)
    windows: tuple[Window, ...] = ()
    limits: tuple[Limit, ...] = ()
    accounts: tuple[Account, ...] = ()
    project_shares: Mapping[str, float] = field(default_factory=dict)
    held: int = 0

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @property
    def facts(self) -> dict[str, Any]:
        """Fields of a Snapshot that stay as they are."""
        names = ("stopped_queues", "queues", "windows", "limits", "accounts", "project_shares")
        return {name: getattr(self, name) for name in names}

    def jobs(self, policy: Policy) -> Iterator[TraceJob]:
        """What waits, each element of an array by itself; each job takes all its walltime."""
        for view in self.pending:
            for at in range(view.count):
                job = view.id if view.count == 1 and not view.id.array else _element(view.id, at)
                yield TraceJob(
                    id=job,
                    submitted_at=view.queued_at,
                    runtime=walltime(view, self.queues, policy),
                    request=view.request,
                    walltime=view.walltime,
                    user=view.user,
                    project=view.project,
                    group=view.group,
                    queue=view.queue,
                    priority=view.priority,
                    qos=view.qos,
                )


def load(path: Path) -> QueueFile:
    """Raises InvalidValue when it is no such file, or of another version."""
    try:
        file = msgspec.json.decode(path.read_bytes(), type=QueueFile)
    except (OSError, msgspec.MsgspecError) as error:
        raise InvalidValue(f"{path}: not written by hpcmesos queue export: {error}") from error
    if (file.format, file.version) != (FORMAT, VERSION):
        raise InvalidValue(
            f"{path}: {file.format} version {file.version}; this release reads {FORMAT} {VERSION}"
        )
    return file


def _element(job: JobId, at: int) -> JobId:
    return JobId(job.seq, job.server, at)
