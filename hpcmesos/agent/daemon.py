"""``run(settings)``: the agent's process. It does what the state machine says and feeds back what comes of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from hpcmesos import wire
from hpcmesos.agent import faults_file, health_program, inventory, isolation
from hpcmesos.agent.alarm import Alarm
from hpcmesos.agent.control import Control
from hpcmesos.agent.courier import Courier
from hpcmesos.agent.events import (
    AskProbe,
    CloseLink,
    Effect,
    Event,
    FromShepherd,
    Note,
    Remember,
    RememberFaults,
    Tick,
    ToLeader,
    ToShepherd,
)
from hpcmesos.agent.probe import Probe
from hpcmesos.agent.renewal import keep_certificate
from hpcmesos.agent.service import enrol, pid_file, until_told
from hpcmesos.agent.state_machine import deadline, first_state, step
from hpcmesos.agent.uplink import Uplink
from hpcmesos.config import AgentSettings
from hpcmesos.errors import ConfigError, HpcmesosError, StateError
from hpcmesos.launch.clock import boottime

log = logging.getLogger(__name__)

_WRITE_AGAIN = 2.0  # s after which what could not be written is tried again


def run(settings: AgentSettings) -> int:
    """Blocks until SIGTERM or SIGINT; jobs and the shepherd stay. Returns the exit code, after one line on an error."""
    try:
        _make_directories(settings)
        with pid_file(settings.state / "agent.pid", "an agent"):
            uvloop.run(until_told(_work(settings)))  # asyncio's own cost more than what an agent does
        log.info("the agent stops; its jobs go on")
    except HpcmesosError as error:
        print(f"hpcmesos agent: {error}", file=sys.stderr)
        return error.exit_code
    return 0


async def _work(settings: AgentSettings) -> None:
    """Raises the first error of any part: an agent without one of them is of no use."""
    await enrol(settings)
    cluster = settings.cluster or (settings.state / "cluster").read_text().strip()
    agent = Agent(settings, cluster)
    try:
        await agent.run()
    finally:
        agent.close()


class Agent:
    """The state, and the parts through which its effects go out."""

    def __init__(self, settings: AgentSettings, cluster: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._term = settings.state / "term"
        config = shepherd_config(settings, cluster)
        hello = _hello(settings, cluster, isolation.enforced(config))
        self._faults = settings.state / "gpu-faults.json"
        self.state = first_state(
            hello,
            settings.clean_timeout,
            _read_pair(self._term),
            self._loop.time(),
            faults_file.read(self._faults),
            config["configuration"],
        )
        self._ours = inventory.Ours(settings.gpus, inventory.Claims())
        self._control = Control(settings, config, self._from_shepherd)
        self._courier = Courier(settings, lambda event: self.handle(FromShepherd(event)), self._control.send)
        self._uplink = Uplink(settings.master, settings.state, self.handle, inventory.load, self._contact)
        self._probe: Probe | None = None
        if inventory.wants_probe(settings.gpus):
            self._probe = Probe(lambda found: self._ours.of(found, self._held()), self.handle)
        self._alarm = Alarm(self._loop, lambda: self.handle(Tick()))

    async def run(self) -> None:
        """Serves until cancelled, or until a part of it fails: whatever that raises."""
        parts: list[Coroutine[Any, Any, None]] = [self._control.run(), self._uplink.run(self._ready)]
        if self._probe is not None:
            parts.append(self._probe.run())
        parts.append(keep_certificate(self._settings, self._uplink.take_certificate, self._uplink.outdated))
        if (program := self._settings.health_program) is not None:
            parts.append(health_program.watch(program, self._settings.health_interval, self.handle))
        await asyncio.gather(*parts)

    def close(self) -> None:
        self._alarm.cancel()
        self._courier.close()
        self._ours.close()

    def _from_shepherd(self, event: Event) -> None:
        if not (isinstance(event, FromShepherd) and self._courier.holds(event.message)):
            self.handle(event)

    def handle(self, event: Event) -> None:
        """One step: the effects are done in their order, then the timer is set."""
        self.state, effects = step(self.state, event, self._loop.time(), boottime())
        for effect in effects:
            self._do(effect)
        self._alarm.set(deadline(self.state))

    def _do(self, effect: Effect) -> None:
        match effect:
            case ToLeader(link, message):
                self._uplink.send(link, message)
            case ToShepherd(message):
                if not self._courier.keeps(message):
                    self._control.send(message)
            case AskProbe():
                if self._probe is not None:
                    self._probe.ask()
            case Remember():
                self._remember(self._write_term)
            case RememberFaults():
                self._remember(self._write_faults)
            case CloseLink(link, reason):
                # Not within the step: what is queued for this link now must not overtake what closes it.
                self._loop.call_soon(self._uplink.close, link, reason)
            case Note(text):
                log.warning("%s", text)

    def _remember(self, write: Callable[[], None]) -> None:
        """For the next agent. On a full disk this one, which knows, goes on, and writes what holds by then."""
        try:
            write()
        except OSError as error:
            log.error("cannot be written down now: %s", error)
            self._loop.call_later(_WRITE_AGAIN, self._remember, write)

    def _write_term(self) -> None:
        _write_pair(self._term, *self.state.obeyed)

    def _write_faults(self) -> None:
        faults_file.write(self._faults, self.state.faults)

    def _contact(self, at: float) -> None:
        """Winds the shepherd's dead-man timer, if it has one, but not for a leader that is not obeyed."""
        shepherd = self.state.shepherd
        if self.state.welcomed and shepherd is not None and "contact" in shepherd.operations:
            self._control.send({"op": "contact", "at": at})

    def _ready(self) -> bool:
        """Hello tells the leader what is here; it waits until shepherd and probe have said so."""
        return self.state.shepherd is not None and (self._probe is None or self._probe.answered.is_set())

    def _held(self) -> set[str]:
        return {uuid for attempt in self.state.attempts.values() for uuid in attempt.gpus}


