"""The supervisor with its real children over a PostgreSQL of its own, which may go away."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hpcmesos.client import Client
from hpcmesos.queue import postgres
from tests.integration.leader_kit import wait_until


@dataclass
class Site:
    """A directory with a database and masters on it."""

    place: Path
    database: postgres.EmbeddedPostgres
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, state: str = "state", sock: str = "api.sock") -> subprocess.Popen[bytes]:
        environ = {
            "HPCMESOS_DATABASE_URL": self.database.url,
            "HPCMESOS_LEADER_DATABASE_URL": self.database.leader_url,
            "HPCMESOS_API_DATABASE_URL": self.database.api_url,
            "HPCMESOS_STATE": str(self.place / state),
            "HPCMESOS_SOCKET": str(self.place / sock),
            "HPCMESOS_MIGRATE": "1",
            "HPCMESOS_API_PROCESSES": "1",
            "HPCMESOS_ROOT_JOBS": "1",
        }
        with (self.place / "log").open("ab") as log:
            command = [sys.executable, "-m", "hpcmesos.cli", "master"]
            self.started.append(subprocess.Popen(command, env=os.environ | environ, stderr=log))
        return self.started[-1]

    def log(self) -> str:
        return (self.place / "log").read_text()

    def leader(self) -> dict[str, Any] | None:
        """What the API says of the leader; None: no answer, or nobody leads."""
        connection = http.client.HTTPConnection("localhost", timeout=5)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(5)
        try:
            connection.sock.connect(str(self.place / "api.sock"))
            connection.request("GET", "/v1/leader")
            answer = connection.getresponse()
            found: dict[str, Any] = json.loads(answer.read())
        except (OSError, ValueError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        return found if answer.status == 200 and found.get("address") else None

    def led(self, above: int = 0) -> int:
        """Waits for a leader of a later term; answers the term."""

        def term() -> int:
            leader = self.leader()
            return leader["term"] if leader and leader["term"] > above else 0

        return wait_until(term, "a leader", timeout=90, show=self.log)


@pytest.fixture
def site() -> Iterator[Site]:
    place = Path(tempfile.mkdtemp(prefix="hpcm-master-", dir="/tmp"))
    place.chmod(0o711)
    try:
        site = Site(place, postgres.start(place / "pg", place / "s"))
        yield site
        for process in site.started:
            process.terminate()
            process.wait(30)
    finally:
        postgres.stop(place / "pg", "immediate")
        shutil.rmtree(place, ignore_errors=True)


def children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def test_children_that_die_are_started_again_and_all_end_together(site: Site) -> None:
    process = site.start()
    term = site.led()
    before = children(process.pid)
    assert len(before) == 2
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    site.led(above=term)
    after = children(process.pid)
    assert len(after) == 2 and not after & before
    process.terminate()
    assert process.wait(30) == 0
    assert not (site.place / "api.sock").exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in after)


def test_children_die_with_the_supervisor_and_the_next_one_replaces_its_socket(site: Site) -> None:
    process = site.start()
    term = site.led()
    orphans = children(process.pid)
    process.kill()
    process.wait()
    wait_until(lambda: not any(_alive(pid) for pid in orphans), "the children die", show=lambda: orphans)
    site.start()
    site.led(above=term)


def test_a_client_that_waits_does_not_hold_up_the_end(site: Site) -> None:
    process = site.start()
    site.led()
    api = site.place / "api.sock"
    with Client(socket=api) as client:
        job = client.command("qsub", [], script=b"true\n", cwd="/").stdout.strip()
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.settimeout(10)
            waiting.connect(str(api))
            waiting.sendall(f"GET /v1/jobs/{job}/wait HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert client.job(job).state == "Q"  # one API process has looked at its sockets meanwhile
            began = time.monotonic()
            process.terminate()
            answer = waiting.recv(65536)
    assert process.wait(30) == 0
    took = time.monotonic() - began
    # Nothing where the other API process had not read the question yet; a client asks again then, too.
    assert not answer or answer.startswith(b"HTTP/1.1 503")
    assert "Traceback" not in site.log()
    assert "stepped down" in site.log()
    assert took < 6, "whoever has not ended by himself is killed after 8 s"


def test_one_master_a_state_directory_and_a_socket(site: Site) -> None:
    site.start()
    site.led()
    assert site.start().wait(30) != 0
    assert "another master runs" in site.log()
    assert site.start(state="state2").wait(30) != 0
    assert "another master listens" in site.log()


def test_postgresql_may_go_away(site: Site) -> None:
    site.start()
    term = site.led()
    postgres.stop(site.place / "pg", "immediate")
    wait_until(lambda: "ending:" in site.log(), "the leader ends itself", show=site.log)
    wait_until(lambda: "waiting:" in site.log(), "a candidate waits", show=site.log)
    postgres.start(site.place / "pg", site.place / "s")
    site.led(above=term)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
