"""Makes the containers of attempts and removes them: by a helper process, for the Docker Engine may hang, and its
library is large. No job waits for the Engine but while it is prepared.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from contextlib import suppress
from typing import Any

from hpcmesos.launch import container_marks, helper, own_log
from hpcmesos.launch.container import Container
from hpcmesos.launch.owners import Owner
from hpcmesos.launch.processes import Children
from hpcmesos.launch.settings import Config, Refusal
from hpcmesos.launch.workspace import Workspace

_RETRY = 30.0
_MOST_AT_ONCE = 500  # attempts in one question: it has to fit into a pipe
"""Seconds until an Engine that could not remove a container is asked again."""
_REMOVE_TIMEOUT = 60.0
_FAREWELL = 20.0
"""Seconds that a shepherd waits for the last removal before it ends."""


class Containers:
    """Those of one shepherd; ``token`` tells them from those that an earlier one left."""

    def __init__(self, config: Config, children: Children, token: str) -> None:
        self._config = config
        self._children = children
        self._token = token
        self._over: set[str] = set()
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    async def make(self, workspace: Workspace) -> Container:
        """Gets the image and makes the container of this attempt here.

        Raises:
            Refusal: it cannot be had; says why.
        """
        spec = workspace.spec
        engine = self._config.containers
        if engine is None:
            raise Refusal("containers are not served on this node")
        container_marks.note_use(self._config)
        request = {
            "op": "make",
            "docker": engine["docker"],
            "image": spec["image"],
            "pull": spec.get("image_pull") or engine["pull"],
            "login": os.path.join(workspace.paths.secrets, login)
            if (login := spec.get("image_secret"))
            else None,
            "labels": container_marks.labels(self._config, workspace.id, self._token),
            "owner": _owner(workspace.owner),
            "mounts": self._mounts(workspace),
            "gpus": [g["uuid"] for g in spec["members"][spec["me"]]["gpus"] if not g["simulated"]],
        }
        answer = await self._ask(request, float(spec["prepare_timeout"]))
        try:
            return Container.of(
                int(answer["pid"]),
                dict(answer["environ"]),
                map(base64.b64decode, answer["filters"]),
                workspace.private_tmp,
            )
        except (OSError, KeyError, ValueError) as error:
            raise Refusal(f"the container of image {spec['image']} did not stay: {error}") from error

    def _mounts(self, workspace: Workspace) -> list[tuple[str, str, bool]]:
        """Source, target, and whether it may be written: what the site gives, the job's own, and our programs.

        The helper leaves out what is not there: to look may take for ever, where a file server hangs.
        """
        config = self._config
        assert config.containers is not None
        paths = [path.partition(":") for path in config.containers["paths"]]
        package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        return [
            *((path, path, how != "ro") for path, _, how in paths),
            (workspace.paths.directory, workspace.paths.directory, True),
            *((path, path, False) for path in (config.hosts, config.sockets, package)),
            (config.container_bin, config.bin, False),
        ]

    def over(self, attempt: str) -> None:
        """The attempt's container is to go; when, is the Engine's business."""
        self._over.add(attempt)
        self._idle.clear()
        self._wanted.set()

    async def tidy(self) -> None:
        """Removes what is over, and first what an earlier shepherd left; for as long as the shepherd lives."""
        if container_marks.used(self._config):
            self._wanted.set()
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            over = set(sorted(self._over)[:_MOST_AT_ONCE])
            try:
                await self._remove(over)
            except Refusal as error:
                own_log.write(f"containers are left: {error}")
                await asyncio.sleep(_RETRY)
                self._wanted.set()
                continue
            self._over -= over
            if self._over:
                self._wanted.set()
            else:
                self._idle.set()

    async def farewell(self) -> None:
        """Waits a while until nothing is left to be removed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL):
                await self._idle.wait()

    async def _remove(self, attempts: set[str]) -> None:
        if self._config.containers is None:
            return
        request = {
            "op": "remove",
            "docker": self._config.containers["docker"],
            "state": self._config.state,
            "token": self._token,
            "attempts": sorted(attempts),
        }
        await self._ask(request, _REMOVE_TIMEOUT)

    async def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """One request to the helper. Raises Refusal with its error, or when it takes too long."""
        assert self._config.containers is not None
        words = list(self._config.containers["command"])
        data = json.dumps(request).encode()
        try:
            _, answer = await helper.run(self._children, words, os.environ, seconds, data, stderr=2)
        except TimeoutError:
            raise Refusal(f"the Docker Engine has not done it within {seconds:g} s") from None
        except OSError as error:
            raise Refusal(f"cannot start {words[0]}: {error.strerror}") from error
        return _answer(answer)


def _answer(data: bytes) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(data)
    except ValueError:
        raise Refusal(
            "the helper that speaks with the Docker Engine failed; see the shepherd's log"
        ) from None
    if "error" in answer:
        raise Refusal(str(answer["error"]))
    return answer


def _owner(owner: Owner) -> dict[str, Any]:
    return {"name": owner.name, "uid": owner.uid, "gid": owner.gid, "home": owner.home}
