import pytest

from hpcmesos.model import JobState
from hpcmesos.queue.dependencies import (
    Dependency,
    DependencyKind,
    Verdict,
    judge,
    judge_all,
    preceded,
    why_impossible,
)
from hpcmesos.queue.records import JobKey, Outcome, Progress

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
TABLE["on"] = (YES,) * 7  # nothing to come any more
TABLE |= {  # of a parent that is no array
    "afterstartarray": TABLE["after"],
    "afterokarray": TABLE["afterok"],
    "afternotokarray": TABLE["afternotok"],
    "afteranyarray": TABLE["afterany"],
}


@pytest.mark.parametrize("kind", list(DependencyKind))
def test_one_dependency(kind: DependencyKind) -> None:
    parents = (None, QUEUED, RUNNING, EXITING, OK, FAILED, DELETED)
    assert tuple(judge(Dependency(kind, 1), parent) for parent in parents) == TABLE[kind]


def test_several_dependencies() -> None:
    ok, waiting, never = (Dependency(DependencyKind.AFTER_OK, seq) for seq in (1, 2, 3))
    parents = {JobKey(1): OK, JobKey(2): RUNNING, JobKey(3): FAILED}
    assert judge_all([], parents) is YES
    assert judge_all([ok], parents) is YES
    assert judge_all([ok, waiting], parents) is WAIT
    assert judge_all([waiting, never, ok], parents) is NEVER


def test_a_dependent_that_can_never_start_is_told_why() -> None:
    ok = DependencyKind.AFTER_OK
    parents = {JobKey(1): OK, JobKey(2): FAILED, JobKey(3): DELETED, JobKey(4, 7): FAILED}
    fates = {
        Dependency(ok, 2): "afterok:2 cannot be: job 2 ended with Exit_status 1",
        Dependency(ok, 3): "afterok:3 cannot be: job 3 was deleted before it ran",
        Dependency(ok, 4, 7): "afterok:4 cannot be: job 4[7] ended with Exit_status 1",
        Dependency(ok, 9): "afterok:9 cannot be: job 9 is unknown",
    }
    for dependency, fate in fates.items():
        assert why_impossible([Dependency(ok, 1), dependency], parents) == fate
    assert why_impossible([Dependency(ok, 1)], parents) == ""


def test_an_element_and_its_array_are_two_parents() -> None:
    element = Dependency(DependencyKind.AFTER_OK, 1, 7)
    parents = {JobKey(1): RUNNING, JobKey(1, 7): OK}
    assert judge_all([element], parents) is YES
    assert judge_all([Dependency(DependencyKind.AFTER_OK, 1)], parents) is WAIT


BEGUN = Progress(total=10, started=6, succeeded=3, failed=1, deleted=2)  # 2 run, 2 wait

NUMBERED = {
    # wanted:                                     3     4     6     8     all
    DependencyKind.AFTER_START_ARRAY: (YES, YES, YES, WAIT, NEVER),
    DependencyKind.AFTER_OK_ARRAY: (YES, WAIT, WAIT, NEVER, NEVER),
    DependencyKind.AFTER_NOT_OK_ARRAY: (YES, WAIT, WAIT, NEVER, NEVER),
    DependencyKind.AFTER_ANY_ARRAY: (YES, YES, YES, WAIT, WAIT),
}


@pytest.mark.parametrize("kind", NUMBERED)
def test_so_many_elements_of_an_array(kind: DependencyKind) -> None:
    parent = Outcome(JobState.RUNNING, None, BEGUN)
    wanted = (3, 4, 6, 8, None)
    assert tuple(judge(Dependency(kind, 1, None, number), parent) for number in wanted) == NUMBERED[kind]


def test_a_job_that_waits_to_be_named() -> None:
    on, first, second = (
        Dependency(DependencyKind.ON, 0, None, 2),
        Dependency(DependencyKind.AFTER_OK, 7),
        Dependency(DependencyKind.AFTER_ANY, 8),
    )
    assert judge(on, None) is WAIT
    named = preceded([on], first)
    assert named == (on._replace(number=1), first)
    assert preceded(named, second) == (first, second)
    assert preceded([first], second) is None
