"""Statements of every turn of a leader, compiled once.

To find a compiled statement again SQLAlchemy walks through the whole expression each time, and for a statement with
several parts that costs more than to execute it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, CursorResult
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.sql.expression import ClauseElement

_DIALECT = psycopg.dialect()  # type: ignore[no-untyped-call]  # as SQLAlchemy has it


class Prepared:
    """``statement``: its parameters are lists of rows (`rows.recordset`), or constants that it was built with."""

    def __init__(self, statement: ClauseElement) -> None:
        compiled = statement.compile(dialect=_DIALECT)
        self._text = str(compiled)
        self._constants = {name: value for name, value in compiled.params.items() if value is not None}

    def execute(self, connection: Connection, **rows: Sequence[Mapping[str, Any]]) -> CursorResult[Any]:
        """Executes it with these ``rows`` by the names of their parameters."""
        given = {name: msgspec.json.encode(value).decode() for name, value in rows.items()}
        return connection.exec_driver_sql(self._text, {**self._constants, **given})
