"""batchspawner: a server's job starts, is found, and is cancelled. ``batchspawner_server.py SPAWNER``; prints JSON."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import sys
from types import SimpleNamespace
from typing import Any

import batchspawner

TRIES, PAUSE = 200, 0.2


def spawner(kind: str) -> Any:
    """A spawner of the caller's own jobs: no sudo, and a program that stays in place of a notebook server."""

    class Spawner(getattr(batchspawner, kind)):  # type: ignore[misc]  # chosen by name
        exec_prefix = ""

        def get_env(self) -> dict[str, str]:
            return {name: os.environ[name] for name in ("HOME", "PATH")}

        def cmd_formatted_for_batch(self) -> str:
            return "sleep 300"

    made = Spawner(req_runtime="0:05:00", req_memory="100mb", req_nprocs="1")
    made.user = SimpleNamespace(name=getpass.getuser(), url="/", settings={})
    return made


async def until(server: Any, found: Any) -> bool:
    for _ in range(TRIES):
        if found(await server.query_job_status()):
            return True
        await asyncio.sleep(PAUSE)
    return False


async def main() -> None:
    server = spawner(sys.argv[1])
    job = await server.submit_batch_script()
    running = await until(server, lambda _: server.state_isrunning())
    host = server.state_gethost() if running else ""
    await server.cancel_batch_job()
    gone = await until(server, lambda status: status is batchspawner.JobStatus.NOTFOUND)
    print(json.dumps({"job": job, "running": running, "host": host, "gone": gone}))


if __name__ == "__main__":
    asyncio.run(main())
