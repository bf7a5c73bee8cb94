"""Who leads: a session advisory lock elects, the term fences.

The lock falls with its session, so a standby takes over as soon as a dead leader's connection is gone; the session of
a leader that lives but renews nothing is ended by the server when the lease has run out. Each of a leader's
transactions holds the leadership row of its term; takeover changes the term, and the old leader can neither begin nor
commit one.
"""

from __future__ import annotations

import contextlib
import logging
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, func, literal, select, text, update
from sqlalchemy.exc import DBAPIError

from hpcmesos.errors import DatabaseUnavailable, LostLeadership
from hpcmesos.queue import tables as t
from hpcmesos.queue.engine import begin, make_engine
from hpcmesos.queue.reads import read_timeline

APPLICATION = "hpcmesos-leader"
"""application_name of every connection of a LeaderStore: what a takeover terminates."""

CANDIDATE = "hpcmesos-leadership"
"""application_name of the connections by which candidates stand for election."""

_LOCK = 0x6870636D  # of pg_try_advisory_lock; locks are per database
_TERMINATE_WAIT = 1000  # ms for an old leader's backend to go
_RESTORED = 1_000_000  # more than any leader has given out since the backup was taken
RESTORED = "of a restored backup"
"""What a restored database has in place of the names of nodes' journals: it does not know what they have had since."""
_JUMP = 10_000  # ids are skipped after a failover, which may have lost the last ones given out

_LIMITS = {  # ms; the last three: the server notices in 3 s that a leader's host is gone, and frees the lock
    "statement_timeout": 5000,
    "idle_in_transaction_session_timeout": 3000,
    "tcp_keepalives_idle": 1000,
    "tcp_keepalives_interval": 1000,
    "tcp_user_timeout": 3000,
}

# The server's timer is deaf to jumps of its clock. A renewal need not outlive a crash, nor wait for a standby's disk.
_HOLDING = text(
    "SELECT set_config('idle_session_timeout', :lease, false), set_config('synchronous_commit', 'off', false),"
    " set_config('lock_timeout', '0', false)"
)
_PATIENCE = text("SELECT set_config('lock_timeout', :patience, false)")
_LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL's code for a lock_timeout
_CANDIDATES = text(
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name = :application"
)

log = logging.getLogger(__name__)


class Leadership:
    """One candidate, with a connection of its own; used by one thread.

    A candidate that has lost or released may try_acquire() again.
    """

    def __init__(self, url: str) -> None:
        # Two connections at most: one holds the lock, one does the rest.
        self._engine = make_engine(url, CANDIDATE, pool=2, limits=_LIMITS)
        self._session: Connection | None = None
        self.term: int | None = None
        self.timeline = 0  # PostgreSQL's, as of the election

    def try_acquire(
        self, holder: str, address: str, lease_seconds: float = 3.0, patience: float = 0.0
    ) -> int | None:
        """Becomes leader if nobody is: terminates the old leader's backends, then answers the new term.

        None: another candidate has led for ``patience`` seconds. Raises DatabaseUnavailable.
        """
        if not self._lock(lease_seconds, patience):
            return None
        try:
            with begin(self._engine) as connection:
                _terminate_old_leader(connection)
            with begin(self._engine) as connection:
                self.term, self.timeline = _take_over(connection, holder, address, lease_seconds)
        except BaseException:
            self._unlock()
            raise
        return self.term

    def renew(self, lease_seconds: float = 3.0) -> None:
        """Moves the expiry only. Raises LostLeadership when the term is over, the lock's session is gone, or the
        database does not answer.
        """
        if self._session is None or self.term is None:
            raise LostLeadership("this process does not lead")
        extended = update(t.leadership).where(t.leadership.c.term == self.term)
        extended = extended.values(expires_at=func.clock_timestamp() + timedelta(seconds=lease_seconds))
        try:
            # Through the session that holds the lock: its answer shows that the lock is still ours.
            renewed = self._session.execute(extended).rowcount
        except Exception as error:
            self._unlock()
            raise LostLeadership(f"term {self.term}: the lock's session is gone") from error
        if renewed == 0:
            self._unlock()
            raise LostLeadership(f"term {self.term} is over")

    def release(self) -> None:
        """Steps down: lets the lease expire now and gives the lock back. Never raises."""
        if self._session is not None:
            with contextlib.suppress(LostLeadership):
                self.renew(0.0)
        self._unlock()

    def close(self) -> None:
        """release(), and closes every connection."""
        self.release()
        self._engine.dispose()

    def rivals(self) -> bool:
        """Whether other candidates are there, who would lead once this one has stepped down."""
        with begin(self._engine) as connection:
            pool: Any = self._engine.pool  # a QueuePool
            found = connection.execute(_CANDIDATES, {"application": CANDIDATE}).scalar_one()
            return int(found) > int(pool.checkedin() + pool.checkedout())

    def successor(self, term: int) -> str:
        """The address of a leader after ``term``; empty: there is none yet. Raises DatabaseUnavailable."""
        wanted = select(t.leadership.c.address).where(t.leadership.c.term > term)
        with begin(self._engine) as connection:
            return connection.scalar(wanted) or ""

    def _lock(self, lease_seconds: float, patience: float) -> bool:
        self._unlock()
        try:
            session = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            if patience:
                self._engine.connect().close()  # what an election needs besides is connected by then
            locked = _wait_for_lock(session, patience) if patience else _try_lock(session)
            if locked:
                session.execute(_HOLDING, {"lease": f"{1000 * lease_seconds:.0f}ms"})
        except DBAPIError as error:
            raise DatabaseUnavailable(f"the database does not answer: {error.orig}") from error
        if locked:
            self._session = session
        else:
            session.close()
        return bool(locked)

    def _unlock(self) -> None:
        if self._session is not None:
            with contextlib.suppress(Exception):  # closing frees the lock too, but some time later
                self._session.execute(select(func.pg_advisory_unlock_all()))
            with contextlib.suppress(Exception):
                self._session.invalidate()
                self._session.close()
        self._session, self.term = None, None


