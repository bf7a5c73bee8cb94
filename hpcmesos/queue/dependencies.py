"""May a dependent job start? Pure: the parents' outcomes in, a verdict out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from hpcmesos.model import JobState

if TYPE_CHECKING:
    from hpcmesos.queue.records import Outcome


class DependencyKind(StrEnum):
    """``-W depend=KIND:JOB`` (PBS)."""

    AFTER = "after"  # the parent has started
    AFTER_OK = "afterok"  # it ended with 0
    AFTER_NOT_OK = "afternotok"  # it ended otherwise
    AFTER_ANY = "afterany"  # it ended


class Dependency(NamedTuple):
    """One parent and what must have happened to it."""

    kind: DependencyKind
    seq: int


class Verdict(StrEnum):
    SATISFIED = "satisfied"
    WAITING = "waiting"
    IMPOSSIBLE = "impossible"  # the dependent can never start


def judge(dependency: Dependency, parent: Outcome | None) -> Verdict:
    """The verdict on one dependency. ``parent`` None: the job is unknown (its history is dropped): impossible,
    but for ``after`` and ``afterany``, which a job that is over satisfies however it ended.

    A parent that was deleted before it ran has no exit status: it did not end ok, and it never started.
    """
    kind = dependency.kind
    if parent is None:
        over = kind in (DependencyKind.AFTER, DependencyKind.AFTER_ANY)
        return Verdict.SATISFIED if over else Verdict.IMPOSSIBLE
    if kind is DependencyKind.AFTER and parent.state in (JobState.RUNNING, JobState.EXITING):
        return Verdict.SATISFIED
    if parent.state is not JobState.COMPLETE:
        return Verdict.WAITING
    satisfied = {
        DependencyKind.AFTER: parent.exit_status is not None,
        DependencyKind.AFTER_OK: parent.exit_status == 0,
        DependencyKind.AFTER_NOT_OK: parent.exit_status != 0,
        DependencyKind.AFTER_ANY: True,
    }[kind]
    return Verdict.SATISFIED if satisfied else Verdict.IMPOSSIBLE


def judge_all(dependencies: Iterable[Dependency], parents: Mapping[int, Outcome]) -> Verdict:
    """All of them together: one impossible makes the whole impossible, else one waiting makes it wait."""
    verdicts = {judge(d, parents.get(d.seq)) for d in dependencies}
    for verdict in (Verdict.IMPOSSIBLE, Verdict.WAITING):
        if verdict in verdicts:
            return verdict
    return Verdict.SATISFIED
