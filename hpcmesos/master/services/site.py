"""What every service works with: settings, the store, the leader's alarm clock, and what is known of the cluster."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Generic, TypeVar
from zoneinfo import ZoneInfo

from hpcmesos.config import MasterSettings
from hpcmesos.errors import MasterUnreachable
from hpcmesos.gang.placing import can_ever_fit
from hpcmesos.gang.snapshot import GpuView, NodeView
from hpcmesos.master.auth import Caller
from hpcmesos.master.cycle import switch
from hpcmesos.master.links_client import Lines
from hpcmesos.master.log_store import LogStore
from hpcmesos.master.oidc import Provider
from hpcmesos.master.rates import Rates
from hpcmesos.master.services.wishes import Notifier
from hpcmesos.model import GpuState, GpuUuid, NodeName, PendingReason, Request
from hpcmesos.queue.records import LeaderRecord, NodeRecord, QueueRecord
from hpcmesos.queue.store import Store

T = TypeVar("T")

FRESH = 1.0
"""Seconds that what is known of the cluster is used again."""

_MIB = 1024 * 1024
_LEADER_KEPT = 0.05  # the same for who leads
_GPUS_KEPT = 5.0  # the same for what GPUs show, which comes each 10 s
GpuFigures = dict[str, dict[str, float]]


class Remembered(Generic[T]):
    """The last result of ``load``, for a while (seconds); thread-safe."""

    def __init__(self, load: Callable[[], T], keep: float = FRESH) -> None:
        self._load = load
        self._keep = keep
        self._lock = threading.Lock()
        self._found: tuple[T, float] | None = None  # and when the look for it began: it may be as old as that

    def recent(self) -> T:
        """At most ``keep`` seconds older than the question: of many who ask at once, one looks."""
        oldest = time.monotonic() - self._keep
        found = self._found
        if found is None or found[1] <= oldest:
            with self._lock:
                found = self._found
                if found is None or found[1] <= oldest:
                    return self._look()
        return found[0]

    def fresh(self) -> T:
        with self._lock:
            return self._look()

    def _look(self) -> T:
        began = time.monotonic()
        value = self._load()
        self._found = value, began
        return value


class KnownNodes:
    """The nodes as one look found them, and what could never run on them."""

    def __init__(self, nodes: tuple[NodeView, ...]) -> None:
        self.nodes = nodes
        self._verdicts: dict[Request, PendingReason | None] = {}

    def why_never(self, request: Request) -> PendingReason | None:
        """Why the nodes, all up and empty, could not hold the request; None: they could, or none is known yet."""
        if request not in self._verdicts:
            self._verdicts[request] = can_ever_fit(request, self.nodes)
        return self._verdicts[request]


@dataclass(frozen=True, slots=True)
class Site:
    """One API process' tools. ``tls``: with this master's certificate, towards the leader and shepherds."""

    settings: MasterSettings
    store: Store
    notifier: Notifier
    nodes: Remembered[KnownNodes]
    queues: Remembered[dict[str, QueueRecord]]
    server: Remembered[dict[str, str]]  # its attributes that are set
    revoked: Remembered[frozenset[str]]  # serials of nodes' certificates
    leader: Remembered[LeaderRecord]
    gpus: Remembered[
        GpuFigures
    ]  # what they show, by UUID, as the leader has heard it; empty when nobody leads
    gateways: Remembered[frozenset[str]]  # names of login hosts that have one
    logs: LogStore
    tls: Callable[[], ssl.SSLContext] | None = None
    lines: Lines | None = None  # to the leader
    ca_state: Path | None = None  # the directory that holds ``ca/``
    provider: Provider | None = None  # of JWTs
    rates: Rates = field(default_factory=lambda: Rates(0.0, 0.0))
    supervisor: int | None = None  # pid of the master's first process

    @classmethod
    def open(
        cls, settings: MasterSettings, store: Store, tls: Callable[[], ssl.SSLContext] | None = None
    ) -> Site:
        """``tls`` None: nothing is asked of the leader. What it starts, `close` ends."""
        leader = Remembered(store.leader, _LEADER_KEPT)
        lines = None if tls is None else Lines(tls)
        return cls(
            settings,
            store,
            Notifier(store),
            Remembered(lambda: KnownNodes(tuple(node_view(node) for node in store.nodes()))),
            Remembered(lambda: {queue.name: queue for queue in store.queues()}),
            Remembered(store.server),
            Remembered(store.revoked),
            leader,
            Remembered(lambda: _gpus(leader.recent(), lines), _GPUS_KEPT),
            Remembered(store.deliveries.gateways),
            _log_store(settings, store),
            tls,
            lines,
            settings.state,
            _provider(settings),
            # Connections spread over the API processes: each of them allows its part.
            Rates(
                settings.submit_rate / settings.api_processes, settings.submit_burst / settings.api_processes
            ),
        )

    @property
    def default_queue(self) -> str:
        """Where jobs go that name no queue."""
        return self.server.recent().get("default_queue", self.settings.default_queue)

    def wish(
        self,
        caller: Caller,
        kind: str,
        seq: int | None,
        payload: Mapping[str, Any],
        part: str | None = None,
    ) -> int:
        """Puts a wish of the caller into the inbox, with how he came; poke the notifier afterwards.

        ``part``: which of the things that the request asks for this is; however often the request comes under its
        key, each is wished once. None: done twice it is as done once. Raises KeyReused: nothing is wished.
        """
        user, key = caller.user or "master", None
        if caller.key is not None and part is not None:
            self.store.claim(user, caller.key)
            key = caller.key.of(part)
        return self.store.wish(kind, seq, user, payload, caller.via, key)

    def wished(self, caller: Caller, part: str) -> int | None:
        """The wish that this request made when it came before, whatever has become of its job since; None: none."""
        return None if caller.key is None else self.store.wished(caller.user or "master", caller.key.of(part))

    def close(self) -> None:
        """Ends connections to the leader and to the database."""
        self.notifier.close()
        if self.lines is not None:
            self.lines.close()
        self.store.close()


def _gpus(leader: LeaderRecord, lines: Lines | None) -> GpuFigures:
    if leader.live and lines is not None:
        with suppress(MasterUnreachable):
            return lines.gpus(leader.address)
    return {}


def _log_store(settings: MasterSettings, store: Store) -> LogStore:
    directory = Path(settings.log_store) if settings.log_store else settings.state / "logs"
    return LogStore(
        directory,
        settings.log_store_mib * _MIB,
        settings.log_stream_mib * _MIB,
        store.deliveries.drop,
        store.owners,
    )


def _provider(settings: MasterSettings) -> Provider | None:
    """The site's OpenID provider. Raises ConfigError."""
    if not settings.oidc_issuer:
        return None
    return Provider(
        settings.oidc_issuer,
        settings.oidc_audience,
        user_claim=settings.oidc_user_claim,
        groups_claim=settings.oidc_groups_claim,
        project_claim=settings.oidc_project_claim,
        keys_url=settings.oidc_keys_url,
    )


