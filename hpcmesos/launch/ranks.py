"""``ranks.sock``: what processes of attempts ask. The kernel says who they are; nothing that they say does."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import Counter
from typing import Any

from hpcmesos.gang import mpi
from hpcmesos.launch import enclosure, own_log, protocol, proxies, shells
from hpcmesos.launch.attempt import Attempt
from hpcmesos.launch.channel import MOST_UNREAD, Channel
from hpcmesos.launch.crew import Crew
from hpcmesos.launch.load import OF_CONNECTION, OF_PROCESS
from hpcmesos.launch.peers import PeerError, Peers

_COMPANY = 1.0
"""Seconds that a rank which leaves may be kept for those that are still there; see `rank_wrapper`."""

_MOST_CONNECTIONS, _CONNECTIONS_OF_A_SLOT = 256, 8
"""Connections of an attempt that are served at once: so many, and so many more for each of its slots here."""
_MOST_RANKS = _MOST_LAUNCHES = 64
"""Ranks, and launches, that may be open on one connection; a wrapper, or a front, has one."""


class Ranks:
    """Serves the processes of this node's attempts."""

    def __init__(self, attempts: dict[str, Attempt], trees: enclosure.Trees, peers: Peers, node: str) -> None:
        self._attempts = attempts
        self._trees = trees
        self._peers = peers
        self._node = node
        self._open: Counter[str] = Counter()  # connections, by attempt

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        channel = Channel(reader, writer)
        attempt = await self._caller(*_credentials(channel))
        if attempt is None:
            await _refuse(channel, "this process belongs to no job on this node")
        elif self._open[attempt.id] >= (most := _most_connections(attempt)):
            await _refuse(
                channel,
                f"this job has {most} connections to the shepherd of {self._node}, the most that it may",
            )
        else:
            self._open[attempt.id] += 1
            try:
                await self._admit(attempt, channel)
            finally:
                self._open[attempt.id] -= 1
                self._open += Counter()  # forgets those that have none

    async def _admit(self, attempt: Attempt, channel: Channel) -> None:
        channel.turn, channel.most_unread = attempt.turn, MOST_UNREAD
        with attempt.services.load.hold(attempt.owner.uid, OF_CONNECTION) as room:
            if room:
                await self._serve(attempt, channel)
            else:
                await _refuse(channel, _overload(attempt))

    async def _serve(self, attempt: Attempt, channel: Channel) -> None:
        running: dict[tuple[str, int], dict[str, Any]] = {}
        steps: set[str] = set()
        try:
            while request := await channel.hear():
                if request["op"] in ("shell", "crew"):
                    return await self._start(attempt, request, channel)
                if request["op"] in ("step", "step_end"):
                    await _answer_launcher(attempt, request, channel, steps)
                else:
                    await self._note(attempt, request, channel, running)
                await channel.drain()  # who asks and does not listen waits, and does not fill our memory
        except (protocol.FrameError, KeyError, TypeError, ValueError) as error:
            own_log.write(f"ranks.sock: bad request: {error!r}")
        finally:
            for message in running.values():  # its wrapper was killed before it could say how it ended
                vanished = {**message, "op": "rank_end", "code": None, "signal": 9, "vanished": True}
                attempt.hear_rank(vanished, self._node)
            for step in steps:  # its launcher was killed
                attempt.steps.close(step)
                attempt.sweep(step)
            channel.close()

    async def _caller(self, pid: int, uid: int) -> Attempt | None:
        attempt = self._by_cgroup(pid)
        if attempt is None and (uid == 0 or any(one.owner.uid == uid for one in self._attempts.values())):
            attempt = self._attempts.get(self._trees.owner_of(pid) or await self._named_by(pid))
        return attempt if attempt and uid in (0, attempt.owner.uid) else None

    async def _named_by(self, pid: int) -> str:
        """The attempt that it says it is of; empty: none, or the kernel keeps it back."""
        told = await enclosure.environments([pid])
        return enclosure.attempt_named(told[pid] or (), self._trees.marker) or ""

    def _by_cgroup(self, pid: int) -> Attempt | None:
        try:
            with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
                path = next((line[3:].rstrip("\n") for line in file if line.startswith("0::")), "")
        except OSError:
            return None
        while path not in ("", "/"):
            attempt = self._attempts.get(os.path.basename(path))
            if attempt and isinstance(attempt.workspace.enclosure, enclosure.Cgroup):
                # A user may have made a group of that name somewhere else.
                return attempt if attempt.workspace.enclosure.directory.endswith(path) else None
            path = os.path.dirname(path)
        return None

    async def _start(self, attempt: Attempt, request: dict[str, Any], channel: Channel) -> None:
        """A command or the ranks of a step, on the member that the request names."""
        host = str(request["host"])
        member = self._find(attempt, host)
        end = shells.End.ENDED
        environ = dict(request.get("environ") or {})
        launcher = 0  # one called by its path, for which we look after its remote shells
        if request["op"] == "shell":
            launcher = attempt.proxies.launcher(_credentials(channel)[0], environ)
        watched = launcher and proxies.is_proxy(str(request["command"]))
        if watched:
            attempt.proxies.begin(launcher, host)
        if member is None:
            channel.say(shells.answer(error=f"{host} is no host of this job"))
        elif member["node"] == self._node:
            end = await serve_start(attempt, request, channel)
        else:
            try:
                target = await self._peers.dial(member)
            except PeerError as error:
                channel.say(shells.answer(error=str(error)))
            else:
                target.say({**request, "attempt": attempt.id})
                end = await shells.relay(channel, target, member["node"])
        if end is not shells.End.ENDED and request["op"] == "shell":
            gone = "remote shell to" if end is shells.End.DESERTED else "proxy on"
            # A launcher that was asked to end for it may wait for the proxy's ranks all the same, as Intel MPI's does.
            attempt.steps.fail(str(environ.get("HPCMESOS_STEP", "")), f"the {gone} {host} is gone")
            if launcher:
                attempt.proxies.lose(launcher, f"the {gone} {host} is gone")
        if watched:
            attempt.proxies.end(launcher, host, environ)
        await channel.drain()

    def _find(self, attempt: Attempt, host: str) -> dict[str, Any] | None:
        members: list[dict[str, Any]] = attempt.spec["members"]
        if host in ("localhost", "127.0.0.1"):
            host = self._node
        return next(
            (m for m in members if host in (m["node"], m["address"], m["node"].partition(".")[0])), None
        )

    async def _note(
        self,
        attempt: Attempt,
        request: dict[str, Any],
        channel: Channel,
        running: dict[tuple[str, int], dict[str, Any]],
    ) -> None:
        """A rank has started or ended, as its wrapper says."""
        key = (str(request["step"]), int(request["rank"]))
        if request["op"] == "rank":
            attempt.hear_rank(request, self._node)
            running[key] = {name: request[name] for name in ("step", "rank")}
            if len(running) > _MOST_RANKS:
                raise ValueError("more ranks than one connection can have")
        elif request["op"] == "rank_end":
            running.pop(key, None)
            attempt.hear_rank(request, self._node)
            last = bool(request.get("company"))
            if last:
                last = await attempt.steps.last_of(key[0], self._node, _COMPANY)
            channel.say({"noted": True, "last": last})
        else:
            raise ValueError(f"no operation {request['op']!r}")


