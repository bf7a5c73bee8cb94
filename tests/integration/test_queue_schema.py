from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import text

from hpcmesos.errors import SchemaMismatch
from hpcmesos.queue import schema
from hpcmesos.queue.engine import make_engine
from hpcmesos.queue.tables import metadata

if TYPE_CHECKING:
    from .database_kit import Database

pytest_plugins = ["tests.integration.database_kit"]

CATALOGUE = {
    "columns": """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
               pg_get_expr(d.adbin, d.adrelid)
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
          AND a.attnum > 0 AND NOT a.attisdropped AND c.relname <> 'alembic_version'""",
    "tables": """
        SELECT relname, relkind, reloptions, pg_get_partkeydef(oid) FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'S') AND NOT relispartition
          AND relname <> 'alembic_version'""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(o.oid)
        FROM pg_constraint o JOIN pg_class c ON c.oid = conrelid
        WHERE connamespace = 'public'::regnamespace AND NOT c.relispartition AND c.relname <> 'alembic_version'""",
    "indexes": """
        SELECT x.indrelid::regclass::text, pg_get_indexdef(x.indexrelid)
        FROM pg_index x JOIN pg_class c ON c.oid = x.indrelid
        WHERE c.relnamespace = 'public'::regnamespace AND NOT c.relispartition AND c.relname <> 'alembic_version'""",
}


def catalogue(url: str) -> dict[str, set[str]]:
    with psycopg.connect(url) as connection:
        return {what: {str(row) for row in connection.execute(query)} for what, query in CATALOGUE.items()}


def test_migrations_build_what_the_tables_say(database: Database, empty_database: Database) -> None:
    engine = make_engine(empty_database.owner, "test")
    metadata.create_all(engine)
    engine.dispose()
    migrated, declared = catalogue(database.owner), catalogue(empty_database.owner)
    for what in CATALOGUE:
        assert migrated[what] ^ declared[what] == set(), what


def test_migrate_twice_and_check(empty_database: Database) -> None:
    with pytest.raises(SchemaMismatch, match="empty"):
        schema.check_schema(empty_database.owner)
    schema.migrate(empty_database.owner)
    schema.migrate(empty_database.owner)
    for url in (empty_database.owner, empty_database.api, empty_database.leader):
        schema.check_schema(url)


@pytest.mark.parametrize("revision", ["9999", "0000"])
def test_a_foreign_schema_is_refused(database: Database, revision: str) -> None:
    with psycopg.connect(database.owner) as connection:
        connection.execute("UPDATE alembic_version SET version_num = %s", [revision])
    with pytest.raises(SchemaMismatch, match=f"{revision}, which this release does not know"):
        schema.check_schema(database.api)
    with pytest.raises(SchemaMismatch):
        schema.migrate(database.owner)


def test_tables_of_an_unreleased_version_are_refused(database: Database) -> None:
    """Whose one migration has the revision of ours."""
    with psycopg.connect(database.owner) as connection:
        connection.execute("ALTER TABLE gpus DROP COLUMN profile")
    for act, url in (
        (schema.check_schema, database.api),
        (schema.check_schema, database.leader),
        (schema.migrate, database.owner),
    ):
        with pytest.raises(SchemaMismatch, match=r"without gpus\.profile: make a new database$"):
            act(url)


REFUSED_TO_API = [
    "UPDATE jobs SET priority = 1",
    "UPDATE jobs SET state = 'H'",
    "DELETE FROM jobs",
    "DELETE FROM inbox",
    "INSERT INTO attempts (seq, number) VALUES (1, 1)",
    "UPDATE leadership SET term = 7",
    "SELECT 1 FROM leadership FOR KEY SHARE",
    "UPDATE nodes SET up = false",
    "INSERT INTO events (kind) VALUES ('x')",
    "UPDATE tokens SET kind = 'user'",
    "SELECT hpcmesos_make_partitions('2026-01-01', '2026-01-01')",
    "SELECT nextval('event_ids')",
    "CREATE TABLE mine (x int)",
]
REFUSED_TO_LEADER = [
    "INSERT INTO leadership (term, expires_at) VALUES (9, now())",
    "DELETE FROM leadership",
    "SELECT hash FROM tokens",
    "UPDATE alembic_version SET version_num = 'x'",
    "CREATE TABLE mine (x int)",
]


@pytest.mark.parametrize(
    ("role", "statement"),
    [("api", statement) for statement in REFUSED_TO_API]
    + [("leader", statement) for statement in REFUSED_TO_LEADER],
)
def test_roles_may_do_no_more_than_they_need(database: Database, role: str, statement: str) -> None:
    with (
        psycopg.connect(getattr(database, role)) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(statement.encode())


def test_the_database_defends_its_rows(database: Database) -> None:
    engine = make_engine(database.owner, "test")
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO nodes (name, cpus, mem) VALUES ('n1', 4, 100)"))
    engine.dispose()
    columns, values = "seq, server, name, owner, queue, request, state", "1, 's', 'n', 'o', 'q', '{{}}'"
    job = f"INSERT INTO jobs ({columns}{{0}}) VALUES ({values}, {{1}})"
    for statement in (
        "UPDATE nodes SET cpus_used = 5",
        "UPDATE nodes SET mem_used = -1",
        "INSERT INTO gpus (uuid, node, index, state) VALUES ('g', 'n1', 0, 'busy')",
        job.format("", "'X'"),
        job.format("", "'C'"),
        job.format(", ended_at", "'R', now()"),
    ):
        with psycopg.connect(database.owner) as check, pytest.raises(psycopg.errors.CheckViolation):
            check.execute(statement.encode())
