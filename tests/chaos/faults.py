"""Does the faults of a plan to a cluster, repairs what does not repair itself, and writes down what was done when.

Control plane and nodes have faults at the same time, but each has one at a time: what is promised holds under any
single fault of each.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from hpcmesos import pidfile
from tests.chaos import clusters
from tests.chaos.clusters import Loopback, Namespaces
from tests.chaos.plan import CONTROL, PlannedFault
from tests.chaos.verdict import Fault
from tests.e2e.cluster_kit import wait_until

FAILED = "failed"
"""Kind of a fault that could not be done."""
_NODES_AT_ONCE = 3
_POSTGRES_ENDS = (signal.SIGQUIT, signal.SIGKILL, signal.SIGINT)  # immediate, crash, fast
Say = Callable[[str], None]


class Injector:
    """``done``: what was done, as it ended."""

    def __init__(self, cluster: Namespaces | Loopback, say: Say) -> None:
        self.done: list[Fault] = []
        self._cluster = cluster
        self._say = say
        self._control = threading.Lock()
        self._places = threading.Condition()
        self._busy: set[str] = set()
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(4)

    def start(self, fault: PlannedFault) -> None:
        """Comes back at once; the fault goes on in a thread of its own."""
        self._pool.submit(self._guarded, fault)

    def finish(self) -> None:
        """Once every fault is over and repaired."""
        self._pool.shutdown(wait=True)

    def _guarded(self, fault: PlannedFault) -> None:
        with self._place(fault) as nodes:
            began = time.time()
            try:
                what = getattr(self, f"_{fault.kind.replace('-', '_')}")(fault, *nodes)
                kind = fault.kind
            except Exception as error:
                kind, what = FAILED, f"{fault.kind} could not be done: {error!r}"
            self.done.append(Fault(kind, began, time.time(), nodes, what))
            self._say(f"{kind:<17} {time.time() - began:5.1f} s  {' '.join(nodes)} {what}")

    @contextlib.contextmanager
    def _place(self, fault: PlannedFault) -> Iterator[tuple[str, ...]]:
        """Waits for its turn, which is no part of the fault; the nodes that it is about."""
        if fault.kind in CONTROL:
            with self._control:
                yield ()
        else:
            with self._chosen(fault, 2 if fault.kind == "link-cut" else 1) as nodes:
                yield nodes

    @contextlib.contextmanager
    def _chosen(self, fault: PlannedFault, count: int) -> Iterator[tuple[str, ...]]:
        """Nodes that no other fault is at work on."""
        with self._places:
            self._places.wait_for(lambda: len(self._busy) + count <= max(count, _NODES_AT_ONCE))
            free = [name for name in self._cluster.nodes if name not in self._busy]
            groups = list(itertools.combinations(free, count))
            nodes = groups[int(fault.choice * len(groups))]
            self._busy |= set(nodes)
        try:
            yield nodes
        finally:
            with self._places:
                self._busy -= set(nodes)
                self._places.notify_all()

    # --- control plane

    def _leader_kill(self, fault: PlannedFault) -> str:
        pid = self._leader()
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        wait_until(lambda: clusters.leader_pid(self._cluster) not in (None, pid), "a new leader", 60, 0.05)
        return f"led again after {time.monotonic() - began:.1f} s"

    def _leader_stop(self, fault: PlannedFault) -> str:
        pid = self._leader()
        with _frozen(pid):
            self._pause(fault.seconds)
        self._leader()
        return f"pid {pid}"

    def _standby_kill(self, fault: PlannedFault) -> str:
        leader = self._leader()
        wait_until(lambda: len(clusters.candidates(self._cluster)) == clusters.MASTERS, "a standby", 60)
        (pid, *_) = [pid for pid in clusters.candidates(self._cluster) if pid != leader]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(clusters.candidates(self._cluster)) == clusters.MASTERS, "a new standby", 60)
        return f"pid {pid}"

    def _master_kill(self, fault: PlannedFault) -> str:
        names = self._cluster.described.master_names
        name = names[int(fault.choice * len(names))]
        pid = self._living(lambda cluster: clusters.master_pid(cluster, name))
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: pidfile.start_time(pid) is None, "the master's end", 10)
        self._pause(fault.seconds)
        self._cluster.start_master(name)
        self._living(lambda cluster: clusters.master_pid(cluster, name))
        self._leader()
        return name

    def _postgres_restart(self, fault: PlannedFault) -> str:
        pid = self._living(clusters.postgres_pid)
        number = _POSTGRES_ENDS[int(fault.choice * len(_POSTGRES_ENDS))]
        os.kill(pid, number)
        wait_until(lambda: pidfile.start_time(pid) is None, "the end of PostgreSQL", 30)
        self._pause(fault.seconds)
        self._cluster.start_postgres()
        self._leader()
        return number.name

    def _leader(self) -> int:
        return wait_until(lambda: clusters.leader_pid(self._cluster), "a leader", clusters.REPAIR, 0.1) or 0

    def _living(self, look: Callable[[Namespaces | Loopback], int | None]) -> int:
        return wait_until(lambda: look(self._cluster), look.__name__, clusters.REPAIR, 0.1) or 0

    # --- nodes

    def _agent_kill(self, fault: PlannedFault, node: str) -> str:
        pid = self._agent(node)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: pidfile.start_time(pid) is None, "the agent's end", 10)
        self._pause(fault.seconds)
        self._cluster.start_agent(node)
        self._agent(node)
        return ""

    def _agent_stop(self, fault: PlannedFault, node: str) -> str:
        with _frozen(self._agent(node)):
            self._pause(fault.seconds)
        return ""

    def _shepherd_kill(self, fault: PlannedFault, node: str) -> str:
        pid = self._living(lambda cluster: clusters.shepherd_pid(cluster, node))
        os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: clusters.shepherd_pid(self._cluster, node) not in (None, pid), "a new shepherd", 60
        )
        return ""

    def _agent(self, node: str) -> int:
        return self._living(lambda cluster: clusters.agent_pid(cluster, node))

    # --- links

    def _link_cut(self, fault: PlannedFault, node: str, other: str) -> str:
        return self._cut(fault, node, other)

    def _host_cut(self, fault: PlannedFault, node: str) -> str:
        return self._cut(fault, node, None)

    def _cut(self, fault: PlannedFault, node: str, other: str | None) -> str:
        self._cluster.cut(node, other)
        try:
            self._pause(fault.seconds)
        finally:
            self._cluster.mend(node, other)
        return ""

    def _pause(self, seconds: float) -> None:
        self._stopping.wait(seconds)


@contextlib.contextmanager
def _frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
