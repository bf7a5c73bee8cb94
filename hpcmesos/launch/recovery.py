"""What a dead shepherd left behind: its attempts end here, truthfully and without a guess."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
from collections import defaultdict
from collections.abc import Collection
from typing import Any

from hpcmesos.launch import enclosure, ending, files, scopes
from hpcmesos.launch.order import NODE_LOST
from hpcmesos.launch.output import PATIENCE, TAIL
from hpcmesos.launch.owners import Owners
from hpcmesos.launch.processes import Children, Launch
from hpcmesos.launch.services import Services
from hpcmesos.launch.settings import Config, Refusal
from hpcmesos.launch.strays import Strays


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
        """Removes what is left of it; True: it may always be forgotten."""
        for parent in scopes.directories(services.config):
            if os.path.isdir(os.path.join(parent, self.name)):
                # Again: what could not be killed may have gone.
                _cgroup(services.config, parent, self.name).remove()
        services.directories.remove(files.attempt_directory(services.config, self.name))
        services.journal.remove(self.name)
        return True


async def recover(services: Services, strays: Strays) -> dict[str, Recovered]:
    """Reads the journal, kills what is left of attempts without an end, and ends them in the journal too.

    What runs here of attempts that the journal does not know is killed as well: no live shepherd, no work. A file
    server that hangs costs seconds, whatever number of attempts it holds: what has got SIGKILL does no more work, and
    dies once the server answers; tails of output that cannot be read are left out.
    """
    stuck = await _kill_all(services, strays)
    found = services.journal.load()
    # A directory without records: they are damaged, and nobody knows how far the attempt was.
    found |= {name: [] for name in services.directories.names() if name not in found}
    ends = {
        name: _end(services, name, records, stuck.get(name, ()))
        for name, records in found.items()
        if not records or records[-1].get("event") != "ended"
    }
    ended = dict(zip(ends, await asyncio.gather(*ends.values()), strict=True))
    return {
        name: Recovered(name, records[0]["spec"] if records else None, ended.get(name) or records[-1])
        for name, records in found.items()
    }


async def _kill_all(services: Services, strays: Strays) -> dict[str, set[int]]:
    """Ends every process of every attempt; answers what could not be killed, by attempt."""
    stuck = defaultdict[str, set[int]](set)

    async def clear(parent: str, name: str) -> None:
        cgroup = _cgroup(services.config, parent, name)
        stuck[name].update(await enclosure.clear(cgroup))
        cgroup.remove()

    places = [
        (parent, entry.name)
        for parent in scopes.directories(services.config)
        for entry in os.scandir(parent)
        if entry.is_dir() and entry.name != scopes.HOLDER
    ]
    left = asyncio.create_task(strays.clear())
    await asyncio.gather(left, *(clear(*place) for place in places))
    for pid, name in left.result().items():
        stuck[name].add(pid)
    return stuck


def _cgroup(config: Config, parent: str, name: str) -> enclosure.Cgroup:
    """What a dead shepherd left of an attempt's, limits included."""
    return enclosure.Cgroup(parent, name, config.limits.get("v1", {}), {})


async def _end(
    services: Services, name: str, records: list[dict[str, Any]], stuck: Collection[int]
) -> dict[str, Any]:
    config = services.config
    spec = records[0]["spec"] if records else None
    rebooted = bool(records) and records[0].get("boot_id") != config.boot_id
    why = "the node was rebooted" if rebooted else "shepherd died" if spec else "its journal is damaged"
    if stuck:
        why += f"; processes that cannot be killed: {' '.join(map(str, sorted(stuck)))}"
    started_at = next((r["at"] for r in records if r.get("phase") == "running"), None)
    ended = ending.report(
        name,
        head=spec is not None and spec["me"] == 0,
        cause=NODE_LOST,
        forced=True,
        culprit=config.node,
        message=why,
        started_at=started_at,
    )
    if spec:
        ended |= await _output(services, spec)
        services.journal.reopen(name).end(ended)
        await services.journal.synced()
    return ended


async def _output(services: Services, spec: dict[str, Any]) -> dict[str, Any]:
    """Paths and tails of the streams of a script whose shepherd cannot tell any more where they were opened."""
    if spec["me"] != 0:
        return {}
    directory = files.attempt_directory(services.config, spec["attempt"])
    joined = {"oe": "stderr", "eo": "stdout"}.get(spec["join"])
    spools = {name: os.path.join(directory, name) for name in ("stdout", "stderr") if name != joined}
    paths = {
        name: spool if os.path.lexists(spool) or not spec[name] else spec[name]
        for name, spool in spools.items()
    }
    tails = await asyncio.gather(*(_tail(services.children, spec["owner"], path) for path in paths.values()))
    kept = any(paths[name] == spool for name, spool in spools.items())
    return {
        "undelivered": f"kept on {services.config.node}: {directory}" if kept else "",
        **{f"{name}_path": path for name, path in paths.items()},
        **{f"{name}_tail": base64.b64encode(tail).decode() for name, tail in zip(paths, tails, strict=True)},
    }


async def _tail(children: Children, name: str, path: str) -> bytes:
    """The last bytes of a file; empty when its owner may not read it, or nobody can within seconds.

    Read by a process of the owner's: one that hangs keeps nobody else.
    """
    ends = os.pipe()
    over = asyncio.Event()
    try:
        with open(os.devnull, "wb") as nowhere:
            launch = Launch(
                program="tail",
                argv=["tail", "-c", str(TAIL), "--", path],
                environ={"PATH": "/usr/bin:/bin"},
                directories=("/",),
                owner=Owners().resolve(name),
                umask=0o077,
                cgroups=(),
                stdio=(None, ends[1], nowhere.fileno()),
            )
            pid, report = children.spawn(launch, lambda _status, _usage: over.set())
    except (OSError, Refusal):
        os.close(ends[0])
        return b""
    finally:
        os.close(ends[1])
    report.close()
    text = await _read(ends[0])
    if not over.is_set():
        os.kill(pid, signal.SIGKILL)  # not reaped, so it is still ours
    return text


async def _read(pipe: int) -> bytes:
    """Everything that comes, at most a tail's size; nothing when it does not come to its end within seconds."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    file = os.fdopen(pipe, "rb", buffering=0)  # closed with the transport
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
    try:
        async with asyncio.timeout(PATIENCE):
            return (await reader.read())[-TAIL:]
    except TimeoutError:
        return b""
    finally:
        transport.close()
