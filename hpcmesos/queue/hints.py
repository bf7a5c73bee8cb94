"""Hints at new inbox rows, as the leader hears them: LISTEN on a connection of its own."""

from __future__ import annotations

import psycopg
from psycopg import sql

from hpcmesos.errors import DatabaseUnavailable
from hpcmesos.queue.servers import connect

CHANNEL = "hpcmesos_inbox"
"""The NOTIFY channel that hints the leader at new inbox rows."""


class Hints:
    """Hears every ``Store.notify()`` from now on. Used by one thread.

    Raises:
        DatabaseUnavailable: no connection; so do wait() and nothing else when it is lost.
    """

    def __init__(self, url: str) -> None:
        try:
            self._connection = connect(url, autocommit=True, application_name="hpcmesos-listener")
            self._connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
        except psycopg.Error as error:
            raise DatabaseUnavailable(f"cannot listen: {error}") from error

    def wait(self, timeout: float) -> bool:
        """Waits for a hint; False: none came within ``timeout`` seconds."""
        try:
            return any(True for _ in self._connection.notifies(timeout=timeout, stop_after=1))
        except psycopg.Error as error:
            raise DatabaseUnavailable(f"no longer listening: {error}") from error

    def close(self) -> None:
        self._connection.close()
