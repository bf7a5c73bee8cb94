"""The leader's door to the database: the only code that changes states, allocations and nodes.

Every transaction is fenced: it holds the leadership row of its own term, so that an old leader cannot commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta

from hpcmesos.model import GpuState
from hpcmesos.queue.records import (
    AttemptRecord,
    InboxRow,
    JobKey,
    LeaderState,
    Move,
    NodeRecord,
    QueueRecord,
    Release,
    StartRecord,
)


class LeaderTransaction:
    """What a leader may do inside one transaction. ``now``: the database's clock at its begin."""

    now: datetime

    def drain_inbox(self, limit: int = 1000) -> list[InboxRow]:
        """Takes rows out of the inbox (gone when this transaction commits), lowest id first."""
        raise NotImplementedError

    def move_jobs(self, moves: Sequence[Move]) -> set[JobKey]:
        """The one door: changes states and fields and writes each move's event. Rows that are no longer in their
        source state are left alone; answers the jobs that moved. Several moves of one job are done in order.

        Raises IllegalTransition, before anything is written, for an edge that states.TRANSITIONS does not have.
        """
        raise NotImplementedError

    def apply_starts(self, starts: Sequence[StartRecord]) -> set[JobKey]:
        """Q -> R with attempt, shares, allocations and used counters; a gang that no longer fits is dropped whole."""
        raise NotImplementedError

    def finish_attempts(self, records: Sequence[AttemptRecord]) -> None:
        """Writes the ends of attempts. The first end stays: an attempt that has ended is left alone."""
        raise NotImplementedError

    def release_shares(self, releases: Sequence[Release]) -> None:
        """Takes shares back from their attempts; releasing twice does nothing."""
        raise NotImplementedError

    def set_gpu_states(self, states: Mapping[str, GpuState], notes: Mapping[str, str] | None = None) -> None:
        """GPU states by UUID as nodes report them. A GPU in a live allocation cannot become free or clean."""
        raise NotImplementedError

    def upsert_node(self, node: NodeRecord) -> tuple[str, ...]:
        """Registers a node with its GPUs, up; GPUs that it no longer has become lost; used counters, ``offline`` and
        ``note`` stay. Answers the UUIDs refused because another node that is up has them.
        """
        raise NotImplementedError

    def set_node_up(self, name: str, up: bool) -> None:
        """The agent's link came or went."""
        raise NotImplementedError

    def set_node_offline(self, name: str, offline: bool, note: str | None = None) -> None:
        """An operator's wish; ``note`` None: unchanged."""
        raise NotImplementedError

    def put_queue(self, queue: QueueRecord) -> None:
        """Creates or replaces a queue."""
        raise NotImplementedError


class LeaderStore:
    """``url``: of the leader's role; ``term``: from Leadership.try_acquire()."""

    def __init__(self, url: str, term: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    @contextmanager
    def transaction(self) -> Iterator[LeaderTransaction]:
        """One fenced transaction, committed at the end of the block. Raises LostLeadership when the term is over.

        Keep it short: the database ends it after 2 s, or 1 s of idleness.
        """
        raise NotImplementedError
        yield

    def load(self) -> LeaderState:
        """Everything from one snapshot; read-only and not limited to 2 s."""
        raise NotImplementedError

    def sweep(self, now: datetime, keep_completed: timedelta, limit: int = 2000) -> int:
        """Moves at most ``limit`` jobs that ended before ``now - keep_completed`` into history, with all that belongs
        to them, in one transaction; answers how many.
        """
        raise NotImplementedError

    def make_partitions(self, now: datetime, days: int = 7) -> None:
        """Makes the daily partitions of events and history from ``now``'s day to ``days`` ahead."""
        raise NotImplementedError

    def drop_partitions(self, before: datetime) -> int:
        """Drops the partitions of days that ended before; answers how many."""
        raise NotImplementedError
