"""A warm standby: the leader's picture of the queue, kept while another leads, so that little is left to load.

Of 100,000 waiting jobs, reading and ordering takes seconds; what changed since the last look, milliseconds.
"""

from __future__ import annotations

import gc
import logging
import threading
import time

from hpcmesos.errors import DatabaseUnavailable
from hpcmesos.master.cluster import Cluster
from hpcmesos.queue.engine import Snapshots
from hpcmesos.queue.leader_store import LeaderStore, read_all
from hpcmesos.queue.live_jobs import Changes, LiveJobs
from hpcmesos.queue.records import LeaderState

log = logging.getLogger(__name__)

APPLICATION = "hpcmesos-standby"
"""application_name of a standby's connection."""

_PAUSE, _LONGEST_PAUSE = 1.0, 5.0  # seconds between two looks
_SHARE = 0.05  # of the time, at most, is spent on looks that find little; what has come has to be read anyway
_STOP_TIMEOUT = 5.0
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
            changes = self._live.look(connection)
        self._apply(changes)
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
            _, changes = read_all(connection, self._live)
        self._apply(changes)

    def _apply(self, changes: Changes) -> None:
        if changes.anew:
            self._cluster = Cluster(_NOTHING, self._server)
        for key in changes.gone:
            self._cluster.forget(key)
        for job in changes.put:
            self._cluster.put(job)


class Standby:
    """Keeps a picture warm in a thread of its own, until ``take_over``."""

    def __init__(self, url: str, server: str) -> None:
        self._snapshots = Snapshots(url, APPLICATION)
        self._server = server
        self._picture = WarmPicture(server, self._snapshots)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="standby", daemon=True)
        self._thread.start()

    @property
    def known(self) -> int:
        """How many jobs it knew at the last look."""
        return self._picture.known

    def take_over(self) -> WarmPicture:
        """Ends the looks; the picture, to be brought up to date by its next owner."""
        self._stop.set()
        self._thread.join(_STOP_TIMEOUT)
        if self._thread.is_alive():  # it waits for a database that this process now reaches by another way
            return WarmPicture(self._server)
        return self._picture

    def _run(self) -> None:
        pause, said, rehearsed = 0.0, "", False
        while not self._stop.wait(pause):
            began, read = time.monotonic(), 0
            try:
                read = self._look()
                if not rehearsed:
                    self._picture.rehearse(self._snapshots)
                said, rehearsed = "", True
            except DatabaseUnavailable as error:
                if str(error) != said:
                    log.info("the standby's picture waits: %s", error)
                said = str(error)
            pause = pause_after(time.monotonic() - began, read)

    def _look(self) -> int:
        gc.disable()
        try:
            read = self._picture.look(self._snapshots)
            if read > _MANY:
                gc.freeze()  # what is loaded stays: the collector need not walk through it, now or later
            return read
        finally:
            gc.enable()
