"""What a client shows of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcmesos.connection import Masters, Place
from hpcmesos.errors import ConfigError, MasterUnreachable


def test_a_token_that_is_being_replaced_ends_no_client(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    masters = Masters([], 1.0, file, None)

    def shown() -> dict[str, str]:
        return masters.credential("GET", "/v1/jobs")

    assert shown() == {"Authorization": "Bearer first"}
    file.write_text("")  # between its truncation and its writing
    assert shown() == {"Authorization": "Bearer first"}
    file.unlink()
    assert shown() == {"Authorization": "Bearer first"}
    file.write_text("second\n")
    assert shown() == {"Authorization": "Bearer second"}


def test_a_token_that_never_was_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(ConfigError, match="cannot read the token file"):
        Masters([], 1.0, file, None).credential("GET", "/v1/jobs")
    file.write_text("")
    with pytest.raises(ConfigError, match="holds no token"):
        Masters([], 1.0, file, None).credential("GET", "/v1/jobs")


def test_an_authority_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    with pytest.raises(ConfigError, match=f"{file}: No such file or directory"):
        Masters([], 1.0, None, None).trust(cafile=str(file))
    file.write_text("no certificate\n")
    with pytest.raises(ConfigError, match=f"{file}: it holds no certificate"):
        Masters([], 1.0, None, None).trust(cafile=str(file))


def test_a_master_that_is_not_there_is_told_in_words() -> None:
    masters = Masters([Place(path="/run/api.sock")], 1.0, None, None)
    refused = ConnectionRefusedError(111, "Connection refused")
    with pytest.raises(MasterUnreachable) as told:
        masters.give_up_after(0.0, refused)
    text = "cannot connect to server /run/api.sock (Connection refused); is the master running?"
    assert str(told.value) == text
