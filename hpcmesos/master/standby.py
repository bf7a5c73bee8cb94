"""A warm standby: the leader's picture of the queue, kept while another leads, so that little is left to load.

Of 100,000 waiting jobs, reading and ordering takes seconds; what changed since the last look, milliseconds.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable

from sqlalchemy import Connection

from hpcmesos.errors import DatabaseUnavailable
from hpcmesos.master.cluster import Cluster
from hpcmesos.queue.engine import Snapshots
from hpcmesos.queue.leader_store import LeaderStore, read_state
from hpcmesos.queue.live_jobs import Changes, LiveJobs
from hpcmesos.queue.records import LeaderState

log = logging.getLogger(__name__)

APPLICATION = "hpcmesos-standby"
"""application_name of a standby's connection."""

_PAUSE, _LONGEST_PAUSE = 1.0, 5.0  # seconds between two looks
_SHARE = 0.05  # of the time, at most, is spent on looks that find little; what has come has to be read anyway
_SILENCE = 15.0  # seconds without an answer, of which to read 100,000 jobs on a busy machine may take a few
_GLANCE = 0.2  # seconds between two looks at whether the database answers
_MANY = 1000  # jobs
_NOTHING = LeaderState(jobs=(), attempts=(), shares=(), nodes=(), queues=())


def pause_after(took: float, read: int) -> float:
    """Seconds until the next look, after one of ``took`` seconds that has read ``read`` jobs.

    While many come it is soon: a leader that dies meanwhile leaves to its successor what the last look did not see.
    """
    if read > _MANY:
        return _PAUSE
    return min(_LONGEST_PAUSE, max(_PAUSE, took / _SHARE))


class WarmPicture:
    """The jobs of a picture, as of the last look. Used by one thread at a time."""

    def __init__(self, server: str, snapshots: Snapshots | None = None) -> None:
        """``snapshots``: for ``take``, which closes it; None: it makes a connection of its own."""
        self._server = server
        self._snapshots = snapshots
        self._live = LiveJobs()
        self._cluster = Cluster(_NOTHING, server)

    @property
    def known(self) -> int:
        """How many jobs it has."""
        return len(self._live.jobs)

    def look(self, snapshots: Snapshots) -> int:
        """Brings the jobs up to date; how many were read. Raises DatabaseUnavailable."""
        with snapshots.one() as connection:
            changes = self._see(connection)
        if changes.anew:
            log.info("the standby's picture is warm jobs=%d", len(changes.put))
        return len(changes.put)

    def take(self, store: LeaderStore) -> Cluster:
        """The whole picture as of now; this object is of no further use."""
        state, changes = store.load(self._live, self._snapshots)
        self._apply(changes)
        self._cluster.take_in(state)
        return self._cluster

    def rehearse(self, snapshots: Snapshots) -> None:
        """Reads once all that a takeover reads: the statements are built then, and what they need is in memory."""
        with snapshots.one() as connection:
            self._see(connection)
            read_state(connection, self._live.jobs.values())

    def _see(self, connection: Connection) -> Changes:
        """What is seen is taken in at once: no later look sees it again, should this transaction fail."""
        changes = self._live.look(connection)
        self._apply(changes)
        return changes

    def _apply(self, changes: Changes) -> None:
        if changes.anew:
            self._cluster = Cluster(_NOTHING, self._server)
        for key in changes.gone:
            self._cluster.forget(key)
        for job in changes.put:
            self._cluster.put(job)


class Standby:
    """Keeps a picture warm in a thread of its own, until ``take_over``."""

    def __init__(
        self,
        url: str,
        server: str,
        *,
        pace: Callable[[float, int], float] = pause_after,
        silence: float = _SILENCE,
    ) -> None:
        """``pace``: as pause_after(). ``silence``: seconds that ``take_over`` waits for an answer of the database."""
        self._snapshots = Snapshots(url, APPLICATION)
        self._pace = pace
        self._silence = silence
        self._picture = WarmPicture(server, self._snapshots)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="standby", daemon=True)
        self._thread.start()

    @property
    def known(self) -> int:
        """How many jobs it knew at the last look."""
        return self._picture.known

    def take_over(self) -> WarmPicture:
        """Ends the looks; the picture, to be brought up to date by its next owner.

        A look that is under way is waited for, however long it takes: it reads what the next owner would have to read.
        Only one that hears nothing from the database, which this process may now reach by another way, is given up.
        """
        self._stop.set()
        while self._thread.is_alive():
            self._thread.join(_GLANCE)
            if self._snapshots.silence() > self._silence:
                log.warning("the standby's look is given up: the database does not answer it")
                self._snapshots.cut()
        return self._picture

    def _run(self) -> None:
        pause, said, rehearsed = 0.0, "", False
        while not self._stop.wait(pause):
            began, read = time.monotonic(), 0
            try:
                read = self._look()
                if not rehearsed and not self._stop.is_set():
                    self._picture.rehearse(self._snapshots)
                    rehearsed = True
                said = ""
            except DatabaseUnavailable as error:
                if str(error) != said:
                    log.info("the standby's picture waits: %s", error)
                said = str(error)
            pause = self._pace(time.monotonic() - began, read)

    def _look(self) -> int:
        gc.disable()
        try:
            read = self._picture.look(self._snapshots)
            if read > _MANY:
                gc.freeze()  # what is loaded stays: the collector need not walk through it, now or later
            return read
        finally:
            gc.enable()
