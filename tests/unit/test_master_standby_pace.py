"""How soon a standby looks again."""

from __future__ import annotations

from hpcmesos.master.standby import pause_after


def test_while_many_come_the_next_look_is_soon() -> None:
    assert pause_after(took=4.0, read=50_000) == 1.0


def test_looks_that_find_little_take_a_small_share_of_the_time() -> None:
    assert pause_after(took=0.01, read=0) == 1.0
    assert pause_after(took=0.1, read=10) == 2.0


def test_however_slow_the_machine_is_a_look_is_never_far() -> None:
    assert pause_after(took=3.0, read=10) == 5.0
