"""The steps and ranks of attempts, for people (``qstat -f``) and for programs (``GET /v1/jobs/ID``). Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from hpcmesos.api_schema import AttemptStatus, RankStatus, StepStatus
from hpcmesos.model import Cause
from hpcmesos.queue.records import AttemptRecord

_SHOWN = ("rank", "node", "code", "signal", "gpu", "step", "command", "first_failed")
_SHOWN_RANKS = 64  # of a larger job only those that failed
_LAST_LINES = 10
_LONGEST = 2000  # characters
_OWN_FAULT = frozenset({Cause.APP, Cause.SIGNAL, Cause.OOM})


def shown_steps(attempt: AttemptRecord, *, private: bool) -> tuple[dict[str, str], ...]:
    """Each launch with its code and the rank that failed first; its words, as typed, only for the job's owner."""
    return tuple(
        _shown({**step, "command": shlex.join(step["command"]) if private else None})
        for step in attempt.steps
    )


def shown_ranks(attempt: AttemptRecord) -> tuple[dict[str, str], ...]:
    """All ranks of a small job, of a large one some of those that did not end well."""
    ranks = _in_order(attempt)
    if len(ranks) > _SHOWN_RANKS:
        ranks = tuple(rank for rank in ranks if rank.get("code") != 0)[:_SHOWN_RANKS]
    return tuple(_shown(rank) for rank in ranks)


def first_failed(attempt: AttemptRecord) -> dict[str, str]:
    """The rank that was the first to fail in the last step that failed; empty: none did."""
    failed = {
        step["step"]: step["first_failed"] for step in attempt.steps if step["first_failed"] is not None
    }
    found = [rank for rank in attempt.ranks if failed.get(rank.get("step")) == rank.get("rank")]
    last = max(found, key=lambda rank: float(rank.get("at") or 0), default=None)
    return _shown(last) if last else {}


def last_lines(attempt: AttemptRecord) -> str | None:
    """The end of what an attempt that failed wrote to stderr, else to stdout: of all ranks together, as it came."""
    if attempt.cause not in _OWN_FAULT:
        return None
    text = (attempt.stderr_tail.strip() or attempt.stdout_tail.strip()).decode(errors="replace")
    return "\n".join(text.splitlines()[-_LAST_LINES:])[-_LONGEST:] or None


def attempt_status(attempt: AttemptRecord, nodes: list[str]) -> AttemptStatus:
    """One attempt for programs."""
    return AttemptStatus(
        number=attempt.key.number,
        nodes=nodes,
        started_at=attempt.started_at.timestamp() if attempt.started_at else None,
        ended_at=attempt.ended_at.timestamp() if attempt.ended_at else None,
        cause=attempt.cause.value if attempt.cause else None,
        code=attempt.code,
        signal=attempt.signal,
        culprit=attempt.culprit,
        message=attempt.message,
        steps=[_step_status(step, _in_order(attempt)) for step in attempt.steps],
    )


def _in_order(attempt: AttemptRecord) -> tuple[Mapping[str, Any], ...]:
    """By number within each step; they are stored as their reports came."""
    order = {step["step"]: position for position, step in enumerate(attempt.steps)}
    return tuple(sorted(attempt.ranks, key=lambda rank: (order.get(rank.get("step"), -1), rank["rank"])))


def _step_status(step: Mapping[str, Any], ranks: tuple[Mapping[str, Any], ...]) -> StepStatus:
    return StepStatus(
        step=step["step"],
        command=[str(word) for word in step["command"]],
        code=step["code"],
        first_failed=step["first_failed"],
        ranks=[_rank_status(rank) for rank in ranks if rank.get("step") == step["step"]],
    )


def _rank_status(rank: Mapping[str, Any]) -> RankStatus:
    return RankStatus(
        rank=int(rank["rank"]),
        node=str(rank.get("node", "")),
        code=rank.get("code"),
        signal=rank.get("signal"),
        gpus=[uuid for uuid in str(rank.get("gpu") or "").split(",") if uuid],
    )


def _shown(record: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(record[name]) for name in _SHOWN if record.get(name) not in (None, "")}
