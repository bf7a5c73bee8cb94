"""First figures of the spine: latency of qsub and qstat, 1,000 x `true`, the start of a gang.

Brings up a cluster of its own (4 agents, 32 simulated GPUs, fsync on), prints a table and, with ``--json FILE``, JSON.
Everything runs on one machine, so the clients' own processes share its cores. Figures are medians of ``--repeat`` runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
HPCMESOS = [sys.executable, "-m", "hpcmesos.cli"]


class Bench:
    """A cluster in a temporary directory and the q-commands on PATH."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.environ = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HPCMESOS_")},
            "HPCMESOS_STATE": str(self.state),
            "PATH": f"{self.state}/bin/torque:{os.environ['PATH']}",
        }

    def run(self, *command: str, stdin: str = "") -> str:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environ,
            cwd=self.directory,
            check=True,
        )
        return done.stdout.strip()

    def hpcmesos(self, *arguments: str) -> str:
        return self.run(*HPCMESOS, *arguments)


def timed(action: Callable[[], object]) -> float:
    """Seconds that ``action`` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


PARTS = {
    "leader": "-m hpcmesos.master.leader",
    "api": "-m hpcmesos.master.api_process",
    "agents": " agent --config ",
    "shepherds": "launch shepherd ",
    "postgres": "postgres",
}
"""Parts of a cluster by what their command lines hold."""


def cpu_seconds(state: Path) -> dict[str, float]:
    """CPU seconds that each part of the cluster has used; jobs: what their shepherds have reaped."""
    stats, lines = {}, {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            lines[int(name)] = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            stats[int(name)] = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
    roots = {pid for pid, line in lines.items() if f"{state}/" in line}
    used = dict.fromkeys([*PARTS, "jobs"], 0.0)
    for pid in stats:
        part = next((part for part, mark in PARTS.items() if mark in lines[pid]), None)
        if part and {pid, int(stats[pid][1])} & roots:
            own, reaped = (sum(map(int, stats[pid][at : at + 2])) for at in (11, 13))
            used[part] += own / CLOCK_TICKS
            used["jobs" if part == "shepherds" else part] += reaped / CLOCK_TICKS
    return used


def command_latency(bench: Bench, command: list[str], count: int, stdin: str = "") -> dict[str, float]:
    """Whole-process wall time of a command, in ms."""
    samples = sorted(timed(lambda: bench.run(*command, stdin=stdin)) * 1000 for _ in range(count))
    return {"median_ms": statistics.median(samples), "p95_ms": samples[int(0.95 * (len(samples) - 1))]}


def thousand_true(bench: Bench, count: int) -> dict[str, float]:
    """``count`` single qsubs of a script that runs `true`, one after the other; seconds until the last is complete, and
    milliseconds of CPU per job. ``-S /bin/sh``: the start of a login shell costs more than all of this together.
    """
    before = cpu_seconds(bench.state)
    start = time.perf_counter()
    jobs = [
        bench.run("qsub", "-S", "/bin/sh", "-o", "/dev/null", "-e", "/dev/null", stdin="#!/bin/sh\ntrue\n")
        for _ in range(count)
    ]
    submitted = time.perf_counter() - start
    bench.hpcmesos("wait", *jobs)
    total = time.perf_counter() - start
    after = cpu_seconds(bench.state)
    cpu = {f"{part}_cpu_ms": 1000 * (after[part] - before[part]) / count for part in sorted(after)}
    return {"jobs": count, "submit_s": submitted, "total_s": total, "jobs_per_s": count / total} | cpu


def gang_start(bench: Bench) -> float:
    """Milliseconds from the start of qsub to the first line of a 4-node x 8-GPU script."""
    mark = bench.directory / "mark"
    mark.unlink(missing_ok=True)
    script = f"#!/bin/sh\ndate +%s.%N > {mark}.new\nmv {mark}.new {mark}\n"
    start = time.time()
    job = bench.run("qsub", "-S", "/bin/sh", "-l", "nodes=4:gpus=8", stdin=script)
    bench.hpcmesos("wait", job)
    return (float(mark.read_text()) - start) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hpcmesos-bench-") as directory:
        Path(directory).chmod(
            0o711
        )  # PostgreSQL runs under a user of its own when root brings the cluster up
        bench = Bench(Path(directory))
        bench.hpcmesos("up", "--agents", "4", "--gpus", "32", "--state", str(bench.state), "--detach")
        try:
            figures = measure(bench, arguments.jobs, arguments.repeat)
        finally:
            bench.hpcmesos("down", "--state", str(bench.state))
    for name, value in figures.items():
        print(f"{name:28} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(bench: Bench, jobs: int, repeat: int) -> dict[str, object]:
    runs = [thousand_true(bench, jobs) for _ in range(repeat)]
    gangs = [gang_start(bench) for _ in range(max(20, repeat))]
    held = ["qsub", "-h", "-o", "/dev/null", "-e", "/dev/null"]
    return {
        "machine": f"{os.cpu_count()} CPUs, Linux {platform.release()}, load {os.getloadavg()[0]:.1f}",
        "python -IS -c pass": command_latency(
            bench, [os.path.realpath(sys.executable), "-IS", "-c", "pass"], 20
        ),
        "qsub": command_latency(bench, held, 50, "#!/bin/sh\ntrue\n"),
        "qstat JOB": command_latency(bench, ["qstat", "1"], 50),
        "single submits": {
            "runs": runs,
            "median_total_s": statistics.median(run["total_s"] for run in runs),
            "median_jobs_per_s": statistics.median(run["jobs_per_s"] for run in runs),
            **{
                f"median_{name}": statistics.median(run[name] for run in runs)
                for name in runs[0]
                if name.endswith("cpu_ms")
            },
        },
        "gang 4x8, first line": {"median_ms": statistics.median(gangs), "max_ms": max(gangs)},
    }


if __name__ == "__main__":
    main()
