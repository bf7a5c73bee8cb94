"""An installation by docs/install.md and the units' commands: no socket of it serves who has no credential."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hpcmesos.client import Client
from hpcmesos.queue import postgres
from tests.e2e.cluster_kit import HPCMESOS, wait_until
from tests.e2e.test_doors import REQUESTS, asked, listening

DOCS = Path(__file__).resolve().parents[2] / "docs"
ME = pwd.getpwuid(os.getuid()).pw_name


def settings_of(name: str) -> str:
    """What docs/install.md has the administrator write into that file."""
    text = (DOCS / "install.md").read_text()
    found = re.search(rf"cat >/etc/hpcmesos/{name} <<END\n(.*?)END\n", text, re.DOTALL)
    assert found is not None
    return found[1]


def command_of(unit: str, place: Path) -> list[str]:
    """ExecStart of the unit, with the files of ``place``."""
    text = (DOCS / "systemd" / unit).read_text()
    found = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert found is not None
    program, *words = found[1].replace("%l", "node7").split()
    assert program == "/opt/hpcmesos/bin/hpcmesos"
    return [*HPCMESOS, *(word.replace("/etc/hpcmesos", str(place)) for word in words)]


class Installation:
    """PostgreSQL, a master and a node; everything below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.started: list[subprocess.Popen[bytes]] = []
        self.environ = {**os.environ, "HPCMESOS_SOCKET": str(root / "run" / "api.sock")}

    def install(self) -> None:
        root, database = self.root, postgres.start(self.root / "postgres", self.root / "pg")
        given = {
            "database_url": database.url,
            "state": str(root / "master"),
            "socket": self.environ["HPCMESOS_SOCKET"],
            "listen": "127.0.0.1:0",
            "link": "127.0.0.1:0",
        }
        more = [
            f'leader_database_url = "{database.leader_url}"',
            f'api_database_url = "{database.api_url}"',
            "migrate = true",
        ]
        self._write("master.toml", given | {"managers": [ME]}, more)
        self.start("hpcmesos-master.service")
        wait_until(self._answers, "the master answers", 180)
        (root / "join.token").write_text(self.run("token", "create", "--join", "--node", "node7").stdout)
        url = f"https://{(root / 'master' / 'listen').read_text().strip()}"
        agent = {
            "master": url,
            "address": "127.0.0.1",
            "state": str(root / "agent"),
            "sockets": str(root / "agent-sockets"),
            "join_token_file": str(root / "join.token"),
            "cgroups": "none",
        }
        self._write("agent.toml", agent, ['gpus = "none"'])
        self.start("hpcmesos-agent.service")
        wait_until(self._joined, "the node is there", 180)

    def _answers(self) -> bool:
        return self.run("token", "list").returncode == 0

    def _joined(self) -> bool:
        with Client(socket=self.environ["HPCMESOS_SOCKET"]) as client:
            return [node.state for node in client.nodes()] == ["free"]

    def _write(self, name: str, given: dict[str, str | list[str]], more: list[str]) -> None:
        """The settings of the docs with our values; each of them has to be one of theirs."""
        lines = settings_of(name).splitlines()
        for key, value in given.items():
            places = [n for n, line in enumerate(lines) if line.startswith(f"{key} = ")]
            assert len(places) == 1, (name, key)
            lines[places[0]] = f"{key} = {value!r}".replace("'", '"')
        (self.root / name).write_text("\n".join([*lines, *more]) + "\n")

    def start(self, unit: str) -> None:
        log = (self.root / f"{unit}.log").open("ab")
        with log:
            words = command_of(unit, self.root)
            self.started.append(subprocess.Popen(words, env=self.environ, stderr=log, start_new_session=True))

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        words = (*HPCMESOS, *words)
        return subprocess.run(words, env=self.environ, capture_output=True, text=True, check=False)

    def processes(self) -> list[str]:
        """As LiveCluster.processes(): pid and words of each that has this directory in its words or environment."""
        mark, found = str(self.root).encode(), []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and int(entry.name) != os.getpid():
                    words = (entry / "cmdline").read_bytes()
                    if mark in words or mark in (entry / "environ").read_bytes():
                        found.append(f"{entry.name} {words!r}")
            except OSError:
                continue
        return found

    def stop(self) -> None:
        for process in reversed(self.started):
            process.terminate()
            process.wait(30)
        for line in self.processes():  # the shepherd outlives its agent
            if b"shepherd" in line.encode():
                with suppress(ProcessLookupError):
                    os.kill(int(line.split()[0]), signal.SIGTERM)
        postgres.stop(self.root / "postgres")


@pytest.fixture(scope="module")
def installed() -> Iterator[Installation]:
    root = Path(tempfile.mkdtemp(prefix="hpcm-inst-", dir="/tmp"))
    root.chmod(0o711)
    made = Installation(root)
    try:
        made.install()
        yield made
    finally:
        made.stop()
        wait_until(lambda: not made.processes(), "nothing is left", 30)
        shutil.rmtree(root, ignore_errors=True)


def test_every_port_of_an_installation_asks_who_is_there(installed: Installation) -> None:
    tcp, unix, udp = listening(installed)
    assert udp == []
    assert len(tcp) == 3, tcp  # the API's, the leader's, the node's
    for address in tcp:
        for request in REQUESTS:
            assert asked(address, request, tls=False)[:1] in (b"", b"\x15"), address
            answer = asked(address, request, tls=True)
            expected = b"HTTP/1.1 401" if request.startswith((b"GET", b"POST")) else b"HTTP/1.1 400"
            assert answer == b"" or answer.startswith(expected), (address, answer)
    known = {"api.sock", "control.sock", "ranks.sock", ".s.PGSQL.5432"}
    assert {Path(path).name for path in unix} == known


def test_postgresql_lets_nobody_in_without_a_credential(installed: Installation) -> None:
    _, unix, _ = listening(installed)
    [path] = [path for path in unix if path.endswith(".s.PGSQL.5432")]
    probe = "import psycopg, sys; psycopg.connect(sys.argv[1], connect_timeout=5)"
    for role in ("hpcmesos_owner", "hpcmesos_leader", "hpcmesos_api", "postgres", "daemon"):
        url = f"postgresql://{role}@/hpcmesos?host={Path(path).parent}"
        words = [sys.executable, "-c", probe, url]
        who = {"user": "daemon", "extra_groups": []} if os.geteuid() == 0 else {}
        done = subprocess.run(
            words, cwd="/", env={"PATH": "/usr/bin:/bin"}, capture_output=True, check=False, **who
        )
        assert done.returncode != 0, url
