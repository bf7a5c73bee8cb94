"""The Docker socket that a job finds in DOCKER_HOST, where the site gives one; see docs/containers.md.

Each attempt has its own, which its owner alone may open. It listens from PREPARE on; the process behind it, which asks
the Engine (`hpcmesos.agent.docker_proxy`), starts with the first caller, so a job that wants no container pays for a
socket alone. What is made through it lies in the attempt's cgroup, and is seen, limited and killed with it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hpcmesos.launch import container_marks, docker_pins, own_log
from hpcmesos.launch.enclosure import Cgroup
from hpcmesos.launch.owners import Owner
from hpcmesos.launch.processes import Children, Launch
from hpcmesos.launch.settings import Config

if TYPE_CHECKING:
    from hpcmesos.launch.workspace import Workspace

_FAREWELL = 15.0
"""Seconds that the process may take for what it has begun."""
_SHORT_LIFE = 1.0
"""Seconds; one that ends sooner is not begun again before that."""
_BACKLOG = 64
_NOBODY_ELSE = Owner("", 0, 0, (), "/", "", switch=False)


class Sockets:
    """Those of one shepherd; ``token`` tells its containers from those that an earlier one left."""

    def __init__(self, config: Config, children: Children, token: str) -> None:
        self.config = config
        self.children = children
        self.token = token
        self._place = os.path.join(config.sockets, "docker")

    def open(self, workspace: Workspace) -> DockerSocket | None:
        """Of an attempt, if the site gives jobs one.

        Raises:
            OSError: it cannot be made; nothing of it is left.
        """
        if not self.config.docker_proxy:
            return None
        os.makedirs(self._place, 0o711, exist_ok=True)
        # No name that some client takes for more than a path: attempts' have # and brackets.
        name = hashlib.sha256(workspace.id.encode()).hexdigest()[:16]
        return DockerSocket(self, os.path.join(self._place, f"{name}.sock"), workspace)

    def clean(self) -> None:
        """Removes what an earlier shepherd left."""
        docker_pins.release_all(self.config.state)
        with suppress(FileNotFoundError):
            for name in os.listdir(self._place):
                os.unlink(os.path.join(self._place, name))


class DockerSocket:
    """Of one attempt. ``used``: somebody has called."""

    def __init__(self, sockets: Sockets, path: str, workspace: Workspace) -> None:
        self.used = False
        self._sockets = sockets
        self._path = path
        self._pins = docker_pins.directory_of(sockets.config.state, workspace.id)
        self._workspace = workspace
        self._pid = 0
        self._since = 0.0
        self._closed = False
        self._ended = asyncio.Event()
        self._listener = _listen(self._path, workspace.owner)
        self._await_caller()

    @property
    def environment(self) -> dict[str, str]:
        """For every process of the job on this node."""
        return {"DOCKER_HOST": f"unix://{self._path}"}

    def _await_caller(self) -> None:
        if not self._closed:
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._start)

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener.fileno())
        self.used = True
        proxy = self._sockets.config.docker_proxy
        assert proxy is not None
        words = [*proxy["command"], json.dumps(self._settings(proxy))]
        launch = Launch(
            program=words[0],
            argv=words,
            environ=dict(os.environ),
            directories=("/",),
            owner=_NOBODY_ELSE,
            umask=0o077,
            cgroups=(),
            stdio=(self._listener.fileno(), 2, 2),
        )
        self._ended.clear()
        self._since = time.monotonic()
        try:
            container_marks.note_use(self._sockets.config)
            self._pid, report = self._sockets.children.spawn(launch, self._exited)
            report.close()
        except OSError as error:  # no process, no memory, no disk: callers wait
            own_log.write(f"{self._workspace.id}: nobody serves its Docker socket: {error}")
            loop.call_later(_SHORT_LIFE, self._await_caller)

    def _settings(self, proxy: dict[str, Any]) -> dict[str, Any]:
        """What the process is told: `docker_proxy.Settings`."""
        workspace, config = self._workspace, self._sockets.config
        owner, spec, held = workspace.owner, workspace.spec, workspace.enclosure
        assert config.containers is not None and isinstance(held, Cgroup)
        tmp = workspace.private_tmp
        paths = [path.partition(":") for path in config.containers["paths"]]
        grant = {
            "name": owner.name,
            "uid": owner.uid,
            "gid": owner.gid,
            "groups": owner.groups,
            "cgroup": "/" + os.path.relpath(held.directory, proxy["cgroups"]),
            "labels": {
                **container_marks.labels(config, workspace.id, self._sockets.token),
                container_marks.OWN: workspace.id,
                container_marks.OWNER: owner.name,
            },
            "gpus": [g["uuid"] for g in spec["members"][spec["me"]]["gpus"] if not g["simulated"]],
            "paths": [*((path, how != "ro") for path, _, how in paths), (workspace.paths.directory, True)],
            "pull": (spec.get("image_pull") or config.containers["pull"]) != "never",
            "nofile": int(config.limits.get("nofile") or 0),
            **({"log_bytes": int(spec["log_limit"])} if spec.get("log_limit") else {}),
        }
        return {
            "grant": grant,
            "engine": proxy["engine"],
            "pins": self._pins,
            "private_tmp": tmp.directory if tmp else "",
            "shepherd": os.getpid(),
        }

    def _exited(self, _status: int, _usage: object) -> None:
        self._pid = 0
        self._ended.set()
        if not self._closed:
            pause = max(0.0, _SHORT_LIFE - (time.monotonic() - self._since))
            asyncio.get_running_loop().call_later(pause, self._await_caller)

    async def close(self) -> None:
        """Nobody is heard any more; comes back when nothing that was asked is still being started."""
        self._deafen()
        if self._pid:
            self._send(signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL):
                    await self._ended.wait()
        self.discard()

    def discard(self) -> None:
        """As `close`, at once."""
        self._deafen()
        self._send(signal.SIGKILL)
        docker_pins.release(self._pins)
        _unlink(self._path)

    def _deafen(self) -> None:
        if not self._closed:
            self._closed = True
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()

    def _send(self, number: int) -> None:
        if self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, number)


def _listen(path: str, owner: Owner) -> socket.socket:
    """A socket that its owner alone may open; never another's, however short."""
    _unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(path)
        if owner.switch:
            os.chown(path, owner.uid, owner.gid)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        _unlink(path)
        raise
    finally:
        os.umask(before)
    return listener


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
