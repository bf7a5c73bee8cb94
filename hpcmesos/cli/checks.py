"""What ``hpcmesos doctor`` looks at. Each check is a function that yields findings; none changes anything."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hpcmesos.agent import isolation
from hpcmesos.cli.real_gpus import find_real_gpus
from hpcmesos.client import Client
from hpcmesos.errors import HpcmesosError

DOCKER_TIMEOUT = 10.0
DOCKER_PROGRAM = """
import docker
try:
    print(docker.from_env(timeout=5).version()["Version"])
except docker.errors.DockerException:
    print("")
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """``verdict``: good, note (works, but know this) or bad (will not work)."""

    check: str
    verdict: str
    text: str


def run_all(connect: Callable[[], Client]) -> Iterator[Finding]:
    yield from _cluster(connect)
    yield from _interpreter()
    yield from _cgroups()
    yield from _gpus()
    yield from _docker()


def _cluster(connect: Callable[[], Client]) -> Iterator[Finding]:
    try:
        client = connect()
        leader = client.leader()
        nodes = client.nodes()
    except HpcmesosError as error:
        yield Finding("master", "bad", str(error))
        return
    if leader.address is None:
        yield Finding(
            "leader", "bad", "nobody leads: is a master's leader candidate able to reach PostgreSQL?"
        )
    else:
        yield Finding("leader", "good", f"term {leader.term} at {leader.address}")
    down = [node.name for node in nodes if node.state in ("down", "gone")]
    if not nodes:
        yield Finding(
            "nodes", "note", "no node has joined yet: hpcmesos token create --join, then hpcmesos agent"
        )
    elif down:
        yield Finding("nodes", "note", f"{len(nodes) - len(down)} up, not up: {', '.join(down)}")
    else:
        yield Finding("nodes", "good", f"{len(nodes)} up")
    yield Finding(
        "database",
        "note",
        "a failover of PostgreSQL loses nothing only with a synchronous standby (docs/install.md)",
    )


def _interpreter() -> Iterator[Finding]:
    """Jobs of other users run our launch programs with this interpreter."""
    path = Path(os.path.realpath(sys.executable))
    closed = [str(parent) for parent in path.parents if not parent.stat().st_mode & 0o001]
    if closed:
        yield Finding(
            "interpreter", "bad", f"{path} cannot be run by other users: {closed[-1]} is closed to them"
        )
    else:
        yield Finding("interpreter", "good", str(path))


def _cgroups() -> Iterator[Finding]:
    mount = isolation.find_v2()
    if mount is None:
        yield Finding("cgroups", "note", "no cgroup v2 mount: processes are tracked by ancestry alone")
    elif not os.access(mount, os.W_OK):
        yield Finding("cgroups", "note", f"{mount} is not writable by this user: tracked by ancestry alone")
    else:
        yield Finding("cgroups", "good", f"v2 at {mount}")


def _gpus() -> Iterator[Finding]:
    uuids = find_real_gpus()
    if uuids:
        yield Finding("GPUs", "good", f"{len(uuids)} found by NVML")
    else:
        yield Finding("GPUs", "note", "NVML finds none: an embedded cluster simulates them, and says so")


def _docker() -> Iterator[Finding]:
    """In a process of its own: the SDK stays out of every long-lived one."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", DOCKER_PROGRAM],
            capture_output=True,
            text=True,
            timeout=DOCKER_TIMEOUT,
            check=False,
        )
        version = done.stdout.strip()
    except subprocess.TimeoutExpired:
        version = ""
    if version:
        yield Finding("Docker", "good", f"Engine {version}")
    else:
        yield Finding("Docker", "note", "no Docker Engine answers: container jobs cannot run on this machine")
