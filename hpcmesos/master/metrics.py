"""Figures for Prometheus. Each API process has a registry of its own and says which it is in the label ``process``.

The cluster's figures are read when they are asked for: nodes and GPUs from the database, the rest from the leader.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter as Tally
from collections.abc import Iterator, Mapping

from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hpcmesos.errors import HpcmesosError
from hpcmesos.master.services.facts import node_states
from hpcmesos.master.services.site import Site

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_NOT_A_NAME = re.compile(r"[^a-zA-Z0-9_]")


class Metrics:
    """One API process' counters, and the way to the cluster's figures."""

    def __init__(self, site: Site) -> None:
        self.registry = CollectorRegistry()
        process = str(os.getpid())
        requests = Counter(
            "hpcmesos_api_requests",
            "Requests answered",
            ["process", "route", "status"],
            registry=self.registry,
        )
        seconds = Histogram(
            "hpcmesos_api_seconds",
            "Seconds from request to answer",
            ["process", "route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._requests, self._seconds, self._process = requests, seconds, process
        self.registry.register(_ClusterFigures(site))

    def observe(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(self._process, route, str(status)).inc()
        self._seconds.labels(self._process, route).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)


def counting(app: ASGIApp, metrics: Metrics) -> ASGIApp:
    """``app`` with every request counted under its route, not its path."""

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        begun, status = time.perf_counter(), 500

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await app(scope, receive, note_status)
        finally:
            route = str(scope.get("path_template") or "unknown")
            metrics.observe(route, status, time.perf_counter() - begun)

    return counted


class _ClusterFigures(Collector):
    def __init__(self, site: Site) -> None:
        self._site = site

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        try:
            yield from self._database()
        except HpcmesosError:
            yield GaugeMetricFamily("hpcmesos_database_up", "Whether PostgreSQL answers", 0)

    def _database(self) -> Iterator[Metric]:
        site = self._site
        leader = site.store.leader()
        yield GaugeMetricFamily("hpcmesos_database_up", "Whether PostgreSQL answers", 1)
        yield GaugeMetricFamily("hpcmesos_leader_term", "Term of the leader", leader.term)
        yield GaugeMetricFamily("hpcmesos_leader_live", "Whether there is a leader", int(leader.live))
        records = site.store.nodes()
        nodes = GaugeMetricFamily("hpcmesos_nodes", "Nodes by state", labels=["state"])
        for state, number in Tally(",".join(node_states(node)) for node in records).items():
            nodes.add_metric([state], number)
        yield nodes
        gpus = GaugeMetricFamily("hpcmesos_gpus", "GPUs by state", labels=["state"])
        for state, number in Tally(gpu.state.value for node in records for gpu in node.gpus).items():
            gpus.add_metric([state], number)
        yield gpus
        if leader.live and site.lines is not None:
            yield from _told(site.lines.metrics(leader.address))


def _told(figures: Mapping[str, float]) -> Iterator[Metric]:
    """What the leader tells; ``NAME;NODE;GPU`` are figures of one GPU, as NVML gives them."""
    families: dict[str, GaugeMetricFamily] = {}
    for key, value in sorted(figures.items()):
        name, *labels = key.split(";")
        full = f"hpcmesos_{_NOT_A_NAME.sub('_', name)}"
        if not labels:
            yield GaugeMetricFamily(full, "Told by the leader", value)
            continue
        family = families.setdefault(
            full, GaugeMetricFamily(full, "Of one GPU, by NVML", labels=["node", "gpu"])
        )
        family.add_metric(labels, value)
    yield from families.values()
