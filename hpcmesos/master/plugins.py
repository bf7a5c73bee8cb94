"""The site's plug-ins, as the planner has them: what they last told, and whether they are well.

The planner never waits for one. It asks when there are new classes or the answer is old, and decides with what it has;
an answer is an event like others. While one is at fault the built-in policy holds, and it is asked again after a pause.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hpcmesos.gang import classes
from hpcmesos.gang.order import Columns
from hpcmesos.gang.policy import Policy
from hpcmesos.gang.snapshot import Plugged, Snapshot
from hpcmesos.gang.tables import JobTable, NodeTable
from hpcmesos.master.effects import Desk
from hpcmesos.master.events import Event, PluginTold
from hpcmesos.master.plugin_child import Ask
from hpcmesos.master.plugin_host import Keys, PluginFault, PluginHost
from hpcmesos.plugin import GROUPS, JobClass
from hpcmesos.queue import documents

log = logging.getLogger(__name__)

REFRESH = 5.0
"""Seconds after which an answer is asked for anew, when something is decided."""

_PAUSE, _LONGEST_PAUSE = 5.0, 300.0
_MOST_ENTRIES = 1_000_000  # keys in one answer
_MOST_KEPT = 4 * classes.MOST  # classes; more, and those that nobody asked about lately are forgotten
_UNTOLD = object()


@dataclass(slots=True)
class _Plugin:
    host: PluginHost
    keys: dict[JobClass, Any]
    fault: str = ""
    busy: bool = False
    asked: float = float("-inf")
    pause: float = _PAUSE


class Plugins:
    """Belongs to the planner's thread."""

    def __init__(self, desk: Desk, sink: Callable[[Event], None]) -> None:
        self._desk = desk
        self._sink = sink
        self._plugins: dict[str, _Plugin] = {}
        desk.alarms.set(0.0, self._note)

    def close(self) -> None:
        for plugin in self._plugins.values():
            plugin.host.close()
        self._plugins.clear()

    def follow(self) -> None:
        """The server's attributes say which ones there are; called in every turn."""
        attributes = self._desk.cluster.attributes
        for kind in GROUPS:
            wanted = attributes.get(f"{kind}_plugin", "")
            plugin = self._plugins.get(kind)
            if plugin is not None and plugin.host.name != wanted:
                self._plugins.pop(kind).host.close()
                self._desk.cluster.changed = True
                self._desk.alarms.set(0.0, self._note)
            if wanted and kind not in self._plugins:
                self._desk.cluster.changed = True
                path = self._desk.settings.state / "plugins" / f"{kind}.log"
                host = PluginHost(kind, wanted, path, self._sender(kind, wanted))
                self._plugins[kind] = _Plugin(host, {}, busy=True)
                host.ask(Ask(classes=[]))  # at once, so that a wrong name is told at once

    @property
    def told(self) -> Plugged:
        """What holds now."""
        return Plugged(**{kind: None if p.fault else p.keys for kind, p in self._plugins.items()})

    def ask(self, snapshot: Snapshot, policy: Policy, now: float) -> None:
        """Asks for what is new in the snapshot, or old; the answers come later."""
        if not self._plugins:
            return
        found = _classes(JobTable.of(snapshot.pending), snapshot, policy, now)
        for kind, plugin in self._plugins.items():
            self._ask(kind, plugin, found, NodeTable.of(snapshot.nodes), now)

    def on_told(self, told: PluginTold) -> None:
        """An answer, or what is wrong."""
        plugin = self._plugins.get(told.kind)
        if plugin is None or plugin.host.name != told.name:
            return  # it was switched off meanwhile
        plugin.busy = False
        if told.fault:
            self._failed(told.kind, plugin, told.fault)
            return
        plugin.pause = _PAUSE
        before = plugin.keys
        if (
            plugin.fault
            or not told.keys
            or any(before.get(one, _UNTOLD) != key for one, key in told.keys.items())
        ):
            self._desk.cluster.changed = True
        plugin.keys = {**before, **told.keys} if len(before) <= _MOST_KEPT else dict(told.keys)
        if plugin.fault:
            plugin.fault = ""
            log.info("plug-in is well again kind=%s name=%s", told.kind, told.name)
            self._tell("PLUGIN_OK", told.kind, told.name, "")

    def figures(self) -> dict[str, float]:
        return {f"plugin_{kind}_ok": float(not plugin.fault) for kind, plugin in self._plugins.items()}

    def _sender(self, kind: str, name: str) -> Callable[[Ask, Keys | PluginFault], None]:
        def told(question: Ask, answer: Keys | PluginFault) -> None:
            if isinstance(answer, PluginFault):
                self._sink(PluginTold(kind, name, {}, str(answer).replace("\n", " ")))
                return
            keys: Mapping[JobClass, Any]
            if kind == "rank":
                rows = (
                    dict(zip(question.nodes, row, strict=True)) for row in answer if isinstance(row, list)
                )
                keys = dict(zip(question.classes, rows, strict=True))
            else:
                keys = dict(zip(question.classes, answer, strict=True))
            self._sink(PluginTold(kind, name, keys, ""))

        return told

    def _ask(self, kind: str, plugin: _Plugin, found: list[JobClass], nodes: NodeTable, now: float) -> None:
        clock = self._desk.alarms.clock()
        wait = plugin.pause if plugin.fault else REFRESH
        new = not plugin.fault and any(one not in plugin.keys for one in found)
        if plugin.busy or not found or not (new or clock - plugin.asked >= wait):
            return
        kinds = classes.node_classes(nodes.site)[0] if kind == "rank" else []
        most = min(classes.MOST, _MOST_ENTRIES // max(1, len(kinds)))
        plugin.busy, plugin.asked = True, clock
        plugin.host.ask(Ask(classes=found[:most], nodes=kinds, now=now))

    def _failed(self, kind: str, plugin: _Plugin, fault: str) -> None:
        if not plugin.fault:
            self._desk.cluster.changed = True
        plugin.keys = {}
        before, plugin.fault = plugin.fault, fault
        plugin.pause = min(_LONGEST_PAUSE, 2 * plugin.pause) if before else _PAUSE
        if fault != before:
            log.error(
                "plug-in at fault, the built-in policy holds kind=%s name=%s: %s",
                kind,
                plugin.host.name,
                fault,
            )
            self._tell("PLUGIN_FAULT", kind, plugin.host.name, fault)

    def _tell(self, event: str, kind: str, name: str, fault: str) -> None:
        self._desk.tell(event, {"kind": kind, "plugin": name} | ({"fault": fault} if fault else {}))
        self._note()

    def _note(self) -> None:
        """What the health of the cluster says."""
        faults = {
            kind: f"{kind} plug-in {plugin.host.name}: {plugin.fault}; the built-in policy holds"
            for kind, plugin in self._plugins.items()
            if plugin.fault
        }
        self._desk.effects.documents[documents.PLUGINS] = faults


def _classes(table: JobTable, snapshot: Snapshot, policy: Policy, now: float) -> list[JobClass]:
    """The classes of what waits, those that have waited longest first, with how they stand."""
    slots = table.all_slots()
    if not len(slots):
        return []
    found, code = classes.numbered(table, slots)
    jobs = Columns(table, slots, snapshot, policy, now)
    return classes.standing(found, code, jobs.wait, jobs.overuse)
