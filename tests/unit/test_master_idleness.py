"""When a job leaves its GPUs idle, by samples; and whom the policy leaves alone."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from hpcmesos.master.idleness import GAP, Policy, Record, Verdict, decide, exempted, utilization

WINDOW = 3600.0
POLICY = Policy(cancel=True, threshold=5.0, window=WINDOW)


def record(samples: Iterable[tuple[float, float]], gpus: int = 1, window: float = WINDOW) -> Record:
    """(time, percent) of each of so many GPUs."""
    made = Record()
    for at, percent in samples:
        made.add(at, [percent] * gpus, window)
    return made


def steady(percent: float, begin: float, end: float) -> list[tuple[float, float]]:
    return [(at, percent) for at in range(int(begin), int(end) + 1, 10)]


def test_idle_for_a_whole_window_is_warned_of_and_not_before() -> None:
    idle = record(steady(1, 0, WINDOW))
    assert decide(POLICY, [record(steady(1, 0, WINDOW - 20))], WINDOW - 20, None) is None
    assert decide(POLICY, [idle], WINDOW, None) is Verdict.WARN
    assert decide(POLICY, [record(steady(6, 0, WINDOW))], WINDOW, None) is None


def test_the_window_slides() -> None:
    """Busy at first and idle ever after is idle, whatever the mean since the beginning."""
    samples = steady(100, 0, 10_000) + steady(0, 10_010, 10_000 + WINDOW - 300)
    assert decide(POLICY, [record(samples)], 10_000 + WINDOW - 300, None) is None
    samples += steady(0, 10_010 + WINDOW - 300, 10_000 + WINDOW + 120)
    assert decide(POLICY, [record(samples)], 10_000 + WINDOW + 120, None) is Verdict.WARN


def test_a_pause_is_not_idleness() -> None:
    samples = steady(90, 0, 1800) + steady(0, 1810, WINDOW)
    assert utilization([record(samples)], WINDOW, WINDOW) == pytest.approx(45, abs=1)


def test_a_second_window_has_to_pass_before_the_end() -> None:
    idle = record(steady(0, 0, 3 * WINDOW))
    assert decide(POLICY, [idle], 3 * WINDOW, 2 * WINDOW + 1) is None
    assert decide(POLICY, [idle], 3 * WINDOW, 2 * WINDOW) is Verdict.CANCEL
    only_warned = Policy(cancel=False, window=WINDOW)
    assert decide(only_warned, [idle], 3 * WINDOW, 0.0) is None


def test_a_warning_is_withdrawn_when_the_gpus_are_used_again() -> None:
    busy = record(steady(50, 0, WINDOW))
    assert decide(POLICY, [busy], WINDOW, 1.0) is Verdict.WITHDRAW
    assert decide(None, [busy], WINDOW, 1.0) is Verdict.WITHDRAW
    assert decide(None, [record(steady(0, 0, WINDOW))], WINDOW, None) is None


def test_what_is_not_known_is_not_idle() -> None:
    idle, begun = record(steady(0, 0, WINDOW)), record(steady(0, WINDOW / 2, WINDOW))
    assert decide(POLICY, [idle, begun], WINDOW, None) is None, "one node was not sampled all the time"
    assert decide(POLICY, [idle], WINDOW + GAP + 1, None) is None, "it has fallen silent"
    assert decide(POLICY, [], WINDOW, None) is None
    with_gap = record(steady(0, 0, 1000) + steady(0, 1000 + GAP + 10, WINDOW))
    assert decide(POLICY, [with_gap], WINDOW, None) is None


def test_all_gpus_of_all_nodes_count_alike() -> None:
    nodes = [record(steady(0, 0, WINDOW), gpus=7), record(steady(80, 0, WINDOW), gpus=1)]
    assert utilization(nodes, WINDOW, WINDOW) == pytest.approx(10)


def test_what_is_kept_of_a_long_time_is_small() -> None:
    assert len(record(steady(0, 0, 20 * WINDOW)).parts) <= 62


@pytest.mark.parametrize(
    ("words", "free"),
    [
        ("u:ann", True),
        ("u:bob", False),
        ("g:chem", True),
        ("p:fold", True),
        ("name:notebook-*", True),
        ("name:*-train", False),
        ("interactive", False),
        ("u:bob,asked", True),
        ("", False),
    ],
)
def test_exempt(words: str, free: bool) -> None:
    policy = Policy.of({"gpu_idle_action": "warn", "gpu_idle_exempt": words}, {})
    assert policy is not None
    names = {"u": "ann", "g": "chem", "p": "fold"}
    assert exempted(policy, names, "notebook-7", {"asked"}) is free


def test_the_queue_comes_before_the_server() -> None:
    server = {"gpu_idle_action": "cancel", "gpu_idle_threshold": "10", "gpu_idle_window": "02:00:00"}
    assert Policy.of({}, {}) is None
    assert Policy.of({"gpu_idle_action": "none"}, server) is None
    assert Policy.of({"gpu_idle_window": "00:30:00"}, server) == Policy(True, 10.0, 1800.0)
    assert Policy.of({"gpu_idle_action": "warn"}, {}) == Policy(False, 5.0, 3600.0)
