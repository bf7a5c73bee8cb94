"""Statements of every turn of a leader, compiled once, and executed by the driver alone.

To find a compiled statement again SQLAlchemy walks through the whole expression each time, and then it describes the
result: for a statement of several parts that costs more than to execute it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.sql.expression import ClauseElement

_DIALECT = psycopg.dialect()  # type: ignore[no-untyped-call]  # as SQLAlchemy has it


class Prepared:
    """``statement``: its parameters are lists of rows (`rows.recordset`), or constants that it was built with.

    Within a transaction of `engine.begin`. Errors are the driver's.
    """

    def __init__(self, statement: ClauseElement) -> None:
        compiled = statement.compile(dialect=_DIALECT)
        self._text = str(compiled)
        self._constants = {name: value for name, value in compiled.params.items() if value is not None}

    def run(self, connection: Connection, **rows: Sequence[Mapping[str, Any]]) -> int:
        """Executes it with these ``rows`` by the names of their parameters; answers how many it changed."""
        return int(self._execute(connection, rows).rowcount)

    def all(self, connection: Connection, **rows: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
        """As run(); answers the rows that it returns."""
        found: list[tuple[Any, ...]] = self._execute(connection, rows).fetchall()
        return found

    def scalar(self, connection: Connection, **rows: Sequence[Mapping[str, Any]]) -> Any:
        """As all(); the first column of the first row; None: there is none."""
        row = self._execute(connection, rows).fetchone()
        return None if row is None else row[0]

    def _execute(self, connection: Connection, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
        driver: Any = connection.connection.driver_connection
        given = {name: msgspec.json.encode(value).decode() for name, value in rows.items()}
        return driver.execute(self._text, {**self._constants, **given})
