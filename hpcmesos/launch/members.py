"""The other members of an attempt, as one of them sees them; `gangs` has the two sides of that."""

from __future__ import annotations

from typing import Any, Protocol

from hpcmesos.launch.order import Order


class Gang(Protocol):
    """What an attempt asks of them, and tells them."""

    def end(self, order: Order) -> None:
        """This part ends: says so, and why."""
        ...

    def suspect(self) -> str | None:
        """The node that this member blames for a loss that nobody has explained; only a head has an opinion."""
        ...

    async def prologues(self) -> tuple[str, int, str] | None:
        """Has the other members run theirs: node, code and text of one that did not end well."""
        ...

    async def confirm(self) -> None:
        """Comes back once every other member has been heard from now on, or when the attempt is ended."""
        ...

    def rank(self, message: dict[str, Any], node: str) -> None:
        """Passes on what a rank reported, to where its step is kept."""
        ...

    def sweep(self, step: str, origin: str) -> None:
        """A step is over: the other members end what is left of it; ``origin``: the node that says so."""
        ...
