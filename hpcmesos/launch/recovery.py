"""What a dead shepherd left behind: its attempts end here, truthfully and without a guess."""

from __future__ import annotations

import base64
import os
import stat
import time
from typing import Any

from hpcmesos.launch import enclosure, files
from hpcmesos.launch.attempt import NODE_LOST, Services
from hpcmesos.launch.output import TAIL
from hpcmesos.launch.owners import Owners, acting_as
from hpcmesos.launch.settings import Config, Refusal


class Recovered:
    """An attempt of an earlier shepherd. It has ended; only its report is left to be acknowledged."""

    def __init__(self, name: str, spec: dict[str, Any] | None, ended: dict[str, Any]) -> None:
        self.name = name
        self.spec = spec  # None: its journal is damaged
        self.ended = ended

    def summary(self) -> dict[str, Any]:
        member = self.spec["members"][self.spec["me"]] if self.spec else {"gpus": []}
        gpus = [gpu["uuid"] for gpu in member["gpus"]]
        return {"attempt": self.name, "phase": "ended", "head": self.ended["head"], "gpus": gpus}

    def replay(self) -> list[dict[str, Any]]:
        return [self.ended]

    def forget(self, services: Services) -> bool:
        services.directories.remove(files.attempt_directory(services.config, self.name))
        services.journal.remove(self.name)
        return True


async def recover(services: Services) -> dict[str, Recovered]:
    """Reads the journal, kills what is left of attempts without an end, and ends them in the journal too.

    What runs here of attempts that the journal does not know is killed as well: no live shepherd, no work.
    """
    await _kill_strangers(services.config, services.trees.marker)
    found = {}
    left = services.journal.load()
    # A directory without records: they are damaged, and nobody knows how far the attempt was.
    left |= {name: [] for name in services.directories.names() if name not in left}
    for name, records in left.items():
        last = records[-1] if records else {}
        if last.get("event") != "ended":
            last = await _end(services, name, records)
        found[name] = Recovered(name, records[0]["spec"] if records else None, last)
    return found


async def _end(services: Services, name: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    config = services.config
    spec = records[0]["spec"] if records else None
    rebooted = bool(records) and records[0].get("boot_id") != config.boot_id
    why = "the node was rebooted" if rebooted else "shepherd died" if spec else "its journal is damaged"
    if not rebooted:
        await _kill(config, name, services.trees.marker)
    started_at = next((r["at"] for r in records if r.get("phase") == "running"), None)
    ended = {
        "event": "ended",
        "attempt": name,
        "head": spec is not None and spec["me"] == 0,
        "cause": NODE_LOST,
        "code": None,
        "signal": None,
        "forced": True,
        "culprit": config.node,
        "message": why,
        "started_at": started_at,
        "ended_at": time.time(),
        "usage": {},
        "ranks": [],
        "steps": [],
        **(_output(config, spec) if spec else {}),
    }
    if spec:
        services.journal.reopen(name).end(ended)
        await services.journal.synced()
    return ended


async def _kill(config: Config, name: str, marker: str) -> None:
    if config.cgroup and os.path.isdir(os.path.join(config.cgroup, name)):
        cgroup = enclosure.Cgroup(config.cgroup, name, {}, {})
        await enclosure.clear(cgroup)
        cgroup.remove()
    await enclosure.clear_by_environment(name, marker)


async def _kill_strangers(config: Config, marker: str) -> None:
    """Ends what an earlier shepherd left whose journal is gone."""
    if config.cgroup and os.path.isdir(config.cgroup):
        for name in os.listdir(config.cgroup):
            if os.path.isdir(os.path.join(config.cgroup, name)):
                await _kill(config, name, marker)
    else:
        await enclosure.clear_by_environment(None, marker)


def _output(config: Config, spec: dict[str, Any]) -> dict[str, Any]:
    """Paths and tails of the streams of a script whose shepherd cannot tell any more where they were opened."""
    if spec["me"] != 0:
        return {}
    found: dict[str, Any] = {"undelivered": ""}
    directory = files.attempt_directory(config, spec["attempt"])
    joined = {"oe": "stderr", "eo": "stdout"}.get(spec["join"])
    for stream in ("stdout", "stderr"):
        if stream == joined:
            continue
        spool = os.path.join(directory, stream)
        path = spool if os.path.lexists(spool) or not spec[stream] else spec[stream]
        found[f"{stream}_path"] = path
        found[f"{stream}_tail"] = base64.b64encode(_tail(spec["owner"], path)).decode()
        if path == spool:
            found["undelivered"] = f"kept on {config.node}: {directory}"
    return found


def _tail(name: str, path: str) -> bytes:
    """The last bytes of a regular file, read with its owner's rights; empty when they do not suffice."""
    try:
        with acting_as(Owners().resolve(name)):
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        with open(fd, "rb", buffering=0):
            status = os.fstat(fd)
            return os.pread(fd, TAIL, max(0, status.st_size - TAIL)) if stat.S_ISREG(status.st_mode) else b""
    except (OSError, Refusal):
        return b""
