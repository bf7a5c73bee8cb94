"""What one event changes: rows to write in a transaction, and what follows its commit.

Handlers change the picture at once and note here what the database and the agents have to learn. Nothing is sent
before it is durable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from hpcmesos import wire
from hpcmesos.config import MasterSettings
from hpcmesos.master import timetable
from hpcmesos.master.alarms import Alarms
from hpcmesos.master.cluster import Attempt, Cluster, Node
from hpcmesos.model import GpuState, JobState
from hpcmesos.queue.accounting import Entry
from hpcmesos.queue.leader_store import LeaderTransaction
from hpcmesos.queue.reads import Reads
from hpcmesos.queue.records import (
    AttemptKey,
    AttemptRecord,
    Ending,
    JobKey,
    JobRecord,
    Move,
    NodeRecord,
    QueueRecord,
    Release,
)


class Effects(msgspec.Struct, gc=False):
    """Of one handler, in the order in which the database wants them."""

    nodes: list[NodeRecord] = []
    up: dict[str, bool] = {}
    offline: dict[str, tuple[bool, str | None]] = {}
    gone: set[str] = set()
    endings: dict[AttemptKey, Ending] = {}
    finished: list[AttemptRecord] = []
    releases: list[Release] = []
    moves: list[Move] = []
    tallies: dict[int, tuple[int, int]] = {}  # of arrays: elements that ended well, or not
    gpus: dict[str, tuple[GpuState, str]] = {}
    past_id: int = 0  # a job's number that is in use somewhere; new ones have to be higher
    messages: list[tuple[str, wire.ToAgent]] = []
    recheck: set[int] = set()  # jobs whose dependents are to be judged when this is committed
    accounting: list[Entry] = []
    queues: dict[str, QueueRecord | None] = {}  # None: deleted
    server: dict[str, str] | None = None  # all attributes of the server; None: unchanged
    documents: dict[str, Mapping[str, Any]] = {}  # by name, see queue/documents.py
    audit: list[tuple[str, Mapping[str, Any]]] = []  # events about no job
    schedules: list[tuple[str, Mapping[str, Any]]] = []  # users' wishes about theirs
    via: str = ""  # how the user came at whose wish all this happens; its events say so

    def __bool__(self) -> bool:
        """Whether there is anything to write."""
        return any(getattr(self, name) for name in _WRITTEN)

    def add(self, other: Effects) -> None:
        """Those of a later handler, to be written together with these."""
        for name in _LISTS:
            if more := getattr(other, name):
                getattr(self, name).extend(more)
        for name in _MAPS:
            if more := getattr(other, name):
                getattr(self, name).update(more)
        for seq, counts in other.tallies.items():
            self.tally(seq, *counts)
        if other.server is not None:
            self.server = other.server
        self.past_id = max(self.past_id, other.past_id)

    def tally(self, seq: int, succeeded: int, failed: int) -> None:
        before = self.tallies.get(seq, (0, 0))
        self.tallies[seq] = before[0] + succeeded, before[1] + failed

    def write(self, transaction: LeaderTransaction) -> Outcome:
        """Everything into the database."""
        outcome = Outcome()
        for node in self.nodes:
            outcome.refused[node.name] = transaction.upsert_node(node)
        for name, up in self.up.items():
            transaction.set_node_up(name, up)
        for name, (offline, note) in self.offline.items():
            transaction.set_node_offline(name, offline, note)
        for name in self.gone:
            transaction.set_node_gone(name)
        if self.endings:
            transaction.set_endings(self.endings)
        if self.finished:
            transaction.finish_attempts(self.finished)
        if self.releases:
            transaction.release_shares(self.releases)
        if self.moves:
            moved = transaction.move_jobs(self.moves)
            outcome.outrun = {move.key for move in self.moves} - moved
        if self.tallies:
            transaction.tally(self.tallies)
        if self.gpus:
            states = {uuid: state for uuid, (state, _) in self.gpus.items()}
            transaction.set_gpu_states(states, {uuid: note for uuid, (_, note) in self.gpus.items()})
        self._write_objects(transaction)
        return outcome

    def _write_objects(self, transaction: LeaderTransaction) -> None:
        for name, queue in self.queues.items():
            if queue is None:
                transaction.delete_queue(name)
            else:
                transaction.put_queue(queue)
        if self.server is not None:
            transaction.put_server(self.server)
        for name, value in self.documents.items():
            transaction.put_document(name, value)
        if self.past_id:
            transaction.skip_ids(self.past_id)
        for user, wish in self.schedules:
            timetable.on_wish(transaction, user, wish)
        if self.audit:
            transaction.tell(self.audit)


_LISTS = ("nodes", "finished", "releases", "moves", "messages", "accounting", "audit", "schedules")
_MAPS = ("documents", "up", "offline", "gone", "endings", "gpus", "recheck", "queues")
_WRITTEN = (
    *("finished", "releases", "moves", "tallies", "nodes", "up", "offline", "gone", "endings", "gpus"),
    *("audit", "documents", "schedules", "past_id"),
)


@dataclass(slots=True)
class Outcome:
    """Where the database did not follow the picture."""

    refused: dict[str, tuple[str, ...]] = field(default_factory=dict)  # GPUs that another node has
    outrun: set[JobKey] = field(default_factory=set)  # jobs that were not in the state that we thought


class Desk:
    """What handlers work on; ``effects`` are those of the handler that runs now."""

    def __init__(self, cluster: Cluster, settings: MasterSettings, reader: Reads, alarms: Alarms) -> None:
        self.cluster = cluster
        self.settings = settings
        self.reader = reader
        self.alarms = alarms
        self.effects = Effects()
        self.clock = 0.0  # epoch seconds of the database minus our monotonic clock

    @property
    def now(self) -> datetime:
        """The database's clock."""
        return self.alarms.wall(self.clock)

    def move(
        self,
        job: JobRecord,
        target: JobState,
        event: str,
        payload: Mapping[str, Any] | None = None,
        /,
        **changes: Any,
    ) -> JobRecord:
        """The job in its new state, here and by the commit of this handler."""
        self.effects.moves.append(
            Move(
                seq=job.seq,
                index=job.index,
                source=job.state,
                target=target,
                event=event,
                payload=self._signed(payload or {}),
                changes=changes,
            )
        )
        moved = replace(job, state=target, **changes)
        self.cluster.put(moved)
        if target in (JobState.RUNNING, JobState.COMPLETE):
            self.effects.recheck.add(job.seq)
        return moved

    def tell(self, event: str, payload: Mapping[str, Any]) -> None:
        """An event that is about no job."""
        self.effects.audit.append((event, self._signed(payload)))

    def _signed(self, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**payload, "via": self.effects.via} if self.effects.via else payload

    def tally(self, seq: int, succeeded: int, failed: int) -> None:
        """So many more elements of an array are complete."""
        self.effects.tally(seq, succeeded, failed)
        self.cluster.tally(seq, succeeded, failed)

    def send(self, node: str, message: wire.ToAgent) -> None:
        self.effects.messages.append((node, message))

    def release(self, attempt: Attempt, node: str) -> None:
        """A node's part of an attempt is over."""
        self.cluster.usage.release(attempt, attempt.shares[node], self.now.timestamp())
        attempt.released = self.alarms.clock()
        states = self.cluster.release(attempt, node)
        common = set(states.values())
        state = common.pop() if len(common) == 1 else GpuState.CLEANING
        self.effects.releases.append(Release(attempt=attempt.key, node=node, gpu_state=state))
        self.effects.gpus.update({u: (s, "") for u, s in states.items() if s is not state})

    def set_gpu(self, node: Node, uuid: str, state: GpuState, note: str) -> None:
        self.cluster.set_gpu(node, uuid, state, note)
        self.effects.gpus[uuid] = (state, note)
