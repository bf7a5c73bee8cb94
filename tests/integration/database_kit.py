"""Fixtures: one embedded PostgreSQL a session, and a fresh migrated database a test."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from hpcmesos.queue import postgres, schema
from hpcmesos.queue.leader_store import LIMITS, LeaderStore
from hpcmesos.queue.leadership import Leadership
from hpcmesos.queue.store import Store

_numbers = itertools.count(1)
TEMPLATE = "hpcmesos_template"
MEMORY, ROOM = Path("/dev/shm"), 2 << 30
"""Where files need no disk, and the bytes that have to be free there."""


@dataclass(frozen=True)
class Database:
    """URLs of one database by role."""

    owner: str
    api: str
    leader: str


def urls(sockets: Path, name: str) -> Database:
    roles = (postgres.OWNER, postgres.API, postgres.LEADER)
    return Database(*(postgres.url_of(sockets, role, name) for role in roles))


def on_server(sockets: Path, statement: str) -> None:
    url = postgres.url_of(sockets, postgres.OWNER, "postgres")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def create_database(sockets: Path, template: str = "template1") -> str:
    name = f"test_{os.getpid()}_{next(_numbers)}"
    on_server(sockets, f"CREATE DATABASE {name} TEMPLATE {template}")
    return name


def quick_place() -> str:
    """Where servers keep their data: in memory where there is room, for a database is a thousand files."""
    fits = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM
    return str(MEMORY) if fits else "/tmp"


@pytest.fixture(scope="session")
def postgres_sockets() -> Iterator[Path]:
    """The socket directory of the session's server, with a migrated template in it."""
    place = Path(tempfile.mkdtemp(prefix="hpcm-pg-", dir=quick_place()))
    place.chmod(0o711)
    try:
        postgres.start(place / "data", place / "s")
        for statement in (
            "ALTER SYSTEM SET fsync = off",  # a crash of this machine is no concern of the tests
            "SELECT pg_reload_conf()",
            f"CREATE DATABASE {TEMPLATE}",
        ):
            on_server(place / "s", statement)
        schema.migrate(urls(place / "s", TEMPLATE).owner)
        yield place / "s"
    finally:
        postgres.stop(place / "data", "immediate")
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def database(postgres_sockets: Path) -> Iterator[Database]:
    """A migrated database of this test alone."""
    name = create_database(postgres_sockets, TEMPLATE)
    yield urls(postgres_sockets, name)
    on_server(postgres_sockets, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_database(postgres_sockets: Path) -> Iterator[Database]:
    """A database without any table."""
    name = create_database(postgres_sockets)
    yield urls(postgres_sockets, name)
    on_server(postgres_sockets, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def store(database: Database) -> Iterator[Store]:
    """The API's store."""
    api = Store(database.api)
    yield api
    api.close()


@contextmanager
def leading(database: Database, limits: Mapping[str, int]) -> Iterator[LeaderStore]:
    leadership = Leadership(database.leader)
    term = leadership.try_acquire("test", "127.0.0.1:1", lease_seconds=60.0)
    assert term is not None
    store = LeaderStore(database.leader, term, limits=limits)
    try:
        yield store
    finally:
        store.close()
        leadership.close()


@pytest.fixture
def leader(database: Database) -> Iterator[LeaderStore]:
    """The store of a leader that has just taken over. It may stand still in a transaction: so may this machine."""
    with leading(database, {"statement_timeout": LIMITS["statement_timeout"]}) as store:
        yield store


@pytest.fixture
def limited_leader(database: Database) -> Iterator[LeaderStore]:
    """A leader with the real limits of time."""
    with leading(database, LIMITS) as store:
        yield store


@pytest.fixture
def patient_leader(database: Database) -> Iterator[LeaderStore]:
    """A leader whose transactions the database does not end, however slow this machine is."""
    with leading(database, {}) as store:
        yield store
