"""The jobs that wait for nothing but room: all of them, and the front of the queue, as the scheduler's tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, KeysView, Sequence
from dataclasses import replace

from hpcmesos.gang.snapshot import JobView
from hpcmesos.gang.tables import JobTable
from hpcmesos.model import JobId
from hpcmesos.queue.records import JobKey

FRONT = 500
"""Jobs from the front of a long queue that a pass on an event looks at; a full pass looks at all."""

_MANY_SHAPES = 10_000


class Waiting:
    """Jobs by key. ``special``: those of which passes see more or less from time to time, see ``show``.

    The front of a long queue is the first of the last ranking, which full passes renew, and what came since.
    """

    def __init__(self) -> None:
        self.table = JobTable()
        self.special: set[JobKey] = set()
        self._views: dict[JobKey, JobView] = {}
        self._front: JobTable | None = None  # None: nothing was ranked, or the queue is short
        self._ranking: list[JobId] = []
        self._next = 0  # of the ranking: what has not been in the front

    def __len__(self) -> int:
        return len(self._views)

    def keys(self) -> KeysView[JobKey]:
        return self._views.keys()

    def put(self, key: JobKey, view: JobView, *, special: bool = False) -> None:
        """Takes in a job, or what has changed of it."""
        self._views[key] = view
        self._put(view)
        if special:
            self.special.add(key)

    def remove(self, key: JobKey) -> None:
        """Forgets a job, if it is known."""
        if view := self._views.pop(key, None):
            self._remove(view.id)
            self.special.discard(key)

    def who(self) -> Sequence[tuple[str, str]]:
        """Projects and users who wait, or did so."""
        return self.table.who

    def view(self, key: JobKey) -> JobView:
        return self._views[key]

    def show(self, key: JobKey, count: int) -> None:
        """Passes see so many of the job's elements (1: the job itself); 0: nothing of it, until told otherwise."""
        view = self._views[key]
        if not count:
            self.special.add(key)
            self._remove(view.id)
        elif (seen := self.table.get(view.id)) is None or seen.count != count:
            self._put(replace(view, count=count))

    def front(self, rank: Callable[[JobTable], Iterable[JobId]]) -> JobTable:
        """What a pass on an event looks at; the whole table when the queue is short. ``rank`` puts jobs in order."""
        if len(self.table) <= 2 * FRONT:
            self._front = None
            return self.table
        if self._front is None:
            self.rank(rank)
        front = self._front
        assert front is not None
        if len(front) < FRONT // 2:
            self._fill(front)
        return front

    def rank(self, rank: Callable[[JobTable], Iterable[JobId]]) -> None:
        """Puts the queue in order anew."""
        if len(self.table.shapes) > _MANY_SHAPES + 2 * len(self.table):
            self.table = JobTable(self.table)  # without the shapes of jobs that are gone
        self._ranking, self._next, self._front = [], 0, None
        if len(self.table) > 2 * FRONT:
            self._ranking, self._front = list(rank(self.table)), JobTable()
            self._fill(self._front)

    def _fill(self, front: JobTable) -> None:
        while len(front) < FRONT and self._next < len(self._ranking):
            view = self.table.get(self._ranking[self._next])
            self._next += 1
            if view is not None:
                front.put(view)

    def _put(self, view: JobView) -> None:
        self.table.put(view)
        if self._front is None:
            return
        if self._front.get(view.id) is not None or len(self._front) < 2 * FRONT:
            self._front.put(view)
        else:
            self._ranking.append(view.id)

    def _remove(self, job: JobId) -> None:
        self.table.remove(job)
        if self._front is not None:
            self._front.remove(job)