def shepherd_config(settings: AgentSettings, cluster: str) -> dict[str, Any]:
    """What docs/architecture.md calls CONFIG.json.

    Raises:
        ConfigError: a private /tmp would hide the state directory, or jobs cannot have Docker sockets here.
    """
    cgroup = isolation.choose(settings.cgroups, cluster, settings.node)
    state = settings.state
    if settings.private_tmp and (os.geteuid() or isolation.below_tmp((state, settings.sockets))):
        raise ConfigError(
            "private_tmp needs root, and state and sockets that do not lie below /tmp or /var/tmp"
        )
    containers = _containers(settings)
    config = {
        "node": settings.node,
        "address": settings.address,
        "peer_port": settings.peer_port,
        "state": str(state),
        "sockets": str(settings.sockets),
        "tls": {
            "certificate": str(state / "agent.pem"),
            "key": str(state / "agent.key"),
            "ca": str(state / "ca.pem"),
        },
        "cgroup": str(cgroup) if cgroup else None,
        "limits": isolation.limits(
            settings.limits, cgroup, cluster, settings.node, with_docker=settings.docker_in_jobs
        ),
        "gang_silence": settings.gang_silence,
        "gang_ping": settings.gang_ping,
        "boot_id": inventory.boot_id(),
        "site_scripts": str(settings.site_scripts),
        "site_script_timeout": settings.site_script_timeout,
        "python": sys.executable,
        "containers": containers,
        "docker_proxy": _docker_proxy(containers, cgroup) if settings.docker_in_jobs else None,
        "private_tmp": settings.private_tmp,
        "prolog": str(settings.prolog or ""),
        "prolog_timeout": settings.prolog_timeout,
    }
    made_of = json.dumps([_version(), config], sort_keys=True)
    return config | {"configuration": hashlib.sha256(made_of.encode()).hexdigest()[:16]}


def _containers(settings: AgentSettings) -> dict[str, Any] | None:
    """What the shepherd needs to make containers; None: they are not served here."""
    engine = inventory.docker_engine(settings.docker)
    if engine is None:
        return None
    return {
        "command": [sys.executable, "-m", "hpcmesos.agent.containers"],
        "docker": engine,
        "paths": list(settings.container_paths),
        "pull": settings.image_pull,
    }


def _docker_proxy(containers: dict[str, Any] | None, cgroup: Path | None) -> dict[str, Any]:
    """What the shepherd needs to give jobs Docker sockets.

    Raises:
        ConfigError: what jobs would make through them could not be held.
    """
    engine = str((containers or {}).get("docker", ""))
    root = isolation.docker_root(cgroup)
    if not engine.startswith("unix://") or root is None:
        raise ConfigError(
            "docker_in_jobs needs root, a Docker Engine on a unix socket (docker), and cgroup v2 where Docker looks"
            " for it, at /sys/fs/cgroup or /sys/fs/cgroup/unified"
        )
    return {
        "command": [sys.executable, "-m", "hpcmesos.agent.docker_proxy"],
        "engine": engine.removeprefix("unix://"),
        "cgroups": str(root),
    }


def _hello(settings: AgentSettings, cluster: str, enforced: tuple[str, ...]) -> wire.Hello:
    return wire.Hello(
        protocol=wire.PROTOCOL,
        node=settings.node,
        boot_id=inventory.boot_id(),
        address=settings.address,
        peer_port=0,
        version=_version(),
        inventory=msgspec.structs.replace(inventory.collect(settings, cluster), isolation=enforced),
        pid=os.getpid(),
    )


def _version() -> str:
    try:
        return metadata.version("hpcmesos")
    except metadata.PackageNotFoundError:
        return "unknown"


def _make_directories(settings: AgentSettings) -> None:
    """0711: owners of attempts pass through, and see nothing."""
    try:
        for directory in (settings.state, settings.sockets):
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o711)
    except OSError as error:
        raise StateError(f"cannot use {error.filename}: {error.strerror}") from error


def _read_pair(path: Path) -> tuple[int, int]:
    try:
        timeline, term = path.read_text().split()
        return int(timeline), int(term)
    except FileNotFoundError:
        return 0, 0
    except ValueError as error:
        raise StateError(f"{path} does not hold the leader's timeline and term: {error}") from error


def _write_pair(path: Path, timeline: int, term: int) -> None:
    temporary = path.with_name(".term.new")
    with temporary.open("w") as file:
        file.write(f"{timeline} {term}")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
