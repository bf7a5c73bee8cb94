"""Takeover: the leader is killed while jobs flow and many wait; how long until the next job runs.

Brings up a cluster of its own with two masters, puts ``--pending`` jobs into the queue that cannot start now, lets
short jobs flow in front of them, and kills the leader (SIGKILL) ``--kills`` times, each time after the other candidate
has a warm picture. Time is counted from the kill to the first line of the first script whose start was committed after
it. With ``--stop`` the master is told to stop (SIGTERM) instead, and started again. Prints a table and, with ``--json
FILE``, JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from hpcmesos.cli.embedded import Cluster
from hpcmesos.client import Client
from hpcmesos.errors import HpcmesosError
from hpcmesos.model import Chunk, Request
from hpcmesos.queue.records import NewJob
from hpcmesos.queue.store import Store

T = TypeVar("T")
HPCMESOS = [sys.executable, "-m", "hpcmesos.cli"]
CPUS = 8  # of each node, declared
BULK = 5000
WARM = "picture is warm"


def until(look: Callable[[], T | None], what: str, timeout: float = 120.0) -> T:
    """The first answer of ``look`` that is not None or false."""
    deadline = time.monotonic() + timeout
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.01)
    return found


class Bench:
    """The cluster and a connection to its database."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.up()
        self.cluster = Cluster.load(state)
        self.urls = tomllib.loads((state / "master" / "master.toml").read_text())
        self.database = psycopg.connect(self.urls["database_url"], autocommit=True)

    def up(self) -> None:
        size = ["--agents", "2", "--gpus", "0", "--cpus", str(CPUS), "--masters", "2"]
        command = [*HPCMESOS, "up", *size, "--state", str(self.state), "--detach"]
        subprocess.run(command, check=True, capture_output=True)

    def down(self) -> None:
        self.database.close()
        subprocess.run([*HPCMESOS, "down", "--state", str(self.state)], check=True, capture_output=True)

    def one(self, query: str, *values: Any) -> Any:
        row = self.database.execute(query, values).fetchone()
        return row[0] if row else None

    def client(self) -> Client:
        return Client(socket=self.cluster.api_sockets)

    def fill(self, pending: int) -> None:
        """Jobs that want a whole node each, behind one on each node that takes a CPU and stays."""
        with self.client() as client:
            for _ in self.cluster.names:
                words = ["-S", "/bin/sh", "-l", f"nodes=1:ppn={CPUS // 2 + 1}"]
                client.command("qsub", words, script=b"sleep 100000\n", cwd="/tmp")
        started = "SELECT count(*) = 2 FROM jobs WHERE state = 'R'"
        until(lambda: self.one(started), "both nodes are taken")
        job = NewJob(
            name="waits",
            owner=self.cluster.user,
            server=self.cluster.server,
            queue="batch",
            request=Request((Chunk(count=1, cpus=CPUS, gpus=0),)),
            priority=-1000,
            submission={"environment": {"HOME": "/", "PATH": "/usr/bin:/bin"}, "umask": 0o77},
            script=b"true\n",
        )
        store = Store(self.urls["api_database_url"])
        for done in range(0, pending, BULK):
            store.submit_many([job] * min(BULK, pending - done))
        store.notify()
        store.close()
        until(lambda: not self.one("SELECT count(*) FROM inbox"), "the leader has taken them all")

    def leader(self) -> tuple[int, int]:
        """(pid, term) of the leader."""
        live = "SELECT holder, term FROM leadership WHERE expires_at > clock_timestamp()"
        holder, term = until(lambda: self.database.execute(live).fetchone(), "a leader")
        return int(holder.rpartition(":")[2]), term

    def warmed(self) -> int:
        """How often a standby's picture has become warm."""
        logs = (self.state / "log" / f"{name}.log" for name in self.cluster.master_names)
        return sum(log.read_text().count(WARM) for log in logs)


