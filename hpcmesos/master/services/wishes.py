"""What API processes put into the inbox for the leader: one row of ``inbox`` is a kind, a job, a user and a payload.

======== ============================================================= ===========================================
kind     payload                                                       the leader
======== ============================================================= ===========================================
submit   (none: written by the store with the job)                     takes the new job in
delete   index, kill_delay (s or None), message, purge (bool)          ends the job; Q, H, W at once, R by END
hold     index, kinds (letters of u o s)                               adds the holds; Q and W become H
release  index, kinds (letters of u o s)                               takes the holds away; none left: H becomes Q
signal   index, signal (number)                                        passes the signal to the head
suspend  index, suspended (bool)                                       lets all processes stand still, or go on
run      index, nodes (names; none: wherever there is room)            starts the job now, or says why not
rerun    index, kill_delay (s or None), message                        ends the attempt; the job goes back to Q
move     queue, from (only if it is there still; none: in any)         changes the queue of a job that waits
order    other (a job's seq)                                           two jobs in Q exchange their places
message  index, text, streams ("o" "e" "oe")                           the head writes it into the output
alter    index, fields, submission, resources, limit, waits,           changes the job
         privileged (see master/changes.py)
node     node, action ("offline" "clear" "note" "gone"), note or None  changes the node; ``seq`` is None
node     node, action ("gpu offline" "gpu clear"), gpu, note or None   tells its agent; ``seq`` is None
schedule action ("add" "remove" "pause" "resume" "run"), owner,        changes it, or fires it; ``seq`` is None
         name, of "add" also schedule (a timetable.Schedule)
object   kind ("queue" "server"), name, action ("create" "delete"      changes it; ``seq`` is None
         "set" "unset"), changes ([name, operator, value] each);
         kind "reservation" or "shares": value (see the modules)
======== ============================================================= ===========================================

``index`` is an array's element, or None for the job itself. Instead ``elements`` may name several, as half-open ranges;
elements without a row can only be deleted. The rights of ``user`` were checked when the row was
written; a wish that its job has outrun is dropped.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hpcmesos.errors import DatabaseUnavailable, InvalidValue
from hpcmesos.queue.store import Store

DELETE = "delete"
HOLD = "hold"
RELEASE = "release"
SIGNAL = "signal"
SUSPEND = "suspend"
RERUN = "rerun"
RUN = "run"
MOVE = "move"
ORDER = "order"
MESSAGE = "message"
ALTER = "alter"
NODE = "node"
OBJECT = "object"
SCHEDULE = "schedule"

MOST_KEPT = 2 * 1024 * 1024
"""Bytes of environment and words of a job, as JSON: no more can be handed to a program (execve(2))."""
_NESTED = frozenset(
    {"environment", "extra"}
)  # parts of a submission that are added to, by name, not replaced

PATIENCE = 2.0
"""Seconds that a command waits for the leader to take its wishes, so that a following qstat shows them."""

_QUIET = 0.003  # seconds between two hints
_FIRST_LOOK = 0.004
_LONGEST_LOOK = 0.05


def merged(submission: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """What a job was submitted with, after an ALTER wish. Raises InvalidValue: it would be more than can be kept."""
    parts = {
        name: {**submission.get(name, {}), **value} for name, value in changes.items() if name in _NESTED
    }
    whole = {**submission, **changes, **parts}
    kept = {name: value for name, value in whole.items() if value is not None}
    check_size(msgspec.json.encode(kept))
    return kept


def check_size(submission: bytes) -> None:
    """Raises InvalidValue for more than can be kept."""
    if len(submission) > MOST_KEPT:
        raise InvalidValue(
            f"environment and words of the job have {len(submission)} bytes; at most {MOST_KEPT}"
        )


class Notifier:
    """Wakes the leader. The first hint goes out at once; those that come within the next 3 ms go out as one.

    NOTIFY takes a database-wide lock at commit, so it must not be part of each submission.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._wanted = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)
        self._thread.start()

    def poke(self) -> None:
        self._wanted.set()

    def close(self) -> None:
        """Sends what is due, and ends."""
        self._stopped.set()
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            # Only a hint: the leader looks at the inbox by itself, too.
            with contextlib.suppress(DatabaseUnavailable):
                self._store.notify()
            if self._stopped.wait(_QUIET):
                return


def await_taken(store: Store, ids: Sequence[int], patience: float = PATIENCE) -> bool:
    """Waits until a leader has taken these wishes; False: it has not within ``patience`` seconds."""
    deadline = time.monotonic() + patience
    pause = _FIRST_LOOK
    while store.inbox_pending(ids):
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_LOOK)
    return True
