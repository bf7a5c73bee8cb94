"""Threads that send notices of one channel, so that a server that is slow holds up nothing but itself."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from hpcmesos.master.delivery import Undelivered
from hpcmesos.queue.notices import Notice

Result = tuple[Notice, Undelivered | None]


class Senders:
    """At most ``threads`` of them; ``send`` raises Undelivered. Nobody waits for them when the process ends."""

    def __init__(
        self, send: Callable[[Notice, str], None], results: queue.SimpleQueue[Result], threads: int = 4
    ) -> None:
        self._send = send
        self._results = results
        self._threads = threads
        self._work: queue.SimpleQueue[tuple[Notice, str]] = queue.SimpleQueue()
        self._started = 0
        self.flying: set[str] = set()  # recipients of notices whose result nobody has taken yet

    @property
    def room(self) -> int:
        """How many more may be given to them now."""
        return self._threads - len(self.flying)

    def give(self, notice: Notice, sender: str) -> None:
        """Sends it if there is room, and none to its recipient is under way: a job's begin comes before its end.

        Its result comes by the queue; whoever takes it calls `taken`.
        """
        if not self.room or notice.recipient in self.flying:
            return
        self.flying.add(notice.recipient)
        self._work.put((notice, sender))
        if self._started < min(self._threads, len(self.flying)):
            self._started += 1
            threading.Thread(target=self._run, daemon=True).start()

    def taken(self, notice: Notice) -> None:
        """Its result is dealt with."""
        self.flying.discard(notice.recipient)

    def _run(self) -> None:
        while True:
            notice, sender = self._work.get()
            try:
                self._send(notice, sender)
                self._results.put((notice, None))
            except Undelivered as error:
                self._results.put((notice, error))
