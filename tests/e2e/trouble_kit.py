"""A cluster whose database gets into trouble: jobs flow meanwhile, and in the end every accepted one has run once."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import psycopg

from hpcmesos import pidfile
from hpcmesos.queue import postgres
from tests.e2e.cluster_kit import HPCMESOS, LiveCluster, wait_until

TRUE = "#!/bin/sh\ntrue\n"
RECOVERY = 10.0
"""Seconds within which scheduling is back after a fault has cleared."""


class Submitter:
    """Submits a job every 0.2 s until left. ``jobs``: what qsub printed; ``refused``: what it said where it failed."""

    def __init__(self, cluster: LiveCluster) -> None:
        self.jobs: list[str] = []
        self.refused: list[str] = []
        self._cluster = cluster
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            done = self._cluster.run("qsub", stdin=TRUE, timeout=120)
            if done.returncode == 0:
                self.jobs.append(done.stdout.strip())
            else:
                self.refused.append(done.stderr.strip())

    def __enter__(self) -> Submitter:
        self._thread.start()
        wait_until(lambda: len(self.jobs) > 2, "jobs flow")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def more(self, count: int, timeout: float = 30.0) -> None:
        """Returns after so many more submissions."""
        before = len(self.jobs)
        wait_until(lambda: len(self.jobs) >= before + count, "jobs flow", timeout)


def check_all_ran_once(cluster: LiveCluster, jobs: list[str]) -> None:
    assert len(set(jobs)) == len(jobs)
    found = cluster.wait_all(jobs)
    assert set(found) == set(jobs)
    for ended in found.values():
        assert (ended.get("Exit_status"), ended["run_count"]) == (0, 1), ended


def starts_again(cluster: LiveCluster, timeout: float = RECOVERY) -> float:
    """Seconds until a job that is submitted now has begun; fails after ``timeout``."""
    began = time.monotonic()
    mark = cluster.work() / f"mark{time.monotonic_ns()}"
    cluster.qsub(f"#!/bin/sh\ntouch {mark}\n")
    wait_until(mark.exists, "scheduling is back", timeout - (time.monotonic() - began))
    return time.monotonic() - began


def pass_time(seconds: float) -> None:
    """A fault stays for so long; that is what is tested."""
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until, "the fault stays", seconds + 10)


class TroubleCluster(LiveCluster):
    """Two masters, which can be started again with other settings or another environment."""

    def __init__(self, agents: int = 2, gpus: int = 4) -> None:
        super().__init__(agents, gpus, ("--masters", "2"))
        self._masters: list[subprocess.Popen[bytes]] = []

    def down(self) -> None:
        super().down()
        for master in self._masters:
            master.wait(20)

    def restart_masters(
        self, change: Callable[[str], str] = str, environ: Mapping[str, str] | None = None
    ) -> None:
        """``change``: of the text of each one's settings."""
        for name in self.described.master_names:
            state = self.state / name
            assert pidfile.stop(str(state / "master.pid"), term_timeout=20)
            config = state / "master.toml"
            config.write_text(change(config.read_text()))
            with (self.state / "log" / f"{name}.log").open("ab") as log:
                command = [*HPCMESOS, "master", "--config", config]
                environment = {**os.environ, **(environ or {})}
                self._masters.append(
                    subprocess.Popen(command, stdout=log, stderr=log, cwd="/", env=environment)
                )
            wait_until(lambda name=name: pidfile.living(str(self.state / name / "master.pid")), "a master")  # type: ignore[misc]  # bound now
        wait_until(lambda: self._serves(), "the masters serve again", 60)

    def renew_processes(self) -> None:
        """Kills the masters' leader candidates and API processes: the next ones remember nothing."""
        for name in self.described.master_names:
            master = self.pid(name)
            for child in Path(f"/proc/{master}/task/{master}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)

    def _serves(self) -> bool:
        logs = [(self.state / "log" / f"{name}.log").read_text() for name in self.described.master_names]
        if not all("picture is warm" in log.rpartition("started child=leader")[2] for log in logs):
            return False
        nodes = self.run("pbsnodes", "-l", "up", user="")
        return nodes.returncode == 0 and all(name in nodes.stdout for name in self.described.names)


class ReplicatedCluster(TroubleCluster):
    """A cluster with two masters on a primary and a synchronous standby; its URL names both servers."""

    def __init__(self, agents: int = 2, gpus: int = 4) -> None:
        super().__init__(agents, gpus)
        self.primary = self.root / "state" / "postgres"
        self.standby = self.root / "standby"
        self._promoted = False

    @property
    def sockets(self) -> tuple[Path, Path]:
        return self.described.sockets / "pg", self.described.sockets / "pg2"

    @property
    def database_url(self) -> str:
        return postgres.url_of(self.sockets[self._promoted], postgres.OWNER)

    def up(self) -> str:
        said = super().up()
        if not self.standby.exists():
            self._replicate()
            self.restart_masters(self._name_both)
        return said

    def down(self) -> None:
        super().down()
        postgres.stop(self.standby, "immediate")

    def ask(self, query: str) -> object:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            row = connection.execute(query.encode()).fetchone()
        return row[0] if row else None

    def _replicate(self) -> None:
        server = self.primary.owner()
        with (self.primary / "pg_hba.conf").open("a") as file:
            file.write("local replication all peer map=hpcmesos\n")
        with (self.primary / "pg_ident.conf").open("a") as file:
            file.write(f'hpcmesos "{server}" {postgres.OWNER}\n')
        self._set("wal_level = replica", "max_wal_senders = 5")
        postgres.stop(self.primary)
        postgres.start(self.primary, self.sockets[0])
        command = [postgres.find_binaries() / "pg_basebackup", "-D", self.standby, "-h", self.sockets[0]]
        subprocess.run([*command, "-U", postgres.OWNER, "-R", "-X", "stream", "-c", "fast"], check=True)
        with (self.standby / "postgresql.auto.conf").open("a") as file:
            line = f"host={self.sockets[0]} user={postgres.OWNER} application_name=standby"
            file.write(f"primary_conninfo = '{line}'\n")
        for path in (self.standby, *self.standby.rglob("*")):
            shutil.chown(path, server)
        postgres.start(self.standby, self.sockets[1])
        self._set("synchronous_standby_names = 'FIRST 1 (standby)'")
        self.ask("SELECT pg_reload_conf()")
        synchronous = "SELECT sync_state = 'sync' FROM pg_stat_replication"
        wait_until(lambda: self.ask(synchronous), "a synchronous standby")

    def _set(self, *lines: str) -> None:
        with (self.primary / "postgresql.auto.conf").open("a") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def _name_both(self, settings: str) -> str:
        both = f"host={self.sockets[0]},{self.sockets[1]}&target_session_attrs=read-write"
        return re.sub(r"host=[^\"]*", lambda _: both, settings)

    # --- failover -----------------------------------------------------------------------------------------------

    def kill_primary(self) -> None:
        postgres.stop(self.primary, "immediate")

    def promote(self) -> None:
        """As an HA manager does."""
        with (self.standby / "postgresql.auto.conf").open("a") as file:
            file.write("synchronous_standby_names = ''\n")
        self._promoted = True
        assert self.ask("SELECT pg_promote()") is True

    def bring_back_old_primary(self) -> None:
        """As nobody should: it takes writes again, with nothing in front of it."""
        self._set("synchronous_standby_names = ''")
        postgres.start(self.primary, self.sockets[0])
