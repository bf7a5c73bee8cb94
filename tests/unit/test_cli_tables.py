"""Tables as programs read them."""

from __future__ import annotations

import pytest
from rich.table import Table

from hpcmesos.cli.tables import show


def test_a_pipe_gets_a_line_for_each_row_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    long, note = "x" * 300, "[red]gpu:a:1[/oops]:ok:"
    for tables in range(1, 3):
        table = Table("name", "note", box=None, pad_edge=False)
        table.add_row(long, note)
        show(*[table] * tables)
        assert [line.split() for line in capsys.readouterr().out.splitlines() if line] == [
            ["name", "note"],
            [long, note],
        ] * tables
