"""Nodes that are away: what an attempt there waits for, and what ends the waiting.

By default for nothing but the node: it comes back and reports, or comes back with a new boot id. Besides, an operator
may say that it is gone, the site's fence may confirm that it is off, and attempts of queues with ``silence=fence:T``
are ended by the node's own shepherd T seconds after it heard a leader last: they are given up a margin later.
"""

from __future__ import annotations

import logging
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial

from msgspec import structs

from hpcmesos.master.cluster import Attempt, Node
from hpcmesos.master.effects import Desk
from hpcmesos.master.events import Event, Fenced
from hpcmesos.master.gangs import Gangs

log = logging.getLogger(__name__)

MARGIN = 20.0
"""Seconds beyond T: the shepherd's look at its clock, the end of the attempt's processes, clocks that drift."""
FENCE_TIMEOUT = 60.0
"""Seconds that the site's fence command may take."""
FENCE_AGAIN = 60.0
"""Seconds until it is asked again about a node that it could not confirm to be off."""


class Absence:
    """``fence``: asks the site's fence about a node that is away since then; its answer comes as an event. None: there
    is no fence.
    """

    def __init__(self, desk: Desk, gangs: Gangs, fence: Callable[[str, float], None] | None) -> None:
        self.desk = desk
        self.gangs = gangs
        self._fence = fence

    def begins(self, name: str) -> None:
        """The link to the node is lost, or this leader has never had one."""
        node = self.desk.cluster.nodes[name]
        node.away_since = self.desk.alarms.clock()
        self.desk.alarms.set(
            self.desk.settings.node_silence, partial(self._still_down, name, node.away_since)
        )
        limits = {attempt.silence for attempt in self._attempts(name) if attempt.silence is not None}
        for limit in limits:
            self.desk.alarms.set(limit + MARGIN, partial(self._over, name, limit, node.away_since))

    def watch_all(self) -> None:
        """After a load: no node is linked."""
        for name, node in self.desk.cluster.nodes.items():
            if node.link is None and (node.record.up or any(self._attempts(name))):
                self.begins(name)

    def gone(self, name: str, why: str) -> None:
        """Somebody vouches that the node is off: nothing of its attempts runs there."""
        node = self.desk.cluster.nodes[name]
        if node.link is not None:
            log.warning("node gone by wish, but linked: left alone node=%s", name)
            return
        node.record = structs.replace(node.record, gone=True)
        self.desk.effects.gone.add(name)
        for attempt in self._attempts(name):
            self.gangs.part_lost(attempt, name, why)

    def on_fenced(self, event: Fenced) -> None:
        """The answer of the site's fence."""
        if self._away(event.node, event.since) is None:  # it has been back, and may have other work now
            log.warning("the fence answered about an earlier absence node=%s", event.node)
            return
        payload = {"node": event.node, "confirmed": event.confirmed, "said": event.said[:200]}
        self.desk.tell("node fenced", payload)
        if event.confirmed:
            log.warning("node fenced node=%s", event.node)
            self.gone(event.node, "the site's fence confirms that the node is off")
        else:
            log.error("the fence does not confirm that a node is off node=%s said=%r", event.node, event.said)
            self.desk.alarms.set(FENCE_AGAIN, partial(self._ask_fence, event.node, event.since))

    def _still_down(self, name: str, since: float) -> None:
        """Only then a node counts as down for everybody: an agent that restarts is back in a moment."""
        node = self._away(name, since)
        if node is None:
            return
        if node.record.up:
            node.record = structs.replace(node.record, up=False)
            self.desk.effects.up[name] = False
            log.warning("node down node=%s", name)
        self._ask_fence(name, since)

    def _ask_fence(self, name: str, since: float) -> None:
        if self._fence is not None and self._away(name, since) and any(self._attempts(name)):
            self._fence(name, since)

    def _over(self, name: str, limit: int, since: float) -> None:
        """The node has been away for ``limit`` seconds and the margin, if it is still the same absence."""
        if self._away(name, since) is None:
            return
        for attempt in list(self._attempts(name)):
            if attempt.silence == limit:
                self.gangs.part_lost(attempt, name, f"silent for {limit} s, its shepherd has ended it")

    def _away(self, name: str, since: float) -> Node | None:
        """The node, if it is away and has not been back since then."""
        node = self.desk.cluster.nodes.get(name)
        return node if node is not None and node.link is None and node.away_since == since else None

    def _attempts(self, name: str) -> Iterator[Attempt]:
        return (attempt for attempt in list(self.desk.cluster.attempts.values()) if name in attempt.shares)


class Fence:
    """The site's command, run with a node's name: exit code 0 says that the node is off."""

    def __init__(self, command: str, sink: Callable[[Event], None], timeout: float = FENCE_TIMEOUT) -> None:
        self._command = command
        self._sink = sink
        self._timeout = timeout

    def ask(self, node: str, since: float) -> None:
        """In a thread of its own: the command may take its time. ``since``: which absence; for the answer."""
        threading.Thread(target=self._run, args=(node, since), name=f"fence {node}", daemon=True).start()

    def _run(self, node: str, since: float) -> None:
        log.warning("asking the fence command=%s node=%s", self._command, node)
        try:
            done = subprocess.run(
                [self._command, node],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._timeout,
                check=False,
            )
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            self._sink(Fenced(node, since, done.returncode == 0, said))
        except (OSError, subprocess.TimeoutExpired) as error:
            self._sink(Fenced(node, since, False, str(error)))
