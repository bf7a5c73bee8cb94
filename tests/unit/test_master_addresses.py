"""Where a master listens, and what is said when it cannot."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hpcmesos import doorway
from hpcmesos.config import MasterSettings, load
from hpcmesos.errors import ConfigError, StateError
from hpcmesos.master.links import bind, parted


@pytest.mark.parametrize(
    "address", ["nonsense", "", "host:", ":-1", "host:x", "host:65536", "host:9999999999", "host:\u0663"]
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match="write HOST:PORT"):
        parted(address)


def test_addresses() -> None:
    assert parted("127.0.0.1:0") == ("127.0.0.1", 0)
    assert parted("[::1]:7600") == ("::1", 7600)
    assert parted(":65535") == ("", 65535)


def test_an_address_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match="in use") as told:
            bind(address)
    assert told.value.strerror == f"cannot listen at {address}: Address already in use"


def test_a_socket_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120)
    with pytest.raises(StateError, match=f"cannot listen at {long}: AF_UNIX path too long"):
        doorway.bind(long)


def test_an_unknown_level_of_the_log_is_refused(tmp_path: Path) -> None:
    flags = {"database_url": "postgresql://x", "state": tmp_path, "socket": tmp_path / "s"}
    assert load(MasterSettings, flags | {"log_level": "debug"}, {}).log_level == "debug"
    with pytest.raises(ConfigError, match="log_level: 'loud' is none of DEBUG, INFO"):
        load(MasterSettings, flags | {"log_level": "loud"}, {})
