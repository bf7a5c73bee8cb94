"""The shepherd: forks, feeds and reaps the jobs of one node, and outlives the agent; ``shepherd CONFIG.json``."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import resource
import signal
import sys
import time
from collections import OrderedDict
from contextlib import suppress
from typing import Any

from hpcmesos import pidfile
from hpcmesos.handshakes import Handshakes
from hpcmesos.launch import (
    control,
    display,
    enclosure,
    files,
    gangs,
    limits,
    logs,
    mps,
    prolog,
    ranks,
    shells,
    terminal,
)
from hpcmesos.launch.attempt import Attempt
from hpcmesos.launch.channel import Channel
from hpcmesos.launch.containers import Containers
from hpcmesos.launch.deadman import DeadMan
from hpcmesos.launch.docker_sockets import Sockets
from hpcmesos.launch.journal import Journal
from hpcmesos.launch.order import Order
from hpcmesos.launch.owners import Owners
from hpcmesos.launch.peers import Identity, Peers
from hpcmesos.launch.processes import Children
from hpcmesos.launch.recovery import Recovered, recover
from hpcmesos.launch.scopes import Scopes
from hpcmesos.launch.secrets import Secrets
from hpcmesos.launch.services import Services
from hpcmesos.launch.settings import Config, Refusal
from hpcmesos.launch.strays import Strays

_PR_SET_CHILD_SUBREAPER = 36
_REMEMBERED_REFUSALS = 1000
_COLLECT = 10_000
"""Objects more than before until the collector looks for cycles: an attempt has few, and each look costs."""
_KEPT_OUTPUT = 30.0
"""Seconds that output which lies here alone, and is more than the end report takes along, is kept for its readers."""


class Shepherd:
    """The attempts of this node and the doors to them."""

    def __init__(self, config: Config, descriptors: tuple[int, int]) -> None:
        """``descriptors``: soft and hard limit of what this process might have open when it began."""
        self.config = config
        self.attempts: dict[str, Attempt] = {}
        self.recovered: dict[str, Recovered] = {}
        self.children = Children(limits.descriptors(config.limits, descriptors))
        self.control = control.Control(self)
        self._started_at = time.time()
        token = f"{os.getpid()}.{self._started_at}"
        self._containers = Containers(config, self.children, token)
        marker = f"HPCMESOS_SOCKET={config.ranks_socket}"
        self.services = Services(
            config=config,
            children=self.children,
            journal=Journal(os.path.join(config.state, "journal")),
            directories=files.Directories(config, self.children),
            secrets=Secrets(config),
            trees=enclosure.Trees(marker),
            emit=self.control.emit,
            uncontain=self._containers.over,
            scopes=Scopes(config, self.children),
            docker=Sockets(config, self.children, token),
        )
        self.peers = Peers(config)
        self._strays = Strays(marker, self.attempts)
        self._ranks = ranks.Ranks(self.attempts, self.services.trees, self.peers, config.node)
        self.deadman = DeadMan(config.node, self.attempts.values)
        self._owners = Owners()
        self._arrivals: dict[str, asyncio.Event] = {}
        self._refused: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._stopping = asyncio.Event()

    # --- what the agent asks ----------------------------------------------------------------------------------------

    def hello(self) -> dict[str, Any]:
        """The answer to ``hello``; see docs/architecture.md."""
        return {
            "event": "hello",
            "pid": os.getpid(),
            "started_at": self._started_at,
            "peer_port": self.peers.port,
            "journal": self.services.journal.identity,
            "operations": list(control.OPERATIONS),
            "configuration": self.config.configuration,
            "attempts": [attempt.summary() for attempt in self._held()],
        }

    def replay(self) -> list[dict[str, Any]]:
        return [*self._refused.values(), *(event for attempt in self._held() for event in attempt.replay())]

    def _held(self) -> list[Attempt | Recovered]:
        return [*self.attempts.values(), *self.recovered.values()]

    def prepare(self, spec: dict[str, Any]) -> None:
        """Makes everything ready for an attempt; a repeated request repeats the answer."""
        name = spec["attempt"]
        known = self.attempts.get(name) or self.recovered.get(name)
        if known or name in self._refused:
            for event in known.replay() if known else [self._refused[name]]:
                self.control.emit(event)
            return
        try:
            secrets = spec.pop("secret_values", {})  # before the spec is written down anywhere
            attempt = Attempt(self.services, spec, self._owners.resolve(spec["owner"]))
            attempt.prepare(secrets)
        except Exception as error:  # a spec that we do not understand costs its attempt, not the connection
            self._refuse(name, Refusal.of(error))
            return
        self.attempts[name] = attempt
        self._arrived(name)
        if attempt.head and len(spec["members"]) > 1:
            attempt.gang = gangs.HeadGang(attempt)
        unheld = self.services.scopes.wanted and not self.services.scopes.known(attempt.workspace.devices)
        if unheld or spec.get("image") or self.config.prolog or mps.wanted(spec):
            self.services.work(self._get_ready(attempt))
        else:
            self._prepared(attempt)

    async def _get_ready(self, attempt: Attempt) -> None:
        """What may take long; the attempt may be over meanwhile."""
        try:
            if self.services.scopes.wanted:
                scope = await self.services.scopes.make(attempt.workspace.devices)
                if attempt.phase == "preparing":
                    attempt.workspace.hold_below(scope)
            if self.config.prolog:
                await prolog.run(attempt.workspace)
            if mps.wanted(attempt.spec) and attempt.phase == "preparing":
                await mps.start(attempt.workspace)
            if attempt.spec.get("image"):
                attempt.workspace.container = await self._containers.make(attempt.workspace)
        except Exception as error:  # whatever it is, it costs this attempt
            refusal = Refusal.of(error)
            if attempt.phase == "preparing":
                if attempt.gang:
                    attempt.gang.end(Order("START_FAILED", 0.0, str(refusal)))
                self._withdraw(attempt, refusal)
                return
        if attempt.phase == "preparing":
            self._prepared(attempt)
        else:
            attempt.workspace.leave_container()

    def _prepared(self, attempt: Attempt) -> None:
        """This node's part is there; a member is ready once it has joined the head."""
        if not attempt.head:
            attempt.gang = gangs.MemberGang(attempt, self.peers, self._withdraw)
        elif attempt.spec.get("go"):  # nobody else has to get ready
            attempt.phase = "ready"
            attempt.go()
        else:
            attempt.ready()

    def _arrived(self, name: str) -> None:
        if event := self._arrivals.pop(name, None):
            event.set()

    def _withdraw(self, attempt: Attempt, refusal: Refusal) -> None:
        """It cannot get ready after all: as if it had been refused at once."""
        if attempt.workspace.enclosure.empty() or not mps.wanted(attempt.spec):
            self._discard(attempt, refusal)
            return
        self.services.work(self._clear(attempt, refusal))

    async def _clear(self, attempt: Attempt, refusal: Refusal) -> None:
        """Ends what runs for it already; it may be over meanwhile."""
        await enclosure.clear(attempt.workspace.enclosure)
        if attempt.phase == "preparing":
            self._discard(attempt, refusal)

    def _discard(self, attempt: Attempt, refusal: Refusal) -> None:
        del self.attempts[attempt.id]
        attempt.discard()
        self._refuse(attempt.id, refusal)

    def _refuse(self, name: str, refusal: Refusal) -> None:
        event = {
            "event": "refused",
            "attempt": name,
            "culprit": refusal.culprit or self.config.node,
            "reason": str(refusal),
        }
        self._refused[name] = event
        self._arrived(name)
        while len(self._refused) > _REMEMBERED_REFUSALS:
            self._refused.popitem(last=False)
        self.control.emit(event)

    def forget(self, attempt: str) -> None:
        """The leader has the end of this attempt in its database: nothing of it has to be kept here."""
        self._refused.pop(attempt, None)
        if (known := self.attempts.get(attempt)) and known.still_read():
            asyncio.get_running_loop().call_later(_KEPT_OUTPUT, self._forget, attempt)
        else:
            self._forget(attempt)

    def _forget(self, attempt: str) -> None:
        if (known := self.attempts.get(attempt)) and known.forget():
            del self.attempts[attempt]
        if (recovered := self.recovered.get(attempt)) and recovered.forget(self.services):
            del self.recovered[attempt]

    def shutdown(self, force: bool) -> None:
        """Stops when no attempt is held, or with ``force`` once all have ended."""
        held = [a for a in self.attempts.values() if a.phase != "ended"]
        if held and not force:
            return
        for attempt in held:
            attempt.end(Order("NODE_LOST", 0.0, "the agent was stopped by force"))
        self.services.work(self._stop())

    async def _stop(self) -> None:
        while any(attempt.phase != "ended" for attempt in self.attempts.values()):
            await asyncio.sleep(0.01)
        self.control.emit({"event": "bye"})
        await asyncio.sleep(0)
        self._stopping.set()

    # --- what other nodes and masters ask ---------------------------------------------------------------------------

    async def _answer_peer(self, channel: Channel, identity: Identity, request: dict[str, Any]) -> None:
        organization, name = identity
        operation, attempt = request["op"], self.attempts.get(request["attempt"])
        if operation == "log" and organization == "master":
            await logs.serve_log(attempt, request, channel)
        elif operation == "terminal" and organization == "master":
            await terminal.serve(attempt.terminal if attempt else None, request, channel)
        elif operation == "display" and organization == "master":
            held = attempt.terminal if attempt else None
            await display.serve(held.display if held else None, request, channel)
        elif operation == "join" and organization == "agent" and request["node"] == name:
            if attempt is None and not request.get("again"):
                attempt = await self._expect(request["attempt"])
            if attempt and not _is_member(attempt, name):
                attempt = None
            await gangs.serve_join(attempt, channel, name, prologue=bool(request.get("prologue")))
        elif (
            operation in ("shell", "crew")
            and organization == "agent"
            and attempt
            and _is_member(attempt, name)
        ):
            await ranks.serve_start(attempt, request, channel)
            await channel.drain()
        else:
            channel.say(
                {**shells.answer(error=f"{operation} is refused for {name}"), "refused": "not allowed"}
            )
            await channel.drain()

    async def _expect(self, name: str) -> Attempt | None:
        """An attempt whose PREPARE may come any moment: members can be faster than the head."""
        event = self._arrivals.setdefault(name, asyncio.Event())
        try:
            async with asyncio.timeout(gangs.JOIN_PATIENCE):
                await event.wait()
        except TimeoutError:
            self._arrivals.pop(name, None)
        return self.attempts.get(name)

    # --- life -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serves until it is told to stop."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self.children.reap)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.shutdown, False)
        files.write_commands(self.config)
        self.services.directories.clean()
        if self.config.cgroup:
            self.children.use_starter(self.config.starter)
        self.recovered = await recover(self.services, self._strays)
        self.services.secrets.clear()  # recovered attempts have ended
        self.services.docker.clean()
        doors: list[Handshakes | asyncio.Server] = [
            await self.peers.listen(self._answer_peer),
            await control.listen(self.config.ranks_socket, 0o666, self._ranks.serve),
            await control.listen(self.config.control_socket, 0o600, self.control.serve),
        ]
        watching = [
            asyncio.create_task(self.deadman.watch()),
            asyncio.create_task(self._containers.tidy()),
            asyncio.create_task(self._strays.watch()),
        ]
        gc.freeze()  # fewer pages to copy at each fork
        gc.set_threshold(_COLLECT)
        await self._stopping.wait()
        await self._containers.farewell()
        for task in watching:
            task.cancel()
        for door in doors:
            door.close()
        for path in (self.config.control_socket, self.config.ranks_socket):
            if os.path.exists(path):
                os.unlink(path)
        loop.remove_signal_handler(
            signal.SIGCHLD
        )  # a child that ends while the loop closes would write an error


