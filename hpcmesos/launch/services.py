"""What the attempts of a shepherd share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from hpcmesos.launch import docker_sockets, enclosure, files, scopes
from hpcmesos.launch.journal import Journal
from hpcmesos.launch.load import Load
from hpcmesos.launch.processes import Children
from hpcmesos.launch.secrets import Secrets
from hpcmesos.launch.settings import Config


@dataclass(slots=True)
class Services:
    """``emit``: tells the agent. ``uncontain``: the container of that attempt is over."""

    config: Config
    children: Children
    journal: Journal
    directories: files.Directories
    secrets: Secrets
    trees: enclosure.Trees
    emit: Callable[[dict[str, Any]], None]
    uncontain: Callable[[str], None]
    scopes: scopes.Scopes
    docker: docker_sockets.Sockets
    load: Load = field(default_factory=Load)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)  # the loop itself keeps none alive

    def work(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs it beside everything else; nobody waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
