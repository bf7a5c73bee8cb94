"""What every command says of an error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hpcmesos.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hpcmesos", *words])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_an_error_of_the_system_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert run(monkeypatch, "up", "--state", str(file / "state")) == 1
    assert capsys.readouterr().err == f"hpcmesos: {file}/state: Not a directory\n"
