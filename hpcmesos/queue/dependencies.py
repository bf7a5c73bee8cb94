"""May a dependent job start? Pure: the parents' outcomes in, a verdict out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from hpcmesos.model import JobState

if TYPE_CHECKING:
    from hpcmesos.queue.records import JobKey, Outcome, Progress


class DependencyKind(StrEnum):
    """``-W depend=KIND:JOB`` (PBS)."""

    AFTER = "after"  # the parent has started
    AFTER_OK = "afterok"  # it ended with 0
    AFTER_NOT_OK = "afternotok"  # it ended otherwise
    AFTER_ANY = "afterany"  # it ended
    ON = "on"  # other jobs have named this one as theirs to precede (before...); ``number``: so many are to come
    # Of an array, each "so many of its elements", all when no number is given (Torque qsub(1B)).
    AFTER_START_ARRAY = "afterstartarray"
    AFTER_OK_ARRAY = "afterokarray"
    AFTER_NOT_OK_ARRAY = "afternotokarray"
    AFTER_ANY_ARRAY = "afteranyarray"

    @property
    def counts(self) -> bool:
        """Whether it asks for a number of an array's elements."""
        return self.endswith("array")


class Dependency(NamedTuple):
    """One parent and what must have happened to it. ``element``: of an array; ``number``: see the kind."""

    kind: DependencyKind
    seq: int
    element: int | None = None
    number: int | None = None

    @property
    def short(self) -> str:
        return f"on:{self.number}" if self.kind is DependencyKind.ON else f"{self.kind}:{self.seq}"

    @property
    def parent(self) -> tuple[int, int | None]:
        return self.seq, self.element


class Verdict(StrEnum):
    SATISFIED = "satisfied"
    WAITING = "waiting"
    IMPOSSIBLE = "impossible"  # the dependent can never start


def judge(dependency: Dependency, parent: Outcome | None) -> Verdict:
    """The verdict on one dependency. ``parent`` None: the job is unknown (its history is dropped): impossible,
    but for those that a job that is over satisfies however it ended.

    A parent that was deleted before it ran has no exit status: it did not end ok, and it never started.
    """
    kind = dependency.kind
    if kind is DependencyKind.ON:
        return Verdict.WAITING if dependency.number else Verdict.SATISFIED
    if parent is None:
        over = kind in _WHATEVER_END
        return Verdict.SATISFIED if over else Verdict.IMPOSSIBLE
    if kind.counts and parent.progress is not None:
        return _judge_elements(dependency, parent.progress)
    if kind in _STARTED and parent.state in (JobState.RUNNING, JobState.EXITING):
        return Verdict.SATISFIED
    if parent.state is not JobState.COMPLETE:
        return Verdict.WAITING
    match kind:
        case DependencyKind.AFTER | DependencyKind.AFTER_START_ARRAY:
            satisfied = parent.exit_status is not None
        case DependencyKind.AFTER_OK | DependencyKind.AFTER_OK_ARRAY:
            satisfied = parent.exit_status == 0
        case DependencyKind.AFTER_NOT_OK | DependencyKind.AFTER_NOT_OK_ARRAY:
            satisfied = parent.exit_status != 0
        case _:
            satisfied = True
    return Verdict.SATISFIED if satisfied else Verdict.IMPOSSIBLE


_STARTED = frozenset({DependencyKind.AFTER, DependencyKind.AFTER_START_ARRAY})
_WHATEVER_END = _STARTED | {DependencyKind.AFTER_ANY, DependencyKind.AFTER_ANY_ARRAY}


def _judge_elements(dependency: Dependency, array: Progress) -> Verdict:
    """So many elements as asked, of those that there are; elements deleted before they started are over, not ok."""
    over = array.succeeded + array.failed + array.deleted
    open_ended = array.total - over
    have, may_come = {
        DependencyKind.AFTER_START_ARRAY: (array.started, array.total - array.started - array.deleted),
        DependencyKind.AFTER_OK_ARRAY: (array.succeeded, open_ended),
        DependencyKind.AFTER_NOT_OK_ARRAY: (array.failed + array.deleted, open_ended),
        DependencyKind.AFTER_ANY_ARRAY: (over, open_ended),
    }[dependency.kind]
    wanted = array.total if dependency.number is None else dependency.number
    if have >= wanted:
        return Verdict.SATISFIED
    return Verdict.WAITING if have + may_come >= wanted else Verdict.IMPOSSIBLE


def preceded(dependencies: Iterable[Dependency], first: Dependency) -> tuple[Dependency, ...] | None:
    """The dependencies of a job that waits for others to name it (``on``), once one has: ``first`` is what it then
    waits for. None: it waits for none to name it.
    """
    given = list(dependencies)
    waits = next((one for one in given if one.kind is DependencyKind.ON and one.number), None)
    if waits is None or waits.number is None:
        return None
    given.remove(waits)
    left = [waits._replace(number=waits.number - 1)] if waits.number > 1 else []
    return (*given, *left, first)


def why_impossible(dependencies: Iterable[Dependency], parents: Mapping[JobKey, Outcome]) -> str:
    """Of a dependent that can never start: the first dependency that stands in its way, and what became of that job."""
    known = {(key.seq, key.index): outcome for key, outcome in parents.items()}
    for one in dependencies:
        if judge(one, known.get(one.parent)) is Verdict.IMPOSSIBLE:
            return f"{one.short} cannot be: {_fate(one, known.get(one.parent))}"
    return ""


def _fate(dependency: Dependency, parent: Outcome | None) -> str:
    name = f"job {dependency.seq}" + ("" if dependency.element is None else f"[{dependency.element}]")
    if parent is None:
        return f"{name} is unknown"
    if dependency.kind.counts and (array := parent.progress) is not None:
        ends = f"{array.succeeded} ended with 0, {array.failed} otherwise, {array.deleted} were deleted"
        return f"of the {array.total} elements of {name} {ends}"
    if parent.exit_status is None:
        return f"{name} was deleted before it ran"
    return f"{name} ended with Exit_status {parent.exit_status}"


def judge_all(dependencies: Iterable[Dependency], parents: Mapping[JobKey, Outcome]) -> Verdict:
    """All of them together: one impossible makes the whole impossible, else one waiting makes it wait."""
    known = {(key.seq, key.index): outcome for key, outcome in parents.items()}
    verdicts = {judge(d, known.get(d.parent)) for d in dependencies}
    for verdict in (Verdict.IMPOSSIBLE, Verdict.WAITING):
        if verdict in verdicts:
            return verdict
    return Verdict.SATISFIED
