"""The API's door to the database: insert jobs and wishes, read everything, change nothing else.

Synchronous and thread-safe. Every method is one short transaction and may raise DatabaseUnavailable.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from hpcmesos.queue.records import (
    AttemptRecord,
    EventRecord,
    JobFilter,
    JobRecord,
    LeaderRecord,
    NewJob,
    NodeRecord,
    Outcome,
    QueueRecord,
    ShareRecord,
    Submitted,
    TokenRecord,
)


class Store:
    """Reads, and the writes that API processes may do. ``url``: any PostgreSQL URL; ``pool``: most connections."""

    def __init__(self, url: str, *, application: str = "hpcmesos-api", pool: int = 8) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Closes every connection; the store is unusable afterwards."""

    # submissions and wishes (wake the leader with notify() afterwards)

    def submit(self, new: NewJob, key: str | None = None, digest: bytes = b"") -> Submitted:
        """Inserts job, script, inbox row (kind ``submit``) and idempotency key in one transaction.

        The same owner and key with the same digest is answered with the first job. Raises KeyReused on another digest.
        """
        raise NotImplementedError

    def submit_many(
        self, news: Sequence[NewJob], key: str | None = None, digest: bytes = b""
    ) -> list[Submitted]:
        """As submit(), for many jobs of one owner: all or none; one key for the whole call."""
        raise NotImplementedError

    def wish(self, kind: str, seq: int | None, user: str, payload: dict[str, object]) -> int:
        """Puts a user's wish into the inbox; answers its id, for inbox_pending()."""
        raise NotImplementedError

    def inbox_pending(self, ids: Sequence[int]) -> set[int]:
        """Those of ``ids`` that no leader has taken yet."""
        raise NotImplementedError

    def notify(self) -> None:
        """Hints the leader to look at the inbox (NOTIFY hpcmesos_inbox, in a transaction of its own)."""
        raise NotImplementedError

    # jobs

    def job(self, seq: int, index: int | None = None) -> JobRecord | None:
        """A job, in history too; None: unknown."""
        raise NotImplementedError

    def jobs(self, wanted: JobFilter) -> list[JobRecord]:
        """Jobs in the order of their ids."""
        raise NotImplementedError

    def attempts(self, seqs: Sequence[int]) -> list[AttemptRecord]:
        """All attempts of these jobs, oldest first, in history too."""
        raise NotImplementedError

    def shares(self, seqs: Sequence[int], *, live_only: bool = False) -> list[ShareRecord]:
        """Shares of these jobs' attempts, by attempt and position; in history too unless ``live_only``."""
        raise NotImplementedError

    def script(self, seq: int) -> bytes | None:
        """The job's script; None: it has none, or it is swept."""
        raise NotImplementedError

    def outcomes(self, seqs: Sequence[int]) -> dict[int, Outcome]:
        """State and exit status of these jobs, in history too; unknown ones are left out."""
        raise NotImplementedError

    def events(self, after: int = 0, limit: int = 1000, seq: int | None = None) -> list[EventRecord]:
        """Events with an id above ``after``, in order."""
        raise NotImplementedError

    # cluster

    def nodes(self) -> list[NodeRecord]:
        raise NotImplementedError

    def queues(self) -> list[QueueRecord]:
        raise NotImplementedError

    def leader(self) -> LeaderRecord:
        raise NotImplementedError

    def timeline(self) -> int:
        """The timeline that PostgreSQL writes now; it grows with every failover."""
        raise NotImplementedError

    # tokens

    def create_token(
        self, kind: str, user: str | None, node: str | None, lifetime: timedelta, created_by: str
    ) -> str:
        """A new credential in plain text; only its hash is kept."""
        raise NotImplementedError

    def verify_token(self, token: str) -> TokenRecord:
        """Who shows a "user" token. Raises Unauthenticated when it is unknown, expired or of another kind."""
        raise NotImplementedError

    def consume_join_token(self, token: str, node: str) -> TokenRecord:
        """Uses up a "join" token for ``node``. Raises Unauthenticated as above, or when it was used or is another node's."""
        raise NotImplementedError
