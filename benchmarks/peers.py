"""Other systems on this machine, brought up for the length of a benchmark: HyperQueue and Slurm."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from kit import identity, timed

HYPERQUEUE = "hyperqueue==0.27.0"
_PATIENCE = 60.0


class HyperQueue:
    """A LocalCluster in a virtual environment of its own; tasks run as ``user``."""

    def __init__(self, directory: Path, workers: int, cores: int, user: str | None) -> None:
        self.argv = [
            sys.executable,
            str(Path(__file__).with_name("hyperqueue_side.py")),
            str(workers),
            str(cores),
        ]
        self.argv[0] = str(_environment(directory))
        self._home = directory / "hyperqueue-home"
        self._home.mkdir(mode=0o777)
        self._home.chmod(0o777)
        self._process = subprocess.Popen(
            self.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(directory / "hyperqueue.log").open("w"),
            text=True,
            cwd=self._home,
            env={"HOME": str(self._home), "PATH": os.environ["PATH"]},
            **identity(user),
        )
        self._answer()

    def run(self, directory: Path, commands: list[tuple[int, list[str]]]) -> dict[str, float]:
        """Seconds from submission to the last end, and how many failed."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"directory": str(directory), "commands": commands}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):  # it says other things too
                return json.loads(line)
        raise SystemExit(f"HyperQueue ended with {self._process.wait()}; see its log")

    def stop(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()


def _environment(directory: Path) -> Path:
    """An interpreter that has HyperQueue: this one, or that of a new virtual environment."""
    if find_spec("hyperqueue"):
        return Path(sys.executable)
    environment = directory / "hyperqueue"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", HYPERQUEUE], check=True)
    return python


SLURM_CONF = """\
ClusterName=bench
SlurmctldHost=localhost
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={d}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={d}/state
SlurmdSpoolDir={d}/spool.%n
SlurmctldPidFile={d}/slurmctld.pid
SlurmdPidFile={d}/slurmd.%n.pid
SlurmctldLogFile={d}/slurmctld.log
SlurmdLogFile={d}/slurmd.%n.log
SlurmctldPort={port}
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=defer,batch_sched_delay=0,sched_min_interval=0,bf_interval=1,max_rpc_cnt=0,default_queue_depth=10000,sched_max_job_start=0,partition_job_depth=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MaxJobCount=200000
MaxArraySize=100001
MinJobAge=10
KillWait=1
MpiDefault=none
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmctldDebug=error
SlurmdDebug=error
{nodes}
PartitionName=batch Nodes=ALL Default=YES State=UP MaxTime=INFINITE OverSubscribe=NO
"""
"""Tuned for throughput: no accounting, no cgroups, no task plugin, scheduling at every event and at full depth."""


class Slurm:
    """One slurmctld and ``nodes`` slurmd on this host, with munge; needs root and Debian's slurm-wlm and munge."""

    def __init__(self, directory: Path, nodes: int, cores: int, user: str | None) -> None:
        self.directory = directory / "slurm"
        self.directory.mkdir(mode=0o755)
        self._user = user
        self._processes: list[subprocess.Popen[bytes]] = []
        port = 20000 + secrets.randbelow(8000)
        lines = [
            f"NodeName=b{i} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port + i} CPUs={cores} State=UNKNOWN"
            for i in range(1, nodes + 1)
        ]
        self.configuration = SLURM_CONF.format(d=self.directory, port=port, nodes="\n".join(lines))
        (self.directory / "slurm.conf").write_text(self.configuration)
        (self.directory / "state").mkdir()
        self.environ = {**os.environ, "SLURM_CONF": str(self.directory / "slurm.conf")}
        self._start_munge()
        self._start("slurmctld", "-D")
        for i in range(1, nodes + 1):
            self._start("slurmd", "-D", "-N", f"b{i}")
        deadline = time.monotonic() + _PATIENCE
        while self.call("sinfo", "-h", "-o", "%T %D").strip() != f"idle {nodes}":
            if time.monotonic() > deadline:
                self.stop()
                raise SystemExit(f"Slurm does not come up; see {self.directory}")
            time.sleep(0.2)

    @staticmethod
    def missing() -> list[str]:
        """The programs that are not installed."""
        return [name for name in ("slurmctld", "slurmd", "munged") if not shutil.which(name)]

    def call(self, *words: str, stdin: str = "", user: str | None = None) -> str:
        done = subprocess.run(
            words,
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environ,
            check=False,
            **identity(user),
        )
        return done.stdout if done.returncode == 0 else f"{words[0]}: {done.stderr}"

    def submit(self, work: Path, *words: str, script: str) -> str:
        answer = self.call(
            "sbatch", "--parsable", f"--chdir={work}", *words, stdin=script, user=self._user
        ).strip()
        if not answer.isdigit():
            raise SystemExit(answer)
        return answer

    def array(self, work: Path, count: int, script: str) -> float:
        """Seconds from submission until no element is left."""
        words = [f"--array=0-{count - 1}", "--output=%A_%a.out", "--error=%A_%a.err"]

        def run() -> None:
            self.submit(work, *words, script=script)
            self.wait()

        return timed(run)

    def wait(self) -> None:
        """Until no job is left."""
        while self.call("squeue", "-h", "-o", "%i").strip():
            time.sleep(0.05)

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()

    def _start_munge(self) -> None:
        key = self.directory / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        files = {name: self.directory / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
        words = [
            f"--{'log' if name == 'log' else name}-file={files[name]}" for name in ("pid", "log", "seed")
        ]
        self._start(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={files['socket']}", *words
        )
        deadline = time.monotonic() + _PATIENCE
        while not files["socket"].exists():
            if time.monotonic() > deadline:
                raise SystemExit("munged does not come up")
            time.sleep(0.05)

    def _start(self, *words: str) -> None:
        environ = getattr(self, "environ", None)
        log = (self.directory / f"{words[0]}.{len(self._processes)}.out").open("wb")
        self._processes.append(subprocess.Popen(words, stdout=log, stderr=log, env=environ))
