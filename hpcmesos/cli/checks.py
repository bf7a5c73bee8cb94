"""What ``hpcmesos doctor`` looks at. Each check is a function that yields findings; none changes anything."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcmesos.agent import isolation
from hpcmesos.api_schema import HealthReply, NodeStatus
from hpcmesos.cli.real_gpus import find_real_gpus
from hpcmesos.client import Client
from hpcmesos.errors import HpcmesosError, Unauthorized

_SHORT = 400.0  # days; certificates of nodes live up to a year of an authority's life
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
    """Every check in its turn; a cluster that ``connect`` does not reach is a finding."""
    yield from _cluster(connect)
    yield from _interpreter()
    yield from _cgroups()
    yield from _gpus()
    yield from _docker()


def _cluster(connect: Callable[[], Client]) -> Iterator[Finding]:
    try:
        client = connect()
        leader, nodes, health = client.leader(), client.nodes(), client.health()
    except HpcmesosError as error:
        yield Finding("master", "bad", str(error))
        return
    if leader.address is None:
        yield Finding(
            "leader", "bad", "nobody leads: is a master's leader candidate able to reach PostgreSQL?"
        )
    else:
        yield Finding("leader", "good", f"term {leader.term} at {leader.address}")
    yield _nodes(nodes)
    yield from _authorities(client)
    for fault in health.plugins:
        yield Finding("scheduler", "bad", fault)
    yield from _database(health)


def _nodes(nodes: Sequence[NodeStatus]) -> Finding:
    if not nodes:
        text = "no node has joined yet: hpcmesos token create --join, then hpcmesos agent"
        return Finding("nodes", "note", text)
    down = [node.name for node in nodes if node.state in ("down", "gone")]
    kept = [node.name for node in nodes if node.state in ("draining", "offline")]
    if not down and not kept:
        return Finding("nodes", "good", f"{len(nodes)} up")
    absent = [f"{what}: {', '.join(names)}" for what, names in (("not up", down), ("offline", kept)) if names]
    text = "; ".join([f"{len(nodes) - len(down) - len(kept)} in service", *absent])
    return Finding("nodes", "note", f"{text}; pbsnodes -l -n says why")


def _authorities(client: Client) -> Iterator[Finding]:
    try:
        found = client.authorities()
    except Unauthorized:
        return  # operators see them
    signing = next(one for one in found if one.state == "signs")
    days = (signing.expires_at - time.time()) / 86400
    if len(found) > 1:
        waits = ", ".join(sorted({name for one in found for name in one.lacking})) or "nobody"
        yield Finding("authority", "note", f"is being replaced; waits for {waits}: hpcmesos certificate list")
    elif days < _SHORT:
        yield Finding(
            "authority",
            "bad",
            f"the certificate authority ends in {days:.0f} days: hpcmesos certificate rotate-ca",
        )
    else:
        yield Finding("authority", "good", f"{signing.fingerprint[:16]}, good for {days:.0f} days")


def _database(health: HealthReply) -> Iterator[Finding]:
    """What a crash and a failover of PostgreSQL may cost."""
    if not health.fsync or health.synchronous_commit == "off":
        setting = "fsync" if not health.fsync else "synchronous_commit"
        yield Finding(
            "database", "bad", f"{setting} = off: a crash of PostgreSQL may lose accepted jobs; set it on"
        )
    elif not health.standbys:
        yield Finding(
            "database",
            "note",
            "no synchronous standby: a failover may lose the last jobs (docs/high-availability.md)",
        )
    elif health.synchronous_commit == "local":
        yield Finding("database", "bad", "synchronous_commit = local: no standby is waited for; set it on")
    else:
        yield Finding(
            "database", "good", f"waits for standby {health.standbys}; on timeline {health.timeline}"
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
    found = find_real_gpus()
    if found.trouble:
        yield Finding("GPUs", "bad", f"{len(found.uuids)} found by NVML; {found.trouble}")
    elif found.uuids:
        yield Finding("GPUs", "good", f"{len(found.uuids)} found by NVML")
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
