"""The end of an attempt as a record: what its head reports, or what the leader says in its place."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from hpcmesos import wire
from hpcmesos.master.cluster import Attempt
from hpcmesos.master.gpu_use import with_gpus
from hpcmesos.model import Cause
from hpcmesos.queue.records import AttemptRecord

T = TypeVar("T")


def verdict(attempt: Attempt, now: datetime, cause: Cause, culprit: str | None, text: str) -> AttemptRecord:
    """An end that no head reported."""
    return AttemptRecord(
        key=attempt.key,
        started_at=moment(attempt.started_at),
        ended_at=now,
        cause=cause,
        culprit=clean(culprit),
        message=clean(text),
    )


def reported(attempt: Attempt, now: datetime, report: wire.Ended) -> AttemptRecord:
    """The end as the head tells it."""
    culprit = report.culprit or attempt.culprit
    # A head and a member accuse each other: of two, the one who told us first is right. A head of more hears the
    # others, and accuses itself when it hears none of them.
    knows = attempt.culprit == attempt.head and len(attempt.nodes) > 2 and report.culprit
    if report.cause == Cause.NODE_LOST and attempt.culprit and not knows:
        culprit = attempt.culprit
    return AttemptRecord(
        key=attempt.key,
        started_at=moment(report.started_at or attempt.started_at),
        ended_at=moment(report.ended_at) or now,
        cause=Cause(report.cause),
        code=report.code,
        signal=report.signal,
        forced=report.forced,
        culprit=clean(culprit),
        message=clean(report.message),
        usage=with_gpus(report.usage, attempt.head, attempt.uses),
        ranks=tuple(clean(report.ranks)),
        steps=tuple(clean(report.steps)),
        stdout_tail=report.stdout_tail,
        stderr_tail=report.stderr_tail,
        stdout_path=clean(report.stdout_path),
        stderr_path=clean(report.stderr_path),
        undelivered=clean(report.undelivered),
    )


def moment(seconds: float | None) -> datetime | None:
    """An aware time of epoch seconds; None, 0 and what no calendar has: unknown."""
    try:
        return datetime.fromtimestamp(seconds, UTC) if seconds else None
    except (OverflowError, ValueError, OSError):
        return None


def clean(value: T) -> T:
    """Text from a node without the zero bytes that PostgreSQL cannot store, at any depth."""
    convert: Callable[[Any], Any] = clean
    result: Any = value
    if isinstance(value, str):
        result = value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    elif isinstance(value, dict):
        result = {convert(key): convert(item) for key, item in value.items()}
    elif isinstance(value, list):
        result = [convert(item) for item in value]
    return result  # type: ignore[no-any-return]  # of the type that came in