def server_attributes(site: Site) -> dict[str, str]:
    """What holds of the server: the settings' values where qmgr has set nothing else."""
    settings = site.settings
    defaults = {
        "scheduling": "True",
        "default_queue": settings.default_queue,
        "keep_completed": str(int(settings.keep_completed)),
        "kill_delay": str(int(settings.kill_delay)),
    }
    return defaults | dict(sorted(site.server.fresh().items()))


def kept_for(site: Site, queue: str) -> timedelta:
    """How long plain qstat shows a finished job: the queue's word, else the server's, else the settings'."""
    known = site.queues.recent().get(queue)
    text = known.attributes.get("keep_completed") if known is not None else None
    text = text or site.server.recent().get("keep_completed")
    return timedelta(seconds=float(text) if text else site.settings.keep_completed)


def node_view(node: NodeRecord) -> NodeView:
    """A node as the pure scheduler sees it."""
    gpus = sorted(node.gpus, key=lambda gpu: gpu.index)
    return NodeView(
        name=NodeName(node.name),
        up=node.up and not node.offline,
        cpus=node.cpus,
        cpus_free=node.cpus - node.cpus_used,
        mem=node.mem,
        mem_free=node.mem - node.mem_used,
        gpus=tuple(GpuView(GpuUuid(g.uuid), g.index, g.state is GpuState.FREE, g.numa) for g in gpus),
        features=frozenset(node.features),
        switch=switch(node.features),
        ends_at=None if node.ends_at is None else node.ends_at.timestamp(),
    )


def client_zone(environ_tz: str | None) -> tzinfo:
    """The client's zone by its TZ; this host's when it has none that we know."""
    try:
        if environ_tz:
            return ZoneInfo(environ_tz.lstrip(":"))
    except (KeyError, ValueError, OSError):
        pass
    return datetime.now(UTC).astimezone().tzinfo or UTC
