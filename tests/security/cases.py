"""The form of the table: an attack, its twin that is rightful, and the guard without which the attack succeeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import pytest

from hpcmesos.errors import HpcmesosError
from hpcmesos.master import api, api_credentials, api_streams, requests


@dataclass(frozen=True, slots=True)
class Told:
    """What came of a try: whether it got what it was after, and the line that was said to whoever tried."""

    done: bool
    said: str = ""


class Stage(Protocol):
    """Where attacks are tried."""

    def renew(self) -> None:
        """Makes what the next try is about: what an earlier one changed must not decide."""
        ...

    def counts(self) -> Any:
        """What a refused attack must leave as it is."""
        ...


S = TypeVar("S", bound=Stage)
Try = Callable[[S], Told]
Switch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True, slots=True)
class Case(Generic[S]):
    """``off``: switches off the guard, and nothing else. ``silent``: nobody hears of the refusal.

    ``harmless``: the try is let in, but does not get what it was after.
    """

    name: str
    attack: Try[S]
    twin: Try[S]
    off: Switch
    silent: bool = False
    harmless: bool = False


def check(case: Case[S], stage: S, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack fails in one line and changes nothing; the twin succeeds; without the guard the attack does."""
    stage.renew()
    before = stage.counts()
    told = case.attack(stage)
    assert not told.done, f"{case.name}: the attack succeeds"
    assert case.silent or told.said.strip(), f"{case.name}: the refusal says nothing"
    assert len(told.said.strip().splitlines()) <= 1, told.said
    assert "Traceback" not in told.said
    assert case.harmless or stage.counts() == before, f"{case.name}: it is refused, and has changed something"
    stage.renew()
    told = case.twin(stage)
    assert told.done, f"{case.name}: the rightful request fails: {told.said}"
    stage.renew()
    with monkeypatch.context() as patch:
        case.off(patch)
        told = case.attack(stage)
    assert told.done, f"{case.name}: not the guard, something else stops the attack: {told.said}"


def of(action: Callable[[], Any], wanted: Callable[[Any], bool] = lambda answer: True) -> Told:
    """What came of a call that raises a leaf of our errors when it is refused; ``wanted``: whether it was more."""
    try:
        answer = action()
    except HpcmesosError as error:
        return Told(False, str(error))
    return Told(wanted(answer), "" if answer is None else str(answer))


def replaced(target: Any, name: str, value: Any) -> Switch:
    """Puts ``value`` in place of the guard ``target.name``."""
    return lambda patch: patch.setattr(target, name, value)


def both(*switches: Switch) -> Switch:
    """Several guards that stand behind each other."""

    def off(patch: pytest.MonkeyPatch) -> None:
        for switch in switches:
            switch(patch)

    return off


def known_by(caller_of: Any) -> Switch:
    """An API that tells by this who calls; for handlers that read, and by `requests.actor_of` for those that change."""
    modules = (api, api_credentials, api_streams, requests)
    return both(*(replaced(module, "caller_of", caller_of) for module in modules))
