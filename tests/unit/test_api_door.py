"""Whose bytes an API process holds, and for whom there is room."""

from __future__ import annotations

from hpcmesos.master.door import Door, Entry, Limits


def entry(door: Door, owner: str) -> Entry:
    found = door.enter(owner, lambda: None)
    assert found is not None
    return found


def test_a_long_answer_may_wait_alone() -> None:
    door = Door(Limits(unread=1000, unread_of_one=100))
    ann, again, bob = entry(door, "ann"), entry(door, "ann"), entry(door, "bob")
    assert door.wait(ann, 500), "the list of very many jobs is one answer"
    assert not door.wait(again, 50) and door.wait(bob, 50)
    assert not door.wait(bob, 501)
    door.leave(again)
    assert door.wait(ann, 0) and door.wait(bob, 50)
    assert door.wait(ann, 60)
    assert not door.wait(entry(door, "ann"), 60)


def test_what_is_held_is_given_back() -> None:
    door = Door(Limits(bodies=1 << 20, bodies_of_one=1 << 18))
    first = entry(door, "gateway g")
    assert door.hold(first, 1 << 18) and door.reckon(first, "gateway g/ann")
    assert door.hold(entry(door, "gateway g"), 1 << 18), "the first is another's now"
    second = entry(door, "gateway g/ann")
    assert not door.hold(second, 1 << 17) and door.hold(second, 1 << 15)
    door.leave(first)
    door.leave(first)
    assert door.hold(second, 1 << 17)
