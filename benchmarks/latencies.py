"""What one waits for and what idles: single commands with many jobs known, jobs in bulk, the start of a gang, and what
daemons that have nothing to do hold and use.

Brings up a cluster of its own (4 agents, 32 simulated GPUs, fsync on). ``--known`` jobs wait in it, held, while
commands are timed as whole processes. A gang of 4 nodes x 8 GPUs is timed from the start of qsub, by what its ranks
print: the first line of its script, the last of 4 hosts under `hpcmesos run -n 4` and under mpiexec. Medians of
``--repeat``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kit import Bench, command_latency, cpu_seconds, daemons_of, machine, some_user, timed

from hpcmesos.client import Client
from hpcmesos.errors import TooFast

AGENTS, GPUS = 4, 32
SETTLED = 5.0
"""Seconds after which nothing of a cluster's start is left to do."""
BULK = 5000
"""Jobs of one call of `Client.submit_many`."""
MILLION = 1_000_000
STAMP = "date +%s.%N"
LAUNCHES = {
    "the script's first line": STAMP,
    "last of 4 hosts, hpcmesos run": f"hpcmesos run -n 4 {STAMP}",
    "last of 4 hosts, mpiexec": f"mpiexec -n 4 -ppn 1 {STAMP}",
}
"""By what is timed: what the script does; each rank prints when it began."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--known", type=int, default=100_000, help="jobs that wait while commands are timed")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--idle", type=float, default=30.0, help="seconds for which idle daemons are watched")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hpcmesos-bench-") as directory:
        Path(directory).chmod(0o711)
        bench = Bench(Path(directory), some_user())
        with bench.up(AGENTS, GPUS):
            figures = measure(bench, options)
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "machine": machine(),
        "postgresql": bench.settings(),
        "idle": idle(bench, options.idle),
        "gang of 4 x 8 GPUs, ms": {name: gang(bench, name, options.repeat) for name in LAUNCHES},
        "jobs in bulk": bulk(bench, options.known),
        "a million accepted, s": timed(lambda: bench.submit("-h", "-t", f"1-{MILLION}", "--", "/bin/true")),
        "commands, ms": commands(bench, 2 * options.repeat),
        "load": os.getloadavg()[0],
    }
    return figures


def idle(bench: Bench, seconds: float) -> dict[str, float]:
    """What the daemons of one node hold (MiB, proportional) and use (percent of a core) while there is no job."""
    pids = [pid for part in ("agents", "shepherds", "starters") for pid in daemons_of(bench.state, part)]
    time.sleep(SETTLED)
    held = sum(proportional(pid) for pid in pids) / AGENTS / 1024
    before, begun = cpu_seconds(bench.state), time.monotonic()
    time.sleep(seconds)
    after, passed = cpu_seconds(bench.state), time.monotonic() - begun
    used = {part: after[part] - before[part] for part in after}
    node = used["agents"] + used["shepherds"] + used["starters"]
    return {
        "a node's daemons, MiB": held,
        "a node's daemons, % of a core": 100 * node / AGENTS / passed,
        "leader, % of a core": 100 * used["leader"] / passed,
        "API, % of a core": 100 * used["api"] / passed,
        "PostgreSQL, % of a core": 100 * used["postgres"] / passed,
    }


def proportional(pid: int) -> int:
    """KiB of a process, each shared page divided by how many share it (PSS, proc(5))."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def gang(bench: Bench, name: str, count: int) -> dict[str, float]:
    """Milliseconds from the start of qsub until the last of the ranks has begun."""
    output = bench.work / "gang"
    samples = []
    for _ in range(count):
        output.unlink(missing_ok=True)
        begun = time.time()
        words = ["-S", "/bin/sh", "-d", "/", "-o", str(output), "-j", "oe", "-l", "nodes=4:gpus=8"]
        job = bench.submit(*words, stdin=f"#!/bin/sh\n{LAUNCHES[name]}\n")
        bench.hpcmesos("wait", job)
        text = output.read_text()
        try:
            samples.append(1000 * (max(map(float, text.split())) - begun))
        except ValueError:
            raise SystemExit(f"{name}: the job printed {text[-500:]}") from None
    return {"median": statistics.median(samples), "longest": max(samples)}


def bulk(bench: Bench, known: int) -> dict[str, float]:
    """``known`` distinct jobs, held, some thousand in a call; jobs a second by call, and the API's CPU a job."""
    rates = []
    before = cpu_seconds(bench.state)
    with Client(socket=bench.socket) as client:
        for first in range(0, known, BULK):
            jobs = [
                ["-h", "-N", f"sweep{number}", "-l", "nodes=1:gpus=1", "--", "/bin/echo", str(number)]
                for number in range(first, min(known, first + BULK))
            ]
            rates.append(len(jobs) / _call(client, jobs))
    after = cpu_seconds(bench.state)
    return {
        "jobs a call": min(BULK, known),
        "jobs a second, median": statistics.median(rates),
        "jobs a second, best": max(rates),
        "API CPU ms a job": 1000 * (after["api"] - before["api"]) / known,
        "PostgreSQL CPU ms a job": 1000 * (after["postgres"] - before["postgres"]) / known,
    }


def _call(client: Client, jobs: list[list[str]]) -> float:
    """Seconds of the call that is taken; what one user may submit in the long run is not what is measured."""
    while True:
        try:
            return timed(lambda: client.submit_many(jobs, cwd="/tmp", environ={}))
        except TooFast:
            time.sleep(1)


def commands(bench: Bench, count: int) -> dict[str, dict[str, float]]:
    """Whole processes, with all of those jobs known."""
    quiet = ["-o", "/dev/null", "-e", "/dev/null"]
    held = bench.submit("-h", *quiet, "--", "/bin/true")
    return {
        "python -IS -c pass": command_latency(
            bench, [os.path.realpath(sys.executable), "-IS", "-c", "pass"], count
        ),
        "qsub": command_latency(bench, ["qsub", "-h", *quiet], count, "#!/bin/sh\ntrue\n"),
        "qstat JOB": command_latency(bench, ["qstat", held], count),
        "qstat -f JOB": command_latency(bench, ["qstat", "-f", held], count),
    }


if __name__ == "__main__":
    main()
