"""The table of attacks in the docs is the one that is run."""

from __future__ import annotations

from tests.security.table import TARGET, table


def test_the_table_is_the_one_that_is_run() -> None:
    assert TARGET.read_text() == table(), "run: python -m tests.security.table"
