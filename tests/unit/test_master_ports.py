"""Ports are granted once a host, round and round."""

from __future__ import annotations

from hpcmesos.master.ports import FIRST, LAST, Ports


def test_two_grants_on_one_host_have_nothing_in_common() -> None:
    ports = Ports(begin=LAST)
    assert ports.grant("a", 2) == (LAST, FIRST)
    assert ports.grant("a", 1) == (FIRST + 1,)
    assert ports.grant("b", 0) == ()


def test_freed_ports_are_granted_again_only_after_a_round() -> None:
    ports = Ports(begin=FIRST)
    first = ports.grant("a", 1)
    ports.free("a", first)
    assert ports.grant("a", 1) == (FIRST + 1,)
    ports.hold("a", range(FIRST + 2, LAST + 1))
    assert ports.grant("a", 1) == first
    assert ports.grant("a", 1) == ()
    assert ports.grant("b", 1) != ()
