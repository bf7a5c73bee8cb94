"""Connections to the one PostgreSQL server that may be written to, where the URL names several.

After a failover the old primary may come back, or live on, and take writes that nobody will ever see again. So of all
servers that answer, the one with the highest timeline is the primary: a promotion begins a new timeline. A server that
is behind what this process has seen is refused, and connections that were made to it before are cut.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg import conninfo

from hpcmesos.errors import ConfigError

log = logging.getLogger(__name__)

Connection = psycopg.Connection[Any]

_CONNECT_TIMEOUT = 5  # seconds
_OTHERS = 0.5  # seconds that other servers may take to answer when one has
_LOOK = 5.0  # seconds between two looks for a promotion
_IMPATIENT = "-c statement_timeout=5000"
_SCHEMES = ("postgresql://", "postgres://")
_TIMELINE = """
    SELECT CASE WHEN pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean THEN 0
           ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer END
"""
# The control file knows a new timeline only after the next checkpoint; the WAL's file name knows it at once.

_seen: dict[str, int] = {}  # the highest timeline of each set of servers
_made: WeakKeyDictionary[Connection, tuple[str, int]] = WeakKeyDictionary()
"""Of connections to one of several servers: which set, and the server's timeline."""
_lock = threading.Lock()


def check_url(url: str) -> None:
    """Raises ConfigError unless ``url`` is ``postgresql://...``, with one host or several."""
    if not url.startswith(_SCHEMES):
        raise ConfigError("the database URL must begin with postgresql://")
    try:
        conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise ConfigError(f"malformed database URL: {str(error).strip()}") from error


def connect(url: str, **options: Any) -> Connection:
    """A connection to the server of ``url``, or to the primary of several. ``options``: as psycopg.connect().

    Raises psycopg.OperationalError when there is none.
    """
    options = {"connect_timeout": _CONNECT_TIMEOUT, **options}
    places = _places(url)
    if len(places) == 1:
        return psycopg.connect(url, **options)
    found = _ask_all(url, places, options)
    return _primary(",".join(sorted(map(str, places))), found)


def timeline_of(connection: Connection) -> int:
    """The timeline of its server when it was made; 0: its URL named one server, which nothing can overtake."""
    return _made.get(connection, ("", 0))[1]


def read_timeline(connection: Connection) -> int:
    """The timeline that its server writes now; 0: it is a standby."""
    with connection.cursor() as cursor:
        cursor.execute(_TIMELINE)
        row = cursor.fetchone()
    connection.rollback()
    return int(row[0]) if row else 0


def look_after(url: str) -> None:
    """From now on a thread looks every 5 s whether another server of ``url`` has been promoted."""
    if len(_places(url)) > 1:
        threading.Thread(target=_look, args=(url,), name="promotions", daemon=True).start()


def _look(url: str) -> None:
    while True:
        time.sleep(_LOOK)
        with contextlib.suppress(psycopg.Error):  # who needs the database says what is wrong
            connect(url, options=_IMPATIENT).close()


def _places(url: str) -> list[dict[str, str]]:
    """Host and port of each server."""
    wanted = conninfo.conninfo_to_dict(url)
    hosts = str(wanted.get("host") or "").split(",")
    ports = str(wanted.get("port") or "").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    return [
        {"host": host, **({"port": port} if port else {})} for host, port in zip(hosts, ports, strict=False)
    ]


def _ask_all(url: str, places: list[dict[str, str]], options: dict[str, Any]) -> list[tuple[int, Connection]]:
    """Connections to all servers that answer soon, with the timelines that they write; 0: a standby.

    Raises what the last one raised when none answers.
    """
    pool = ThreadPoolExecutor(len(places), thread_name_prefix="postgres")
    pending = {pool.submit(_ask, url, place, options) for place in places}
    found: list[tuple[int, Connection]] = []
    problem: BaseException | None = None
    deadline: float | None = None
    while pending:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        done, pending = wait(pending, left, FIRST_COMPLETED)
        if not done:
            break
        for future in done:
            if (error := future.exception()) is None:
                found.append(future.result())
            else:
                problem = error
        if deadline is None and any(timeline for timeline, _ in found):
            deadline = time.monotonic() + _OTHERS
    for late in pending:
        late.add_done_callback(_close_late)
    pool.shutdown(wait=False)
    if not found:
        raise problem or psycopg.OperationalError("the database URL names no server")
    return found


def _ask(url: str, place: dict[str, str], options: dict[str, Any]) -> tuple[int, Connection]:
    connection = psycopg.connect(url, **{**options, **place, "target_session_attrs": "any"})
    try:
        return read_timeline(connection), connection
    except BaseException:
        connection.close()
        raise


def _close_late(future: Future[tuple[int, Connection]]) -> None:
    with contextlib.suppress(BaseException):
        future.result()[1].close()


def _primary(name: str, found: list[tuple[int, Connection]]) -> Connection:
    found.sort(key=lambda pair: pair[0])
    timeline, primary = found.pop()
    for _, other in found:
        other.close()
    with _lock:
        known = _seen.get(name, 0)
        if timeline and timeline >= known:
            _seen[name] = timeline
            _made[primary] = name, timeline
        overtaken = [one for one, made in _made.items() if made[0] == name and made[1] < _seen.get(name, 0)]
    for connection in overtaken:
        _cut(connection)
    if timeline > known > 0:
        log.warning("the primary is %s now, on timeline %d", primary.info.host, timeline)
    if timeline == 0 or timeline < known:
        primary.close()
        raise psycopg.OperationalError(
            f"the primary does not answer: {primary.info.host} is on timeline {timeline}, {known} was seen"
            if timeline
            else "none of the servers that answer is a primary"
        )
    return primary


def _cut(connection: Connection) -> None:
    """As if its server had gone. A thread that waits for an answer, which may never come, is told; to cancel what it
    waits for would make the old primary commit it alone.
    """
    with contextlib.suppress(OSError, psycopg.Error):  # it may be closed by now
        line = socket.socket(fileno=os.dup(connection.fileno()))
        line.shutdown(socket.SHUT_RDWR)
        line.close()
