"""The gang clock: the members of an attempt and its head hear each other, or each side ends its part by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hpcmesos.launch import protocol
from hpcmesos.launch.attempt import Attempt
from hpcmesos.launch.channel import Channel
from hpcmesos.launch.clock import boottime
from hpcmesos.launch.order import WISHED, Order
from hpcmesos.launch.peers import FIRST_WORD, PeerError, Peers
from hpcmesos.launch.settings import Refusal

_RETRY = 0.2
"""Seconds between two tries to reach the head."""


def _order_message(order: Order) -> dict[str, Any]:
    return {
        "end": order.cause,
        "kill_delay": order.kill_delay,
        "message": order.message,
        "culprit": order.culprit,
    }


def _order(message: dict[str, Any]) -> Order:
    return Order(
        message["end"],
        float(message.get("kill_delay") or 0),
        message.get("message") or "",
        message.get("culprit"),
    )


class HeadGang:
    """The members as the head sees them."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._config = attempt.services.config
        self._links: dict[str, Channel] = {}
        self._heard: dict[str, float] = {}
        self._order: Order | None = None
        self._with_prologue: set[str] = set()
        self._asked = False  # all that were there, for their prologues
        self._prologues: dict[str, tuple[int, str]] = {}  # how they ended
        self._news = asyncio.Event()  # somebody was heard, or the end has come
        self._clock = asyncio.get_running_loop().create_task(self._watch())

    def end(self, order: Order) -> None:
        self._order = order
        self._news.set()
        self._clock.cancel()
        for channel in self._links.values():
            channel.say(_order_message(order))

    def rank(self, message: dict[str, Any], node: str) -> None:
        """A step that was started on a member is kept there."""
        origin = str(message.get("step", "")).partition(".")[0]
        members = self._attempt.spec["members"]
        if origin.isdigit() and 0 < int(origin) < len(members):
            home = members[int(origin)]["node"]
            if home != node and home in self._links:
                self._links[home].say({message["op"]: message, "node": node})

    def sweep(self, step: str, origin: str) -> None:
        for node, channel in self._links.items():
            if node != origin:
                channel.say({"sweep": step})

    async def prologues(self) -> tuple[str, int, str] | None:
        self._asked = True
        for node in self._with_prologue:
            if node in self._links:
                self._links[node].say({"prologue": True})
        while self._order is None and not self._with_prologue <= self._prologues.keys():
            self._news.clear()
            await self._news.wait()
        failed = ((node, *end) for node, end in self._prologues.items() if end[0])
        return next(failed, None)

    async def serve(self, node: str, channel: Channel, *, prologue: bool = False) -> None:
        """Holds the connection of a member that joins, or joins again; ``prologue``: it has one to run."""
        if prologue:
            self._with_prologue.add(node)
        if self._order:
            channel.say(_order_message(self._order))
            await channel.drain()
            return
        channel.say({"joined": True})
        self._note(node)
        if before := self._links.pop(node, None):
            before.close()
        self._links[node] = channel
        if self._asked and node in self._with_prologue and node not in self._prologues:
            channel.say({"prologue": True})  # it was away when it was asked, or when it answered
        while message := await channel.hear():
            self._note(node)
            self._hear(node, message)
        if self._links.get(node) is channel:
            del self._links[node]

    def _note(self, node: str) -> None:
        self._heard[node] = boottime()
        self._news.set()

    def _hear(self, node: str, message: dict[str, Any]) -> None:
        for kind in ("rank", "rank_end"):
            if kind in message:
                self._attempt.hear_rank(message[kind], node)
        if "sweep" in message:
            self._attempt.sweep(str(message["sweep"]), node)
        if "prologue" in message:
            self._prologues[node] = int(message["prologue"]), str(message.get("text"))
            self._news.set()
        if "ended" in message and not self._order:
            self._attempt.end(self._follow(node, message["ended"]))

    def _follow(self, node: str, ended: dict[str, Any]) -> Order:
        """How the whole ends when a member's part does. What a master has told all may reach a member first."""
        if ended["end"] in WISHED:
            return _order(ended)
        text = ended.get("message") or f"the part of {node} has ended"
        order = Order.lost(
            ended.get("culprit") or self.suspect() or node, text, self._attempt.spec["kill_delay"]
        )
        return replace(order, cause=ended["end"])

    def suspect(self) -> str | None:
        """Who is to blame for a lost member: one that is silent, or this node when it hears none of several."""
        limit = boottime() - max(self._config.gang_silence / 2, 2 * self._config.gang_ping)
        silent = [node for node, heard in self._heard.items() if heard < limit]
        if len(silent) > 1 and len(silent) == len(self._attempt.spec["members"]) - 1:
            return self._config.node
        return silent[0] if silent else None

    async def confirm(self) -> None:
        """Asks every member whether it is there; one that does not answer is given the time of the gang clock."""
        since = boottime()
        for channel in self._links.values():
            channel.say({"ask": True})
        while self._order is None and any(heard <= since for heard in self._heard.values()):
            self._news.clear()
            await self._news.wait()

    async def _watch(self) -> None:
        count = 0
        while True:
            await asyncio.sleep(self._config.gang_ping)
            count += 1
            now = boottime()
            for node, heard in self._heard.items():
                if now - heard > self._config.gang_silence:
                    text = f"{node} has been silent for {self._config.gang_silence:g} s"
                    self._attempt.end(
                        Order.lost(self.suspect() or node, text, self._attempt.spec["kill_delay"])
                    )
                    return
            for channel in self._links.values():
                channel.say({"ping": count})


