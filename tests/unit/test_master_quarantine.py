"""What fails again and again is left out for a while, and nothing else is."""

from __future__ import annotations

from hpcmesos.master.quarantine import NODE_FAILURES, SENTENCE, TRIES, Quarantine


def test_a_thing_is_left_out_after_its_tries_and_tried_again_later() -> None:
    now = 0.0
    quarantine = Quarantine(lambda: now)
    for _ in range(TRIES - 1):
        quarantine.failed("Ended of 1.h#1", "node1")
    assert not quarantine.holds("Ended of 1.h#1", "node1")
    quarantine.failed("Ended of 1.h#1", "node1")
    assert quarantine.holds("Ended of 1.h#1", "node1")
    assert not quarantine.holds("Ended of 2.h#1", "node1")
    now = SENTENCE
    assert not quarantine.holds("Ended of 1.h#1", "node1")


def test_a_node_of_which_everything_fails_is_left_out_whole() -> None:
    quarantine = Quarantine(lambda: 0.0)
    for number in range(NODE_FAILURES):
        quarantine.failed(f"Ended of {number}.h#1", "node1")
    assert quarantine.holds("Ended of 99.h#1", "node1")
    assert not quarantine.holds("Ended of 99.h#1", "node2")
