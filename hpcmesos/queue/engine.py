"""Connections and transactions; the one place where errors of the driver become ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from hpcmesos.errors import ConfigError, DatabaseUnavailable, InvalidValue

_CONNECT_TIMEOUT = 5  # seconds
_ENDED_BY_SERVER = {
    "25P03",
    "25P04",
}  # idle-in-transaction and transaction timeouts; the driver calls them internal


def parse_url(url: str) -> URL:
    """``postgresql://...`` for our driver.

    Raises:
        ConfigError: no PostgreSQL URL.
    """
    try:
        parsed = make_url(url)
    except Exception as error:
        raise ConfigError(f"malformed database URL: {error}") from error
    if parsed.get_backend_name() != "postgresql":
        raise ConfigError(
            f"the database URL must begin with postgresql://, not {parsed.get_backend_name()}://"
        )
    return parsed.set(drivername="postgresql+psycopg")


def make_engine(
    url: str,
    application: str,
    *,
    pool: int = 8,
    pre_ping: bool = True,
    limits: Mapping[str, int] | None = None,
) -> Engine:
    """An engine whose sessions are in UTC. ``limits``: timeouts by setting in ms; those that the server does not know
    (``transaction_timeout`` before PostgreSQL 17) are left out.
    """
    engine = create_engine(
        parse_url(url),
        pool_size=pool,
        max_overflow=0,
        pool_pre_ping=pre_ping,
        json_serializer=lambda value: msgspec.json.encode(value).decode(),
        json_deserializer=msgspec.json.decode,
        connect_args={
            "application_name": application,
            "connect_timeout": _CONNECT_TIMEOUT,
            "options": "-c timezone=UTC -c jit=off",
        },
    )
    if limits:
        event.listen(engine, "connect", lambda connection, _: _set_limits(connection, limits))
    return engine


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
            raise DatabaseUnavailable(f"the database does not answer: {_first_line(error.orig)}") from error
        if isinstance(error.orig, psycopg.DataError):
            raise InvalidValue(f"the database cannot store this value: {_first_line(error.orig)}") from error
        raise
    except (UnicodeEncodeError, StatementError) as error:  # half a surrogate pair, as plain text or in JSON
        if isinstance(error, UnicodeEncodeError) or isinstance(error.orig, UnicodeEncodeError):
            raise InvalidValue(f"the database cannot store text that is not Unicode: {error}") from error
        raise


def _is_outage(error: DBAPIError) -> bool:
    state = getattr(error.orig, "sqlstate", None)
    lost = isinstance(error.orig, psycopg.OperationalError | psycopg.InterfaceError)
    return error.connection_invalidated or lost or state in _ENDED_BY_SERVER


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().partition("\n")[0]