class Flow:
    """Short jobs, one every 50 ms, as long as the block runs; ``longest``: the slowest submission in seconds."""

    def __init__(self, bench: Bench) -> None:
        self.longest = 0.0
        self.jobs: list[str] = []
        self._bench = bench
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        words = ["-S", "/bin/sh", "-o", "/dev/null", "-e", "/dev/null"]
        with self._bench.client() as client:
            while not self._stop.wait(0.05):
                began = time.monotonic()
                reply = client.command("qsub", words, script=b"true\n", cwd="/tmp")
                self.longest = max(self.longest, time.monotonic() - began)
                self.jobs.append(reply.stdout.strip())

    def __enter__(self) -> Flow:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def once(bench: Bench, number: signal.Signals) -> dict[str, Any]:
    """One leader is signalled; seconds until there is a next one, and until the next job's script runs."""
    pid, term = bench.leader()
    events = "SELECT last_value FROM event_ids"
    before = bench.one(events)
    until(lambda: bench.one(events) > before + 20, "jobs flow")
    warmed = bench.warmed()
    supervisor = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    began = time.time()
    os.kill(pid if number == signal.SIGKILL else supervisor, number)
    first = "SELECT min(extract(epoch FROM started_at)) FROM attempts WHERE created_at > to_timestamp(%s)"
    if number == signal.SIGTERM:  # it leads for a moment more
        led = "SELECT 1 FROM leadership WHERE term > %s"
        until(lambda: bench.one(led, term), "the next leader")
    elected = time.time()
    ran = until(lambda: bench.one(first, began), "the next job")
    if number == signal.SIGTERM:
        until(lambda: not Path(f"/proc/{supervisor}").exists(), "the master ends")
        bench.up()
    until(lambda: bench.warmed() > warmed, "a warm standby")
    at = time.strftime("%H:%M:%S", time.gmtime(began))
    return {"at": at, "next_leader_s": elected - began, "next_job_s": float(ran) - began}


@contextlib.contextmanager
def running(state: Path, logs: Path | None) -> Iterator[Bench]:
    bench = Bench(state)
    try:
        yield bench
    finally:
        bench.down()
        if logs is not None:
            shutil.copytree(state / "log", logs, dirs_exist_ok=True)


def measure(pending: int, kills: int, number: signal.Signals, logs: Path | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="hpcmesos-takeover-", dir="/tmp") as place:
        os.chmod(place, 0o711)
        with running(Path(place) / "state", logs) as bench:
            bench.fill(pending)
            until(lambda: bench.warmed() >= 1, "a warm standby")
            with Flow(bench) as flow:
                runs = [once(bench, number) for _ in range(kills)]
            lost = len(flow.jobs) - bench.one(
                "SELECT count(*) FROM (SELECT seq FROM jobs UNION SELECT seq FROM jobs_history) AS all_jobs"
                " WHERE seq = ANY(%s)",
                [int(job.split(".")[0]) for job in flow.jobs],
            )
            settings = {name: bench.one(f"SHOW {name}") for name in ("fsync", "synchronous_commit")}
    taken = sorted(run["next_job_s"] for run in runs)
    return {
        "signal": number.name,
        "pending": pending,
        "runs": runs,
        "median_s": statistics.median(taken),
        "max_s": taken[-1],
        "within_3_s": sum(value <= 3.0 for value in taken),
        "slowest_qsub_s": flow.longest,
        "submitted": len(flow.jobs),
        "lost": lost,
        "settings": settings,
        "load": os.getloadavg(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pending", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument(
        "--stop", action="store_true", help="SIGTERM to the master instead of SIGKILL to the leader"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--logs", type=Path, help="copy the daemons' logs there")
    arguments = parser.parse_args()
    try:
        found = measure(
            arguments.pending,
            arguments.kills,
            signal.SIGTERM if arguments.stop else signal.SIGKILL,
            arguments.logs,
        )
    except HpcmesosError as error:
        sys.exit(str(error))
    for run in found["runs"]:
        print(f"{run['at']} next job after {run['next_job_s']:.2f} s")
    print(
        f"{found['pending']} pending, {len(found['runs'])} x {found['signal']}: median {found['median_s']:.2f} s,"
        f" longest {found['max_s']:.2f} s; slowest qsub {found['slowest_qsub_s']:.2f} s;"
        f" {found['submitted']} submitted meanwhile, {found['lost']} lost; load {found['load'][0]:.1f}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