class MemberGang:
    """The head as another member sees it."""

    def __init__(self, attempt: Attempt, peers: Peers, refuse: Callable[[Attempt, Refusal], None]) -> None:
        self._attempt = attempt
        self._peers = peers
        self._refuse = refuse
        self._config = attempt.services.config
        self._head: dict[str, Any] = attempt.spec["members"][0]
        self._channel: Channel | None = None
        self._heard: float | None = None  # None: not joined yet
        self._trouble = ""
        self._prologue: asyncio.Future[tuple[int, str]] | None = None
        attempt.services.work(self._run())
        self._clock = asyncio.get_running_loop().create_task(self._watch())

    def end(self, order: Order) -> None:
        self._clock.cancel()
        if self._channel:
            self._channel.say({"ended": _order_message(order)})
            self._channel.close()

    def suspect(self) -> None:
        return None

    async def prologues(self) -> tuple[str, int, str] | None:
        return None

    async def confirm(self) -> None:
        """Only a head has a script whose end is to be confirmed."""

    def rank(self, message: dict[str, Any], node: str) -> None:
        if self._channel:
            self._channel.say({message["op"]: message, "node": node})

    def sweep(self, step: str, origin: str) -> None:
        if self._channel:
            self._channel.say({"sweep": step})

    async def _run(self) -> None:
        """Joins, and joins again after a loss, until this part ends. The clock says when it has been too long."""
        while self._attempt.phase in ("preparing", "ready"):
            try:
                await self._hold()
            except (PeerError, protocol.FrameError, TimeoutError) as error:
                self._trouble = str(error) or f"{self._head['node']} does not answer"
            await asyncio.sleep(_RETRY)

    async def _hold(self) -> None:
        channel = await self._peers.dial(self._head)
        try:
            channel.say(
                {
                    "op": "join",
                    "attempt": self._attempt.id,
                    "node": self._config.node,
                    "again": self._heard is not None,
                    "prologue": self._attempt.scripts.wanted("prologue"),
                }
            )
            async with asyncio.timeout(self._attempt.spec["prepare_timeout"]):
                answer = await channel.hear()
            if answer is None or self._attempt.phase not in ("preparing", "ready"):
                return
            if "refused" in answer:
                self._give_up(answer["refused"])
                return
            self._channel = channel
            self._hear(answer)
            while message := await channel.hear():
                self._hear(message)
        finally:
            self._channel = None
            channel.close()

    def _hear(self, message: dict[str, Any]) -> None:
        self._heard = boottime()
        if "joined" in message:
            self._attempt.ready()
        if "ask" in message and self._channel:
            self._channel.say({"ping": 0})
        if "end" in message:
            self._attempt.end(_order(message))
        for kind in ("rank", "rank_end"):
            if kind in message:
                self._attempt.hear_rank(message[kind], message["node"])
        if "sweep" in message:
            self._attempt.sweep(str(message["sweep"]), self._head["node"])
        if "prologue" in message:
            self._attempt.services.work(self._run_prologue())

    async def _run_prologue(self) -> None:
        if self._prologue is None:  # asked again, it runs only once
            self._prologue = asyncio.ensure_future(self._attempt.prologue_of_member())
        code, text = await asyncio.shield(self._prologue)
        if self._channel:
            self._channel.say({"prologue": code, "text": text})

    def _give_up(self, reason: str) -> None:
        if self._attempt.phase == "preparing":
            self._clock.cancel()
            self._refuse(self._attempt, Refusal(reason, self._head["node"]))
        else:
            self._attempt.end(Order.lost(self._head["node"], reason, self._attempt.spec["kill_delay"]))

    async def _watch(self) -> None:
        begun, patience, count = boottime(), self._attempt.spec["prepare_timeout"], 0
        while True:
            silence = boottime() - (self._heard or begun)
            limit = self._config.gang_silence if self._heard else patience
            if silence > limit:
                reason = self._trouble or f"{self._head['node']} has been silent for {limit:g} s"
                return self._give_up(reason)
            await asyncio.sleep(min(self._config.gang_ping, max(0.01, limit - silence)))
            count += 1
            if self._channel:
                self._channel.say({"ping": count})


async def serve_join(attempt: Attempt | None, channel: Channel, node: str, *, prologue: bool = False) -> None:
    """The head's side of ``join``. ``attempt`` None: not known here; ``prologue``: the member has one to run."""
    if attempt is None or not isinstance(attempt.gang, HeadGang):
        channel.say({"refused": "the head does not hold this attempt"})
        await channel.drain()
        return
    await attempt.gang.serve(node, channel, prologue=prologue)


JOIN_PATIENCE = FIRST_WORD
"""Seconds that a join is kept waiting for the head's own PREPARE."""
