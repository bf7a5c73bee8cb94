"""A real cluster for end-to-end tests: `hpcmesos up` in a directory of its own, the q-commands as users run them."""

from __future__ import annotations

import itertools
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hpcmesos import pidfile
from hpcmesos.cli.embedded import Cluster
from hpcmesos.client import Client
from tests.integration.database_kit import quick_place

T = TypeVar("T")
USERS = ("hpcmann", "hpcmbob")
"""Two real users, whom the tests make when they run as root: root's own login files are no part of a test."""
THIRD_USER = "hpcmeve"
HPCMESOS = [sys.executable, "-m", "hpcmesos.cli"]
START_TIMEOUT = 120


def wait_until(look: Callable[[], T], what: str, timeout: float = 30.0, interval: float = 0.02) -> T:
    """The first true value of ``look``; fails with the last value seen when ``timeout`` seconds have passed."""
    deadline = time.monotonic() + timeout
    while True:
        last = look()
        if last:
            return last
        if time.monotonic() > deadline:
            raise AssertionError(f"not seen within {timeout:g} s: {what}; last: {last!r}")
        time.sleep(interval)


class LiveCluster:
    """One embedded cluster and a scratch directory that every user may enter. ``settings``: of its masters."""

    def __init__(
        self,
        agents: int,
        gpus: int,
        extra: tuple[str, ...] = (),
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self._memory: Path | None = None
        self.root = Path(tempfile.mkdtemp(prefix="hpcmesos-e2e-"))
        self.root.chmod(0o711)
        self.state = self.root / "state"
        if settings:
            self.state.mkdir(mode=0o711)
            lines = [f"{name} = {json.dumps(value)}\n" for name, value in settings.items()]
            (self.state / "site.toml").write_text("".join(lines))
        self.size = ["--agents", str(agents), "--gpus", str(gpus), *extra]
        self.user = USERS[0] if os.getuid() == 0 else None  # who submits unless a test names another
        self._places = itertools.count(1)
        self.new_work()

    # --- life ---------------------------------------------------------------------------------------------------

    def up(self) -> str:
        self.lend_memory()
        done = self.hpcmesos("up", *self.size, "--state", str(self.state), "--detach", timeout=START_TIMEOUT)
        return done.stderr

    def down(self) -> None:
        self.hpcmesos("down", "--state", str(self.state), timeout=START_TIMEOUT)

    def remove(self) -> None:
        shutil.rmtree(self.root)
        if self._memory is not None:
            shutil.rmtree(self._memory)

    def lend_memory(self) -> None:
        """A new cluster's database lies in memory, where there is room: initdb alone makes a thousand files."""
        place = self.state / "postgres"
        if (where := quick_place()) == "/tmp" or place.exists():
            return
        self._memory = Path(tempfile.mkdtemp(prefix="hpcm-pg-", dir=where))
        self._memory.chmod(0o711)
        (self._memory / "data").mkdir(mode=0o700)
        self.state.mkdir(mode=0o711, exist_ok=True)
        place.symlink_to(self._memory / "data")

    def hpcmesos(
        self, *arguments: str, timeout: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """As the one who runs the tests: the cluster's administrator."""
        return self._run([*HPCMESOS, *arguments], user="", timeout=timeout, check=check)

    @property
    def described(self) -> Cluster:
        return Cluster.load(self.state)

    def client(self) -> Client:
        return Client(socket=self.described.api_sockets)

    @property
    def database_url(self) -> str:
        return str(tomllib.loads((self.state / "master" / "master.toml").read_text())["database_url"])

    def pid(self, daemon: str) -> int:
        """``daemon``: "master", "master2", "node1/agent", "node1/shepherd", "postgres"."""
        if daemon == "postgres":
            return int((self.state / "postgres" / "postmaster.pid").read_text().split()[0])
        path = self.state / daemon / "master.pid"
        if "/" in daemon:
            node, name = daemon.split("/")
            path = next((self.state / "agents" / node).rglob(f"{name}.pid"))
        found = pidfile.living(str(path))
        assert found is not None, f"{daemon} does not run"
        return found.pid

    # --- as a user ----------------------------------------------------------------------------------------------

    @property
    def environ(self) -> dict[str, str]:
        environ = {
            key: value for key, value in os.environ.items() if not key.startswith(("HPCMESOS_", "PBS_"))
        }
        environ["HPCMESOS_STATE"] = str(self.state)
        environ["PATH"] = f"{self.state}/bin/torque:{Path(sys.executable).parent}:{environ['PATH']}"
        return environ

    def run(
        self,
        *command: str,
        user: str | None = None,
        stdin: str | bytes | None = None,
        check: bool = False,
        cwd: Path | None = None,
        timeout: float = 60,
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        return self._run(
            list(command), user=user, stdin=stdin, check=check, cwd=cwd, timeout=timeout, environ=environ
        )

    def _run(
        self,
        command: list[str],
        user: str | None = None,
        stdin: str | bytes | None = None,
        check: bool = True,
        cwd: Path | None = None,
        timeout: float = 60,
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        environment = {**self.environ, **(environ or {})}
        identity: dict[str, Any] = {}
        user = self.user if user is None else user
        if user:
            entry = pwd.getpwnam(user)
            identity = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
            environment |= {"HOME": entry.pw_dir, "USER": user, "LOGNAME": user, "SHELL": entry.pw_shell}
        done = subprocess.run(
            command,
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            cwd=cwd or self.work(user),
            env=environment,
            timeout=timeout,
            check=False,
            **identity,
        )
        text = subprocess.CompletedProcess(
            done.args,
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )
        assert not check or text.returncode == 0, (
            f"{command} -> {text.returncode}\n{text.stdout}\n{text.stderr}"
        )
        return text

    def new_work(self) -> None:
        """From now on users submit from new directories: nobody finds the files of those before him."""
        self._work = self.root / "work" / str(next(self._places))

    def work(self, user: str | None = None) -> Path:
        """The directory from which a user submits; "" is the one who runs the tests."""
        user = self.user if user is None else user
        path = self._work / (user or "self")
        if not path.exists():
            path.mkdir(parents=True)
            if user:
                entry = pwd.getpwnam(user)
                os.chown(path, entry.pw_uid, entry.pw_gid)
        return path

    def qsub(self, script: str, *options: str, user: str | None = None) -> str:
        """Submits ``script`` from standard input; the job's id."""
        done = self._run(["qsub", *options], stdin=script, user=user)
        assert done.stderr == "", done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) == 1, done.stdout
        return lines[0]

    def job(self, job: str) -> dict[str, Any]:
        """The job as ``qstat -f -F json`` shows it."""
        done = self._run(["qstat", "-f", "-F", "json", job])
        jobs: dict[str, dict[str, Any]] = json.loads(done.stdout)["Jobs"]
        return jobs[job]

    def wait(self, job: str, timeout: float = 60) -> dict[str, Any]:
        """The job once it has ended."""
        with self.client() as client:
            status = client.wait(job, timeout)
        assert status.state == "C", f"{job} has not ended after {timeout:g} s: {status}"
        return self.job(job)

    def wait_all(self, jobs: Sequence[str], timeout: float = 60) -> dict[str, dict[str, Any]]:
        """The jobs, by their ids, once all have ended: two processes, however many they are."""
        self.hpcmesos("wait", "--timeout", str(timeout), *jobs, timeout=timeout + 10, check=False)
        done = self._run(["qstat", "-f", "-F", "json", *jobs])
        found: dict[str, dict[str, Any]] = json.loads(done.stdout)["Jobs"]
        return found

    def wait_state(self, job: str, letter: str, timeout: float = 30) -> dict[str, Any]:
        return wait_until(
            lambda: seen if (seen := self.job(job))["job_state"] == letter else None,
            f"{job} in state {letter}",
            timeout,
        )

    def output(self, job: str, name: str = "STDIN", kind: str = "o", user: str | None = None) -> str:
        """The text of ``NAME.oSEQ`` in the user's working directory."""
        return (self.work(user) / f"{name}.{kind}{job.split('.')[0]}").read_text()

    # --- what must not be there -----------------------------------------------------------------------------------

    def processes(self) -> list[str]:
        """Living processes that carry this cluster's directory in their command line or environment."""
        marks = (str(self.root).encode(), str(self.described.sockets).encode())
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                words = (entry / "cmdline").read_bytes()
                environ = (entry / "environ").read_bytes()
            except OSError:
                continue
            if any(mark in words or mark in environ for mark in marks):
                found.append(f"{entry.name} {words.replace(bytes(1), b' ').decode(errors='replace').strip()}")
        return found

    def job_processes(self) -> list[str]:
        """Living processes of attempts of this cluster."""
        mark = b"HPCMESOS_ATTEMPT="
        sockets = str(self.described.sockets).encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                environ = (entry / "environ").read_bytes()
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if mark in environ and sockets in environ and words:
                found.append(f"{entry.name} {words.replace(bytes(1), b' ').decode(errors='replace').strip()}")
        return found
