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

    def __init__(self, spec: dict[str, Any], ended: dict[str, Any]) -> None:
        self.spec = spec
        self.ended = ended

    def summary(self) -> dict[str, Any]:
        gpus = [gpu["uuid"] for gpu in self.spec["members"][self.spec["me"]]["gpus"]]
        return {"attempt": self.spec["attempt"], "phase": "ended", "head": self.spec["me"] == 0, "gpus": gpus}

    def replay(self) -> list[dict[str, Any]]:
        return [self.ended]

    def forget(self, services: Services) -> bool:
        attempt = self.spec["attempt"]
        services.journal.remove(attempt)
        services.directories.remove(files.attempt_directory(services.config, attempt))
        return True


async def recover(services: Services) -> dict[str, Recovered]:
    """Reads the journal, kills what is left of attempts without an end, and ends them in the journal too."""
    found = {}
    for name, records in services.journal.load().items():
        spec, last = records[0]["spec"], records[-1]
        if last.get("event") != "ended":
            last = await _end(services, name, records)
        found[name] = Recovered(spec, last)
    return found


async def _end(services: Services, name: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    spec, config = records[0]["spec"], services.config
    same_boot = records[0].get("boot_id") == config.boot_id
    if same_boot:
        await _kill(config, name, services.trees.marker)
    started_at = next((r["at"] for r in records if r.get("phase") == "running"), None)
    ended = {
        "event": "ended",
        "attempt": name,
        "head": spec["me"] == 0,
        "cause": NODE_LOST,
        "code": None,
        "signal": None,
        "forced": True,
        "culprit": config.node,
        "message": "shepherd died" if same_boot else "the node was rebooted",
        "started_at": started_at,
        "ended_at": time.time(),
        "usage": {},
        "ranks": [],
        "steps": [],
        **_output(config, spec),
    }
    services.journal.reopen(name).end(ended)
    await services.journal.synced()
    return ended


async def _kill(config: Config, name: str, marker: str) -> None:
    if config.cgroup and os.path.isdir(os.path.join(config.cgroup, name)):
        cgroup = enclosure.Cgroup(config.cgroup, name)
        await enclosure.clear(cgroup)
        cgroup.remove()
    await enclosure.clear_by_environment(name, marker)


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
