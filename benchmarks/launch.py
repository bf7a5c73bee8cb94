"""The start of ranks: `hpcmesos run` against bare Hydra over the same nodes, one after the other in one job.

Brings up a cluster of its own on this machine and runs each launch ``--repeat`` times, in turns. "bare" is the MPICH
wheel's mpiexec by its absolute path, which starts its proxies
through our remote shell; "front" is the mpiexec that jobs find.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HPCMESOS = [sys.executable, "-m", "hpcmesos.cli"]
PROGRAMS = {
    "true": "/bin/true",
    "mpi4py barrier": f"{sys.executable} -c 'from mpi4py import MPI; MPI.COMM_WORLD.barrier()'",
}
TIMER = """
import json, os, subprocess, sys, time
launchers, programs, repeat, ranks = json.loads(sys.argv[1])
samples = {}
for _ in range(repeat):
    for name, command in programs.items():
        for launcher, words in launchers.items():
            start = time.perf_counter()
            subprocess.run(f"{words} -n {ranks} {command}", shell=True, check=True)
            samples.setdefault(name, {}).setdefault(launcher, []).append(time.perf_counter() - start)
print(json.dumps(samples))
"""


def measure(directory: Path, nodes: int, ranks: int, repeat: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each launch, by program and launcher."""
    state = directory / "state"
    environ = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HPCMESOS_")},
        "HPCMESOS_STATE": str(state),
        "PATH": f"{state}/bin/torque:{os.environ['PATH']}",
    }

    def run(*command: str, stdin: str = "") -> str:
        done = subprocess.run(
            command, input=stdin, stdout=subprocess.PIPE, text=True, env=environ, cwd=directory, check=True
        )
        return done.stdout.strip()

    launchers = {
        "bare": str(Path(sys.executable).parent / "mpiexec"),
        # Our front stands first in a job's PATH; the launcher behind it is the same wheel's.
        "front": f'PATH="${{PATH%%:*}}:{Path(sys.executable).parent}:$PATH" mpiexec',
        "run": "hpcmesos run",
    }
    (directory / "timer.py").write_text(TIMER)
    plan = json.dumps([launchers, PROGRAMS, repeat, ranks]).replace("'", "'\\''")
    script = f"#!/bin/sh\n{sys.executable} {directory}/timer.py '{plan}'\n"
    run(*HPCMESOS, "up", "--agents", str(nodes), "--gpus", str(ranks), "--state", str(state), "--detach")
    try:
        job = run(
            "qsub", "-j", "oe", "-o", str(directory / "out"),
            "-l", f"nodes={nodes}:ppn={ranks // nodes}:gpus={ranks // nodes}", stdin=script,
        )  # fmt: skip
        run(*HPCMESOS, "wait", job)
    finally:
        run(*HPCMESOS, "down", "--state", str(state))
    output = (directory / "out").read_text()
    if not output.rstrip().endswith("}"):
        raise SystemExit(f"the job failed: {output[-2000:]}")
    samples: dict[str, dict[str, list[float]]] = json.loads(output.splitlines()[-1])
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hpcmesos-bench-") as directory:
        Path(directory).chmod(0o711)
        samples = measure(Path(directory), arguments.nodes, arguments.ranks, arguments.repeat)
    machine = f"{os.cpu_count()} CPUs, Linux {platform.release()}, load {os.getloadavg()[0]:.1f}"
    figures: dict[str, object] = {"machine": machine, "nodes": arguments.nodes, "ranks": arguments.ranks}
    for program, by_launcher in samples.items():
        medians = {launcher: statistics.median(times) for launcher, times in by_launcher.items()}
        ratios = {f"{name} / bare": medians[name] / medians["bare"] for name in ("front", "run")}
        figures[program] = {"median_s": medians, **ratios, "samples_s": by_launcher}
        words = ", ".join(f"{name} {value:.2f} s" for name, value in medians.items())
        print(f"{program:16} {words}; " + ", ".join(f"{name} {value:.2f}" for name, value in ratios.items()))
    print(machine)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