def _overload(attempt: Attempt) -> str:
    node = attempt.services.config.node
    return f"{attempt.owner.name} has as many processes and connections at the shepherd of {node} as one user may"


async def _refuse(channel: Channel, reason: str) -> None:
    channel.say(shells.answer(error=reason))
    await channel.drain()
    channel.close()


def _most_connections(attempt: Attempt) -> int:
    slots = int(attempt.spec["members"][attempt.spec["me"]]["slots"])
    return _MOST_CONNECTIONS + _CONNECTIONS_OF_A_SLOT * slots


def _credentials(channel: Channel) -> tuple[int, int]:
    """(pid, uid) of the caller, from the kernel."""
    connection: socket.socket = channel.peer("socket")
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", data)
    return pid, uid


async def serve_start(attempt: Attempt, request: dict[str, Any], channel: Channel) -> shells.End:
    """Serves ``shell`` or ``crew`` on this node."""
    count = len(request["ranks"]) if request["op"] == "crew" else 1
    with attempt.services.load.hold(attempt.owner.uid, OF_PROCESS * count) as room:
        if not room:
            channel.say(shells.answer(error=_overload(attempt)))
        elif request["op"] == "crew":
            await Crew(attempt, request, channel).run()
        else:
            return await shells.Command(attempt, request, channel).run()
    return shells.End.ENDED


async def _answer_launcher(
    attempt: Attempt, request: dict[str, Any], channel: Channel, steps: set[str]
) -> None:
    """A step lives as long as the connection by which it was begun, or until its launcher says that it is over."""
    if request["op"] == "step":
        if len(steps) >= _MOST_LAUNCHES:
            raise ValueError("more launches than one connection can have")
        command = [str(word) for word in request["command"]]
        step = attempt.steps.begin(command, lambda reason: channel.say({"broken": reason}))
        steps.add(step)
        members = [
            {
                "node": member["node"],
                "address": member["address"],
                "peer_port": member["peer_port"],
                "slots": mpi.seats(attempt.spec, member),
                "gpus": len(member["gpus"]),
                "uuids": [gpu["uuid"] for gpu in member["gpus"]],
            }
            for member in attempt.spec["members"]
        ]
        channel.say({"step": step, "members": members})
        return
    step = request["step"]
    steps.discard(step)
    attempt.steps.close(step)
    by_rank = bool(request.get("by_rank", True))
    channel.say(await attempt.steps.end(step, int(request["code"]), by_rank))
    if not request.get("swept"):
        attempt.sweep(step)
