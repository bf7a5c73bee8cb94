"""Brings a database to the schema of this release, or says that it has another.

Migrations go forward only, and first expand, then contract: the release before must be able to run on the new schema.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, select, text

from hpcmesos.errors import SchemaMismatch
from hpcmesos.queue.engine import begin, make_engine
from hpcmesos.queue.tables import metadata

_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x6870636E  # of pg_advisory_xact_lock: one migration at a time
_COLUMNS = """
    SELECT c.relname, a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
    AND a.attnum > 0 AND NOT a.attisdropped"""


def migrate(url: str) -> None:
    """Runs the missing migrations in one transaction; ``url``: as the database's owner. Does nothing when up to date.

    Raises:
        DatabaseUnavailable: the database does not answer.
        SchemaMismatch: it has a revision that this release does not know, or was made by an unfinished one.
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
            _whole(connection)
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
            config = _config()
            if revision == ScriptDirectory.from_config(config).get_current_head():
                _whole(connection)
    finally:
        engine.dispose()
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


def _whole(connection: Connection) -> None:
    """Until the first release its one migration still changes, and its revision does not tell.

    Raises:
        SchemaMismatch: a table or column that this release needs is not there.
    """
    found = {(str(table), str(column)) for table, column in connection.execute(text(_COLUMNS))}
    needed = [(table.name, column.name) for table in metadata.sorted_tables for column in table.columns]
    if lacking := [f"{table}.{column}" for table, column in needed if (table, column) not in found]:
        raise SchemaMismatch(
            f"the database was made by an unreleased version, without {lacking[0]}: make a new database"
        )


def _known(config: Config, revision: str) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision not in known:
        raise SchemaMismatch(
            f"the database has schema {revision}, which this release does not know: use the newer release"
        )
