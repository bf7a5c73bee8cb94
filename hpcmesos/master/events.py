"""What the planner is told by the other threads of the leader; one queue, in order of arrival."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from hpcmesos import wire
from hpcmesos.master.links_client import Answer, Question
from hpcmesos.plugin import JobClass


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A node's agent said hello; ``link`` numbers the connections of this leader, the newest highest."""

    node: str
    link: int
    hello: wire.Hello


@dataclass(frozen=True, slots=True)
class LinkDown:
    node: str
    link: int
    why: str


@dataclass(frozen=True, slots=True)
class Received:
    node: str
    message: wire.ToLeader


@dataclass(frozen=True, slots=True)
class Fenced:
    """The site's fence was asked about a node.

    ``since``: the absence that it was asked about (`Node.away_since`). ``confirmed``: the node is off. ``said``: what
    the command printed.
    """

    node: str
    since: float
    confirmed: bool
    said: str


@dataclass(frozen=True, slots=True)
class PluginTold:
    """A plug-in answered: ``keys`` by class (see ``gang/snapshot.Plugged``), or is at ``fault``."""

    kind: str
    name: str
    keys: Mapping[JobClass, Any]
    fault: str


@dataclass(frozen=True, slots=True)
class Asked:
    """An API process asks; ``reply`` may be called from any thread, once."""

    question: Question
    reply: Callable[[Answer], None]


@dataclass(frozen=True, slots=True)
class InboxHint:
    """There may be rows in the inbox."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Finish what is begun and return."""


Event: TypeAlias = LinkUp | LinkDown | Received | Fenced | PluginTold | Asked | InboxHint | Stop
