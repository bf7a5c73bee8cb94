import itertools
from pathlib import Path

import pytest

from hpcmesos.errors import IllegalTransition
from hpcmesos.model import Cause, JobState
from hpcmesos.queue import states

PAGE = Path(__file__).parents[2] / "docs" / "state-machine.md"


def test_page_shows_the_table() -> None:
    assert PAGE.read_text() == states.render(), (
        "docs/state-machine.md is out of date: write what hpcmesos.queue.states.render() returns"
    )


def test_every_state_is_reachable_and_leads_to_complete() -> None:
    reached = set(states.INITIAL)
    for _ in JobState:
        reached |= {target for source, target in states.TRANSITIONS if source in reached}
    assert reached == set(JobState)
    leading = {JobState.COMPLETE}
    for _ in JobState:
        leading |= {source for source, target in states.TRANSITIONS if target in leading}
    assert leading == set(JobState)


def test_complete_is_final() -> None:
    for target in JobState:
        with pytest.raises(IllegalTransition):
            states.check(JobState.COMPLETE, target)


def test_check_answers_exactly_the_table() -> None:
    for source, target in itertools.product(JobState, JobState):
        legal = (source, target) in states.TRANSITIONS or (source is target and source in states.LIVE)
        if legal:
            assert states.check(source, target)
        else:
            with pytest.raises(IllegalTransition, match=f"from {source} to {target}"):
                states.check(source, target)


@pytest.mark.parametrize(
    ("cause", "code", "signal", "forced", "expected"),
    [
        (Cause.OK, 0, None, False, 0),
        (Cause.APP, 3, None, False, 3),
        (Cause.APP, 127, None, False, 127),
        (Cause.SIGNAL, None, 9, False, 265),
        (Cause.SIGNAL, None, 15, False, 271),
        (Cause.DELETED, 0, None, False, 271),
        (Cause.DELETED, None, 9, True, 265),
        (Cause.GPU_IDLE, None, 15, False, 271),
        (Cause.WALLTIME, None, 15, False, -11),
        (Cause.OOM, 137, None, False, -10),
        (Cause.NODE_LOST, None, None, False, -3),
        (Cause.GPU_LOST, 1, None, True, -3),
        (Cause.START_FAILED, None, None, False, -3),
        (Cause.PREEMPTED, None, 15, False, -3),
        (Cause.APP, None, None, False, -1),
    ],
)
def test_exit_status(cause: Cause, code: int | None, signal: int | None, forced: bool, expected: int) -> None:
    assert states.exit_status(cause, code, signal, forced) == expected


def test_walltime_is_another_number_in_pbspro() -> None:
    assert states.exit_status(Cause.WALLTIME, None, 15, False, "pbspro") == -29
