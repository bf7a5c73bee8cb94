"""LISTEN: wakes the planner when API processes hint at the inbox. Only a hint; the planner looks by itself, too."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import psycopg
from psycopg import sql

from hpcmesos.master.events import Event, InboxHint
from hpcmesos.queue.engine import parse_url
from hpcmesos.queue.store import CHANNEL

log = logging.getLogger(__name__)

_LOOK = 1.0  # seconds between two looks at ``stop``


def listen(url: str, sink: Callable[[Event], None], stop: threading.Event) -> None:
    """Until ``stop`` is set; a connection that breaks is made again."""
    plain = parse_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    while not stop.is_set():
        try:
            with psycopg.connect(plain, autocommit=True, application_name="hpcmesos-listener") as connection:
                connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
                sink(InboxHint())  # what came while nobody listened
                while not stop.is_set():
                    for _ in connection.notifies(timeout=_LOOK, stop_after=1):
                        sink(InboxHint())
        except psycopg.Error as error:
            log.warning("not listening: %s", error)
            stop.wait(_LOOK)
