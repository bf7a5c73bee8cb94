from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from hpcmesos.errors import ConfigError, StateError
from hpcmesos.queue import postgres, schema
from hpcmesos.queue.servers import check_url


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path that everybody may pass."""
    found = Path(tempfile.mkdtemp(prefix="hpcm-", dir="/tmp"))
    found.chmod(0o711)
    yield found
    postgres.stop(found / "data", "immediate")
    shutil.rmtree(found)


def ask(url: str, query: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def test_a_server_from_nothing_to_stop(place: Path) -> None:
    server = postgres.start(place / "data", place / "s")
    schema.migrate(server.url)
    for role, url in (("owner", server.url), ("leader", server.leader_url), ("api", server.api_url)):
        assert ask(url, "SELECT current_user::text") == f"hpcmesos_{role}"
        schema.check_schema(url)
    for setting, value in (
        ("listen_addresses", ""),
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("jit", "off"),
        ("max_connections", "100"),
        ("shared_buffers", "64MB"),
    ):
        assert ask(server.url, f"SHOW {setting}") == value
    assert postgres.start(place / "data", place / "s") == server
    assert postgres.stop(place / "data")
    assert not postgres.stop(place / "data")


def test_rows_outlive_a_crash_and_a_stale_pid_file(place: Path) -> None:
    server = postgres.start(place / "data", place / "s")
    schema.migrate(server.url)
    ask(server.leader_url, "INSERT INTO queues (name) VALUES ('kept') RETURNING name")
    stale = (place / "data" / "postmaster.pid").read_text()
    postgres.stop(place / "data", "immediate")
    (place / "data" / "postmaster.pid").write_text(stale.replace(str(server.pid), str(os.getpid()), 1))
    assert not postgres.stop(place / "data"), "the pid is another program's"
    again = postgres.start(place / "data", place / "s")
    assert ask(again.api_url, "SELECT count(*) FROM queues") == 2


def test_a_server_whose_predecessor_is_not_quite_gone_is_started_again(place: Path) -> None:
    server = postgres.start(place / "data", place / "s")
    os.kill(server.pid, signal.SIGKILL)
    pid_file = place / "data" / "postmaster.pid"
    owner = pid_file.stat().st_uid
    with subprocess.Popen(["sleep", "3"], user=owner if os.geteuid() == 0 else None) as remnant:
        pid_file.write_text(pid_file.read_text().replace(str(server.pid), str(remnant.pid), 1))
        reaper = threading.Thread(target=remnant.wait)
        reaper.start()
        again = postgres.start(place / "data", place / "s")
        assert remnant.returncode is not None
        reaper.join()
    assert ask(again.url, "SELECT 1") == 1


def test_only_the_caller_gets_in(place: Path) -> None:
    server = postgres.start(place / "data", place / "s")
    assert (place / "data").stat().st_mode & 0o777 == 0o700
    rules = [line.split() for line in (place / "data" / "pg_hba.conf").read_text().splitlines()]
    assert rules == [["local", "all", "all", "peer", "map=hpcmesos"]]
    callers = {
        line.split()[1].strip('"') for line in (place / "data" / "pg_ident.conf").read_text().splitlines()
    }
    assert callers == {"root", pwd.getpwuid(os.geteuid()).pw_name}
    with pytest.raises(psycopg.OperationalError, match=r"does not exist|authentication failed"):
        psycopg.connect(server.url.replace("hpcmesos_owner@", "somebody@"))


def test_a_socket_directory_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="too long"):
        postgres.start(tmp_path / "data", tmp_path / ("x" * 100))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_place_that_the_servers_user_cannot_reach(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(StateError, match=f"may not use {closed}"):
        postgres.start(closed / "data", place / "s")


def test_the_wheel_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StateError, match="--database-url"):
        postgres.find_binaries()


@pytest.mark.parametrize("url", ["", "sqlite://", "mysql://h/d", "no url"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        check_url(url)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another user's directory")
def test_root_follows_no_link_that_lies_in_the_servers_directory(tmp_path: Path) -> None:
    user = pwd.getpwnam("nobody")
    secret = tmp_path / "secret"
    secret.write_text("root's")
    theirs = Path(tempfile.mkdtemp(prefix="hpcm-", dir="/tmp"))
    try:
        (theirs / "pg_hba.conf").symlink_to(secret)
        os.chown(theirs, user.pw_uid, user.pw_gid)
        with pytest.raises(StateError, match=r"pg_hba\.conf"):
            postgres._write(theirs / "pg_hba.conf", "local all all trust", user)
        assert secret.read_text() == "root's"
        postgres._write(theirs / "pg_ident.conf", "a line", user)
        assert (theirs / "pg_ident.conf").owner() == "nobody"
    finally:
        shutil.rmtree(theirs)