def main(argv: list[str]) -> int:
    """Runs one shepherd. Exit code 1: another one holds this state directory; 2: the configuration is no good."""
    try:
        config = Config.load(argv[0])
    except (IndexError, OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"shepherd: cannot read the configuration: {error!r}\n")
        return 2
    if os.getsid(0) != os.getpid() and os.getpgrp() != os.getpid():
        os.setsid()
    _make_directories(config)
    lock = pidfile.hold(os.path.join(config.state, "shepherd.pid"))
    if lock is None:
        sys.stderr.write(f"shepherd: {config.state} is held by another shepherd\n")
        return 1
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with open(lock, "w", encoding="ascii"):
        asyncio.run(_serve(config, _raise_descriptors()))
    return 0


def _is_member(attempt: Attempt, node: str) -> bool:
    return any(member["node"] == node for member in attempt.spec["members"])


def _raise_descriptors() -> tuple[int, int]:
    """As many as the hard limit for us, who serve all jobs; answers what held before, and holds for them."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    return before


async def _serve(config: Config, descriptors: tuple[int, int]) -> None:
    await Shepherd(config, descriptors).run()


def _make_directories(config: Config) -> None:
    os.umask(0o022)
    for directory in (config.state, os.path.join(config.state, "attempts"), config.sockets):
        os.makedirs(directory, 0o711, exist_ok=True)
        os.chmod(directory, os.stat(directory).st_mode & 0o777 | 0o011)  # noqa: S103  (owners have to pass)
    if config.cgroup:
        os.makedirs(config.cgroup, 0o755, exist_ok=True)