def _try_lock(session: Connection) -> bool:
    return bool(session.scalar(select(func.pg_try_advisory_lock(_LOCK))))


def _wait_for_lock(session: Connection, patience: float) -> bool:
    """PostgreSQL wakes the first who waits as soon as the lock is free: nobody has to ask again and again."""
    session.execute(_PATIENCE, {"patience": f"{1000 * patience:.0f}ms"})
    try:
        session.execute(select(func.pg_advisory_lock(_LOCK)))
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
            return False
        raise
    return True


def _terminate_old_leader(connection: Connection) -> None:
    rows = connection.execute(
        text(
            "SELECT pid, pg_terminate_backend(pid, :wait) AS gone FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = :application AND pid <> pg_backend_pid()"
        ),
        {"wait": _TERMINATE_WAIT, "application": APPLICATION},
    )
    for row in rows:
        log.warning("terminated the old leader's backend %d (gone: %s)", row.pid, row.gone)


def _take_over(connection: Connection, holder: str, address: str, lease_seconds: float) -> tuple[int, int]:
    """The new term, and PostgreSQL's timeline."""
    table = t.leadership
    before = connection.execute(select(table.c.timeline).with_for_update()).one()
    timeline = read_timeline(connection)
    if before.timeline not in (0, timeline):
        log.warning("PostgreSQL's timeline is %d now: ids jump by %d", timeline, _JUMP)
        _skip_ids(connection, _JUMP)
    values = {
        "term": table.c.term + 1,
        "holder": holder,
        "address": address,
        "timeline": timeline,
        "expires_at": func.clock_timestamp() + timedelta(seconds=lease_seconds),
    }
    term = connection.execute(update(table).values(values).returning(table.c.term)).scalar_one()
    return int(term), timeline


def _skip_ids(connection: Connection, count: int) -> None:
    for sequence in (t.job_ids, t.event_ids, t.inbox_ids):
        jump = func.setval(sequence.name, func.nextval(sequence.name) + literal(count))
        connection.execute(select(jump))


def after_restore(url: str) -> None:
    """Moves term and ids past all that may have been given out after a backup that has been restored.

    Until then agents refuse the leader, whose term is lower than what they have obeyed, and a new job could get the
    id of one that still runs. What a node does not hold it may have had, and forgotten once its end was told to the
    database that is gone: that too is remembered here. ``url``: as the database's owner. Raises DatabaseUnavailable.
    """
    engine = make_engine(url, "hpcmesos-restored", pool=1)
    try:
        with begin(engine) as connection:
            connection.execute(update(t.leadership).values(term=t.leadership.c.term + _RESTORED))
            connection.execute(update(t.nodes).values(journal=RESTORED))
            _skip_ids(connection, _RESTORED)
    finally:
        engine.dispose()
