"""Wakes the planner when API processes hint at the inbox. Only a hint; the planner looks by itself, too."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

from hpcmesos.errors import DatabaseUnavailable
from hpcmesos.master.events import Event, InboxHint
from hpcmesos.queue.hints import Hints

log = logging.getLogger(__name__)

_LOOK = 1.0  # seconds between two looks at ``stop``


def listen(url: str, sink: Callable[[Event], None], stop: threading.Event) -> None:
    """Until ``stop`` is set; a connection that breaks is made again."""
    while not stop.is_set():
        try:
            with contextlib.closing(Hints(url)) as hints:
                sink(InboxHint())  # what came while nobody listened
                while not stop.is_set():
                    if hints.wait(_LOOK):
                        sink(InboxHint())
        except DatabaseUnavailable as error:
            log.warning("%s", error)
            stop.wait(_LOOK)
