"""The clusters that chaos is let loose on: hosts made of namespaces as root, nodes on the loopback otherwise."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg

from hpcmesos import pidfile
from hpcmesos.queue import postgres
from tests.chaos import plan
from tests.e2e import namespace_kit
from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.e2e.namespace_cluster import NamespaceCluster

MASTERS = 2
REPAIR = 60.0
"""Seconds within which a daemon that was started again has to serve."""


def kinds_here() -> tuple[str, ...]:
    """The faults that can be done on this machine."""
    return Loopback.kinds if namespace_kit.why_not() else Namespaces.kinds


class Namespaces(NamespaceCluster):
    """Every fault is possible."""

    kinds = (*plan.CONTROL, *plan.NODES, *plan.LINKS)

    def __init__(self, nodes: Sequence[str], gpus: int, cpus: int) -> None:
        super().__init__(nodes, gpus, cpus, MASTERS)

    def start_agent(self, node: str) -> None:
        self._spawn(self.hosts[node], "agent", self.agents[node].state / "agent.toml")

    def start_master(self, name: str) -> None:
        self._spawn(self.hosts[self.heads[name]], "master", self.state / name / "master.toml")

    def start_postgres(self) -> None:
        postgres.start(self.state / "postgres", self.described.sockets / "pg")

    def cut(self, node: str, other: str | None) -> None:
        self.hosts.cut(node, other)

    def mend(self, node: str, other: str | None) -> None:
        self.hosts.mend(node, other)


class Loopback(LiveCluster):
    """Without root: there are no links to cut."""

    kinds = (*plan.CONTROL, *plan.NODES)

    def __init__(self, nodes: Sequence[str], gpus: int, cpus: int) -> None:
        super().__init__(len(nodes), gpus * len(nodes), ("--cpus", str(cpus), "--masters", str(MASTERS)))
        self.nodes = list(nodes)

    def start_agent(self, node: str) -> None:
        self._restore()

    def start_master(self, name: str) -> None:
        self._restore()

    def start_postgres(self) -> None:
        self._restore()

    def _restore(self) -> None:
        """``up`` starts just what is missing; it may be told of other faults meanwhile."""
        deadline = time.monotonic() + REPAIR
        while self.hpcmesos("up", *self.size, "--state", str(self.state), "--detach", check=False).returncode:
            assert time.monotonic() < deadline, "hpcmesos up does not restore the cluster"

    def cut(self, node: str, other: str | None) -> None:
        raise NotImplementedError("loopback nodes have no links")

    def mend(self, node: str, other: str | None) -> None:
        raise NotImplementedError("loopback nodes have no links")


@contextlib.contextmanager
def running(nodes: int, gpus: int, cpus: int) -> Iterator[Namespaces | Loopback]:
    """A cluster of ``nodes`` nodes that is up, and nothing of it afterwards."""
    names = [f"node{number}" for number in range(1, nodes + 1)]
    if namespace_kit.why_not() is None:
        with Namespaces(names, gpus, cpus) as cluster:
            yield cluster
        return
    loopback = Loopback(names, gpus, cpus)
    try:
        loopback.up()
        yield loopback
    finally:
        if (loopback.state / "cluster.json").exists():
            loopback.down()
        loopback.remove()


def leader_pid(cluster: LiveCluster) -> int | None:
    """The process that leads, as the database has it; None: nobody, or PostgreSQL does not answer."""
    try:
        with psycopg.connect(cluster.database_url, connect_timeout=2) as connection:
            row = connection.execute(
                "SELECT holder FROM leadership WHERE expires_at > clock_timestamp()"
            ).fetchone()
    except psycopg.Error:
        return None
    pid = int(row[0].rpartition(":")[2]) if row and row[0] else 0
    return pid if pid and pidfile.start_time(pid) is not None else None


def shepherd_pid(cluster: LiveCluster, node: str) -> int | None:
    return _living(cluster.state / "agents" / node / "shepherd.pid")


def agent_pid(cluster: LiveCluster, node: str) -> int | None:
    return _living(cluster.state / "agents" / node / "agent.pid")


def master_pid(cluster: LiveCluster, name: str) -> int | None:
    return _living(cluster.state / name / "master.pid")


def candidates(cluster: LiveCluster) -> list[int]:
    """The processes that lead or wait to."""
    masters = [master_pid(cluster, name) for name in cluster.described.master_names]
    found = []
    for pid in filter(None, masters):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if b"hpcmesos.master.leader" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
    return found


def _living(path: Path) -> int | None:
    daemon = pidfile.living(str(path))
    return daemon.pid if daemon else None


def postgres_pid(cluster: LiveCluster) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        pid = int((cluster.state / "postgres" / "postmaster.pid").read_text().split()[0])
        return pid if pidfile.start_time(pid) is not None else None
    return None


def all_well(cluster: Namespaces | Loopback) -> str:
    """Why not everything runs; empty: a leader leads and every node is up."""
    if leader_pid(cluster) is None:
        return "nobody leads"
    try:
        with psycopg.connect(cluster.database_url, connect_timeout=2) as connection:
            up = {row[0] for row in connection.execute("SELECT name FROM nodes WHERE up").fetchall()}
    except psycopg.Error as error:
        return str(error)
    missing = sorted(set(cluster.nodes) - up)
    return f"down: {' '.join(missing)}" if missing else ""


def wait_well(cluster: Namespaces | Loopback, timeout: float = REPAIR) -> None:
    wait_until(lambda: not all_well(cluster), f"all well: {all_well(cluster)}", timeout, 0.2)
