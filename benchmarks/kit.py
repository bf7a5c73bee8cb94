"""What the benchmarks share: a cluster of their own, CPU time of its parts, the machine in words."""

from __future__ import annotations

import contextlib
import os
import platform
import pwd
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg

from hpcmesos.cli.embedded import Cluster

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
HPCMESOS = [sys.executable, "-m", "hpcmesos.cli"]
PARTS = {
    "leader": "-m hpcmesos.master.leader",
    "api": "-m hpcmesos.master.api_process",
    "agents": " agent --config ",
    "shepherds": "launch shepherd ",
    "starters": " starter ",
    "postgres": "postgres",
}
"""Parts of a cluster by what their command lines hold."""


class Bench:
    """A cluster in a temporary directory and the q-commands on PATH. ``user``: who submits; None: the present one."""

    def __init__(self, directory: Path, user: str | None = None) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.user = user
        self.work = directory / "work"
        self.work.mkdir(exist_ok=True)
        self.work.chmod(0o777)
        self.environ = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HPCMESOS_")},
            "HPCMESOS_STATE": str(self.state),
            "PATH": f"{self.state}/bin/torque:{os.environ['PATH']}",
        }

    def run(self, *command: str, stdin: str = "", user: str | None = None) -> str:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environ,
            cwd=self.work,
            check=False,
            **identity(user),
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)[:200]} -> {done.returncode}: {done.stderr.strip()[-500:]}")
        return done.stdout.strip()

    def submit(self, *words: str, stdin: str = "") -> str:
        """qsub as the benchmark's user."""
        return self.run("qsub", *words, stdin=stdin, user=self.user)

    def hpcmesos(self, *arguments: str) -> str:
        return self.run(*HPCMESOS, *arguments)

    @property
    def socket(self) -> Path:
        """The API's unix socket."""
        return Cluster.load(self.state).api_socket

    @property
    def database_url(self) -> str:
        return str(tomllib.loads((self.state / "master" / "master.toml").read_text())["database_url"])

    @contextlib.contextmanager
    def database(self) -> Iterator[psycopg.Connection]:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            yield connection

    def settings(self) -> dict[str, str]:
        """What makes PostgreSQL durable, as it says itself."""
        with self.database() as connection:
            names = ("fsync", "synchronous_commit", "full_page_writes", "server_version")
            return {name: str(connection.execute(f"SHOW {name}").fetchone()[0]) for name in names}

    @contextlib.contextmanager
    def up(self, agents: int, gpus: int, *extra: str) -> Iterator[Bench]:
        words = ["--agents", str(agents), "--gpus", str(gpus), "--state", str(self.state), *extra]
        self.hpcmesos("up", *words, "--detach")
        try:
            yield self
        finally:
            self.hpcmesos("down", "--state", str(self.state))


def identity(user: str | None) -> dict[str, object]:
    """Arguments of subprocess that make a process a user's."""
    if user is None:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def timed(action: Callable[[], object]) -> float:
    """Seconds that ``action`` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def command_latency(bench: Bench, command: list[str], count: int, stdin: str = "") -> dict[str, float]:
    """Wall time of a command as a whole process of the benchmark's user, in ms."""
    samples = sorted(
        1000 * timed(lambda: bench.run(*command, stdin=stdin, user=bench.user)) for _ in range(count)
    )
    return {"median_ms": statistics.median(samples), "p95_ms": samples[int(0.95 * (len(samples) - 1))]}


def daemons_of(state: Path, part: str) -> list[int]:
    """Processes of one part of a cluster."""
    return [pid for pid, found in _parts(state).items() if found == part]


def _parts(state: Path) -> dict[int, str]:
    """The cluster's processes, by pid: which part they belong to."""
    lines, parents = {}, {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            lines[int(name)] = (
                Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
            parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
    roots = {pid for pid, line in lines.items() if f"{state}/" in line}
    found = {}
    for pid, parent in parents.items():
        part = next((part for part, mark in PARTS.items() if mark in lines[pid]), None)
        if part and {pid, parent} & roots:
            found[pid] = part
    return found


def cpu_seconds(state: Path) -> dict[str, float]:
    """CPU seconds that each part of the cluster has used; jobs: what their shepherds have reaped."""
    used = dict.fromkeys([*PARTS, "jobs"], 0.0)
    for pid, part in _parts(state).items():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            own, reaped = (sum(map(int, fields[at : at + 2])) for at in (11, 13))
            used[part] += own / CLOCK_TICKS
            used["jobs" if part == "shepherds" else part] += reaped / CLOCK_TICKS
    return used


def machine() -> str:
    """The machine in words."""
    return f"{os.cpu_count()} CPUs, Linux {platform.release()}, load {os.getloadavg()[0]:.1f}"


def some_user() -> str | None:
    """Whom root lets submit: jobs are no business of root's."""
    return "nobody" if os.geteuid() == 0 else None
