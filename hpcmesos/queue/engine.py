"""Connections and transactions; the one place where errors of the driver become ours."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import psycopg
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, DisconnectionError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from hpcmesos.errors import DatabaseUnavailable, InvalidValue
from hpcmesos.queue.servers import check_url, connect

_ENDED_BY_SERVER = {
    "25P03",
    "25P04",
}  # idle-in-transaction and transaction timeouts; the driver calls them internal


def make_engine(
    url: str,
    application: str,
    *,
    pool: int = 8,
    look_before_use: bool = True,
    patience: float = 30.0,
    limits: Mapping[str, int] | None = None,
) -> Engine:
    """An engine whose sessions are in UTC. ``limits``: timeouts by setting in ms; those that the server does not know
    (``transaction_timeout`` before PostgreSQL 17) are left out. ``look_before_use``: a connection that the server has
    closed meanwhile is replaced instead of failing its next user. ``patience``: seconds to wait for a connection of the
    pool.

    Raises ConfigError for a malformed URL.
    """
    check_url(url)
    engine = create_engine(
        "postgresql+psycopg://",
        pool_size=pool,
        max_overflow=0,
        pool_timeout=patience,
        json_serializer=lambda value: msgspec.json.encode(value).decode(),
        json_deserializer=msgspec.json.decode,
        connect_args={"application_name": application, "options": "-c timezone=UTC -c jit=off"},
    )
    event.listen(engine, "do_connect", lambda _dialect, _record, _words, options: connect(url, **options))
    if look_before_use:
        event.listen(engine, "checkout", _refuse_closed)
    if limits:
        event.listen(engine, "connect", lambda connection, _: _set_limits(connection, limits))
    return engine


def _refuse_closed(connection: Any, *_: Any) -> None:
    """To a session that is idle the server says nothing, unless it ends it: seeing that costs no round trip."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        raise DisconnectionError("the server has closed this connection")


def _set_limits(connection: Any, limits: Mapping[str, int]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT set_config(name, setting || 'ms', false)"
            " FROM unnest(%s::text[], %s::text[]) AS wanted(name, setting)"
            " WHERE name IN (SELECT name FROM pg_settings)",
            (list(limits), [str(value) for value in limits.values()]),
        )
    connection.commit()


@contextmanager
def begin(engine: Engine) -> Iterator[Connection]:
    """One transaction, committed at the end of the block.

    Raises:
        DatabaseUnavailable: no connection, or it was lost, ended, or timed out; the driver's error is the cause.
        InvalidValue: a value that PostgreSQL cannot store, such as a zero byte in text.
    """
    try:
        with engine.begin() as connection:
            yield connection
    except PoolTimeout as error:
        raise DatabaseUnavailable("the database is overloaded: no connection came free; try again") from error
    except DBAPIError as error:
        if _is_outage(error):
            raise DatabaseUnavailable(_outage(error.orig)) from error
        if isinstance(error.orig, psycopg.DataError):
            raise InvalidValue(f"the database cannot store this value: {_first_line(error.orig)}") from error
        raise
    except psycopg.DataError as error:  # of the driver itself: COPY, and statements that are prepared
        raise InvalidValue(f"the database cannot store this value: {_first_line(error)}") from error
    except psycopg.Error as error:
        if _ends_session(error):
            raise DatabaseUnavailable(_outage(error)) from error
        raise
    except (UnicodeEncodeError, StatementError) as error:  # half a surrogate pair, as plain text or in JSON
        if isinstance(error, UnicodeEncodeError) or isinstance(error.orig, UnicodeEncodeError):
            raise InvalidValue(f"the database cannot store text that is not Unicode: {error}") from error
        raise


class Snapshots:
    """Read-only looks at one moment of the database each, on one connection that is kept."""

    def __init__(self, url: str, application: str) -> None:
        self._engine = make_engine(url, application, pool=1)
        self._asked: float | None = None  # when what is not answered yet was sent
        self._line: socket.socket | None = None
        event.listen(self._engine, "connect", self._keep_line)
        event.listen(self._engine, "before_cursor_execute", self._ask)
        for answer in ("after_cursor_execute", "handle_error"):
            event.listen(self._engine, answer, self._hear)
        self._one = self._engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )

    @contextmanager
    def one(self) -> Iterator[Connection]:
        """A transaction that sees one snapshot. Raises DatabaseUnavailable."""
        try:
            with begin(self._one) as connection:
                try:
                    yield connection
                finally:
                    self._ask()  # to end the transaction
        finally:
            self._hear()

    def close(self) -> None:
        self._engine.dispose()
        self._drop_line()

    def silence(self) -> float:
        """How many seconds the database has left a question unanswered; 0.0: it has answered. For any thread."""
        asked = self._asked
        return 0.0 if asked is None else time.monotonic() - asked

    def cut(self) -> None:
        """Ends the connection under the transaction, which raises DatabaseUnavailable. For any thread."""
        if self._line is not None:
            with suppress(OSError):
                self._line.shutdown(socket.SHUT_RDWR)

    def _keep_line(self, connection: Any, _record: Any) -> None:
        """A descriptor of our own: its number is nobody else's by the time that it is needed."""
        self._drop_line()
        self._line = socket.socket(fileno=os.dup(connection.fileno()))

    def _drop_line(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close()

    def _ask(self, *_: Any) -> None:
        self._asked = time.monotonic()

    def _hear(self, *_: Any) -> None:
        self._asked = None


def _is_outage(error: DBAPIError) -> bool:
    return error.connection_invalidated or _ends_session(error.orig)


def _ends_session(error: BaseException | None) -> bool:
    lost = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return lost or getattr(error, "sqlstate", None) in _ENDED_BY_SERVER


def _outage(error: BaseException | None) -> str:
    """What is the matter, for whoever asked: class 53 of SQLSTATE is "insufficient resources", such as a full disk."""
    short = str(getattr(error, "sqlstate", None) or "").startswith("53")
    what = "the database lacks room, or connections" if short else "the database does not answer"
    return f"{what}: {_first_line(error)}"


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().partition("\n")[0]
