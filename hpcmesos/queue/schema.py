"""Brings a database to the schema of this release, or says that it has another.

Migrations go forward only, and first expand, then contract: the release before must be able to run on the new schema.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, select

from hpcmesos.errors import SchemaMismatch
from hpcmesos.queue.engine import begin, make_engine

_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x6870636E  # of pg_advisory_xact_lock: one migration at a time


def migrate(url: str) -> None:
    """Runs the missing migrations in one transaction; ``url``: as the database's owner. Does nothing when up to date.

    Raises:
        DatabaseUnavailable: the database does not answer.
        SchemaMismatch: it has a revision that this release does not know.
    """
    engine = make_engine(url, "hpcmesos-migrate", pool=1)
    try:
        with begin(engine) as connection:
            connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
            config = _config()
            revision = _revision(connection)
            if revision is not None:
                _known(config, revision)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()


def check_schema(url: str) -> None:
    """Does the database have exactly the schema of this release?

    Raises:
        DatabaseUnavailable: the database does not answer.
        SchemaMismatch: it has not; the message says what to do.
    """
    engine = make_engine(url, "hpcmesos-check", pool=1)
    try:
        with begin(engine) as connection:
            revision = _revision(connection)
    finally:
        engine.dispose()
    config = _config()
    if revision is None:
        raise SchemaMismatch("the database is empty: run 'hpcmesos migrate' first")
    _known(config, revision)
    head = ScriptDirectory.from_config(config).get_current_head()
    if revision != head:
        raise SchemaMismatch(
            f"the database has schema {revision}, this release needs {head}: run 'hpcmesos migrate'"
        )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _known(config: Config, revision: str) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision not in known:
        raise SchemaMismatch(
            f"the database has schema {revision}, which this release does not know: use the newer release"
        )
