import pytest

from hpcmesos.model import JobState
from hpcmesos.queue.dependencies import Dependency, DependencyKind, Verdict, judge, judge_all
from hpcmesos.queue.records import Outcome

QUEUED = Outcome(JobState.QUEUED, None)
RUNNING = Outcome(JobState.RUNNING, None)
EXITING = Outcome(JobState.EXITING, 0)
OK = Outcome(JobState.COMPLETE, 0)
FAILED = Outcome(JobState.COMPLETE, 1)
DELETED = Outcome(JobState.COMPLETE, None)  # before it ran

YES, WAIT, NEVER = Verdict.SATISFIED, Verdict.WAITING, Verdict.IMPOSSIBLE

TABLE = {
    # parent:  unknown queued running exiting ok failed deleted
    "after": (YES, WAIT, YES, YES, YES, YES, NEVER),
    "afterok": (NEVER, WAIT, WAIT, WAIT, YES, NEVER, NEVER),
    "afternotok": (NEVER, WAIT, WAIT, WAIT, NEVER, YES, YES),
    "afterany": (YES, WAIT, WAIT, WAIT, YES, YES, YES),
}


@pytest.mark.parametrize("kind", list(DependencyKind))
def test_one_dependency(kind: DependencyKind) -> None:
    parents = (None, QUEUED, RUNNING, EXITING, OK, FAILED, DELETED)
    assert tuple(judge(Dependency(kind, 1), parent) for parent in parents) == TABLE[kind]


def test_several_dependencies() -> None:
    ok, waiting, never = (Dependency(DependencyKind.AFTER_OK, seq) for seq in (1, 2, 3))
    parents = {1: OK, 2: RUNNING, 3: FAILED}
    assert judge_all([], parents) is YES
    assert judge_all([ok], parents) is YES
    assert judge_all([ok, waiting], parents) is WAIT
    assert judge_all([waiting, never, ok], parents) is NEVER
