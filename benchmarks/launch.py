"""The start of ranks: `mpiexec` through the front, `hpcmesos run` and the ring against bare Hydra, in turns in one job.

Brings up a cluster of its own on this machine and runs each launch ``--repeat`` times, or as often as ``--seconds``
allow. "bare" is the MPICH wheel's mpiexec by its absolute path, which starts its proxies through our remote shell;
"front" is the mpiexec that jobs find. Besides the seconds it counts CPU time, which other work on the machine disturbs
less: what the processes of the job used, on all nodes, and the shepherds and starters. Each launch is told when it has
ended: on two cores a round of 64 ranks takes the better part of a minute.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kit import Bench

BARE, FRONT, RUN, RING = "bare", "front", "run", "ring"
LAUNCHES = {
    "true": {BARE: "/bin/true", FRONT: "/bin/true", RUN: "/bin/true"},
    "barrier": dict.fromkeys(
        (BARE, FRONT, RUN), f"{sys.executable} -c 'from mpi4py import MPI; MPI.COMM_WORLD.barrier()'"
    ),
    "ring": {BARE: f"{sys.executable} -I -m hpcmesos.gang.ring 300", RING: ""},
}
"""By program: what each launcher is told to start."""
TICKS = os.sysconf("SC_CLK_TCK")
LONGEST = 120.0
"""Seconds that one launch may take."""
LOOK = 0.5
"""Seconds between two looks at what the job has written."""

Samples = dict[str, dict[str, list[tuple[float, float]]]]
"""By program and launcher: (wall seconds, CPU seconds) of each launch."""


def measure(directory: Path, nodes: int, ranks: int, repeat: int, seconds: float) -> Samples:
    from kit import Bench, some_user

    from hpcmesos.cli.embedded import Cluster

    bench = Bench(directory, some_user())
    with bench.up(nodes, ranks):
        plan = {
            "ranks": ranks,
            "repeat": repeat,
            "seconds": seconds,
            "helpers": helpers(bench.state),
            "cgroups": f"/sys/fs/cgroup/**/{Cluster.load(bench.state).identity}/*/*#*",
        }
        (bench.work / "plan").write_text(json.dumps(plan))
        share = f"nodes={nodes}:ppn={ranks // nodes}:gpus={ranks // nodes}"
        script = f"#!/bin/sh\nexec {sys.executable} {os.path.abspath(__file__)} --inside {bench.work}/plan\n"
        output = bench.work / "out"
        job = bench.submit("-S", "/bin/sh", "-j", "oe", "-o", str(output), "-l", share, stdin=script)
        return follow(bench, job, output)


def follow(bench: Bench, job: str, output: Path) -> Samples:
    """What the job writes, a launch a line, told as it comes; until its end."""
    from kit import HPCMESOS

    samples: Samples = {}
    done, over = 0, False
    waiting = subprocess.Popen([*HPCMESOS, "wait", job], env=bench.environ, stdout=subprocess.DEVNULL)
    while not over:
        over = waiting.poll() is not None
        lines = output.read_text().splitlines(keepends=True) if output.exists() else []
        for line in lines[done:]:
            if not line.endswith("\n") and not over:
                break
            done += 1
            try:
                name, launcher, wall, cpu = json.loads(line)
            except ValueError:  # words of a launcher
                sys.stderr.write(line)
                continue
            samples.setdefault(name, {}).setdefault(launcher, []).append((wall, cpu))
            sys.stderr.write(f"{name} by {launcher}: {wall:.2f} s, {cpu:.2f} s of CPU\n")
        if not over:
            time.sleep(LOOK)
    if waiting.returncode or not samples:
        raise SystemExit(f"the job failed: exit code {waiting.returncode}")
    return samples


def helpers(state: Path) -> list[int]:
    """The shepherds and their starters."""
    from kit import PARTS

    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            parent = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        found[int(name)] = (line, parent)
    shepherds = {
        pid for pid, (line, _) in found.items() if PARTS["shepherds"] in line and f"{state}/" in line
    }
    return [
        *shepherds,
        *(pid for pid, (line, up) in found.items() if PARTS["starters"] in line and up in shepherds),
    ]


# --- inside the job -------------------------------------------------------------------------------------------------


def run_inside(plan: dict[str, object]) -> None:
    wheel = Path(sys.executable).parent
    launchers = {
        BARE: f"{wheel}/mpiexec -n {plan['ranks']}",
        # Our front stands first in a job's PATH; the launcher behind it is the same wheel's.
        FRONT: f'PATH="${{PATH%%:*}}:{wheel}:$PATH" mpiexec -n {plan["ranks"]}',
        RUN: f"hpcmesos run -n {plan['ranks']}",
        RING: "hpcmesos ring",
    }
    begun = time.perf_counter()
    for number in range(int(str(plan["repeat"]))):
        if number and time.perf_counter() - begun > float(str(plan["seconds"])):
            break
        for name, launches in LAUNCHES.items():
            # In turns, the first of one round being the last of the next one.
            for launcher, program in list(launches.items())[:: -1 if number % 2 else 1]:
                cpu, start = cpu_seconds(plan), time.perf_counter()
                command = f"{launchers[launcher]} {program}"
                subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL, timeout=LONGEST)
                taken = time.perf_counter() - start, cpu_seconds(plan) - cpu
                print(json.dumps([name, launcher, *taken]), flush=True)


def cpu_seconds(plan: dict[str, object]) -> float:
    """What this job, on all of its nodes, and those who look after it have used so far."""
    used = 0.0
    for directory in glob.iglob(str(plan["cgroups"]), recursive=True):
        words = Path(directory, "cpu.stat").read_text().split()
        used += int(words[words.index("usage_usec") + 1]) / 1e6
    for pid in plan["helpers"]:  # type: ignore[attr-defined]  # JSON
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used += sum(map(int, fields[11:13])) / TICKS
    return used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5, help="rounds (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=300, help="after so many no other round begins (%(default)g)"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        run_inside(json.loads(arguments.inside.read_text()))
        return
    from kit import machine

    with tempfile.TemporaryDirectory(prefix="hpcmesos-bench-") as directory:
        Path(directory).chmod(0o711)
        samples = measure(
            Path(directory), arguments.nodes, arguments.ranks, arguments.repeat, arguments.seconds
        )
    figures: dict[str, object] = {"machine": machine(), "nodes": arguments.nodes, "ranks": arguments.ranks}
    for program, launches in samples.items():
        wall, cpu = (
            {name: statistics.median(v[at] for v in launches[name]) for name in launches} for at in (0, 1)
        )
        figures[program] = {"wall_s": wall, "cpu_s": cpu, "samples": launches}
        for name in launches:
            ratios = f"{wall[name] / wall[BARE]:.2f} and {cpu[name] / cpu[BARE]:.2f} of bare"
            rounds = len(launches[name])
            print(
                f"{program:8} {name:6} {wall[name]:6.2f} s, {cpu[name]:6.2f} s of CPU: {ratios}; of {rounds}"
            )
    print(figures["machine"])
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
