"""A name service that says what a test needs: no test can make entries in a real one."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from hpcmesos.master.services import hosts


def naming(
    patch: pytest.MonkeyPatch,
    forward: Mapping[str, str],
    reverse: Mapping[str, str] | None = None,
    wait: Callable[[str], Any] = lambda name: None,
) -> list[str]:
    """Names with their addresses, addresses with their names; others as they are. What was asked comes into the list.

    ``wait``: called before an answer.
    """
    asked: list[str] = []
    real = socket.getaddrinfo, socket.gethostbyaddr

    def getaddrinfo(name: Any, *words: Any, **more: Any) -> Any:
        if words != (None,):  # somebody connects
            return real[0](name, *words, **more)
        asked.append(name)
        wait(name)
        return real[0](forward.get(name, name), *words, **more)

    def gethostbyaddr(address: str) -> tuple[str, list[str], list[str]]:
        asked.append(address)
        wait(address)
        if reverse is None or address not in reverse:
            return real[1](address)
        return reverse[address], [], [address]

    patch.setattr(socket, "getaddrinfo", getaddrinfo)
    patch.setattr(socket, "gethostbyaddr", gethostbyaddr)
    for name in ("_entries", "_reverse", "_here"):
        patch.setattr(hosts, name, hosts.Lookup(getattr(hosts, name)._ask))  # nothing is known yet
    return asked


def settle() -> None:
    """Waits until no question is under way that would reach into the next test."""
    for lookup in (hosts._entries, hosts._reverse, hosts._here):
        with lookup._changed:
            assert lookup._changed.wait_for(lambda lookup=lookup: not lookup._asked, 30)
