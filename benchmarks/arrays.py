"""Arrays: how soon a million elements are accepted, qstat on 100,000 of them, the CPU that an element of `true` costs.

Brings up a cluster of its own (4 agents, fsync on), prints a table and, with ``--json FILE``, JSON. CPU suffers less
than wall time from what else a machine does; both grow when few elements share a transaction: when it is slow.
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

sys.path.insert(0, str(Path(__file__).parent))

from first_figures import Bench, command_latency, cpu_seconds, timed


def accepted(bench: Bench, elements: str) -> float:
    """Seconds of a qsub of an array that is held."""
    return timed(lambda: bench.run("qsub", "-h", "-t", elements, "--", "/bin/true"))


def listed(bench: Bench, size: int) -> dict[str, object]:
    """qstat while an array of ``size`` runs, 50 at once at most."""
    quiet = ("-o", "/dev/null", "-e", "/dev/null")
    array = bench.run("qsub", "-t", f"1-{size}%50", *quiet, "--", "/bin/sleep", "1")
    seq = array.partition("[")[0]
    views = {
        "one element that waits": ["qstat", f"{seq}[{size}]"],
        "one element that runs": ["qstat", f"{seq}[1]"],
        "folded": ["qstat"],
        "expanded": ["qstat", "-t", array],
    }
    found = {name: command_latency(bench, command, 10) for name, command in views.items()}
    bench.run("qdel", array)
    bench.hpcmesos("wait", array)
    return dict(found)


def throughput(bench: Bench, size: int) -> dict[str, float]:
    """An array of ``size`` times `true`, from qsub to the last end; milliseconds of CPU an element by part."""
    before, start = cpu_seconds(bench.state), time.perf_counter()
    quiet = ("-o", "/dev/null", "-e", "/dev/null")
    array = bench.run("qsub", "-t", f"1-{size}", *quiet, "--", "/bin/true")
    bench.hpcmesos("wait", array)
    total, after = time.perf_counter() - start, cpu_seconds(bench.state)
    cpu = {f"{part}_cpu_ms": 1000 * (after[part] - before[part]) / size for part in sorted(after)}
    return {"elements": size, "total_s": total, "elements_per_s": size / total} | cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listed", type=int, default=100_000)
    parser.add_argument("--true", type=int, default=2000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hpcmesos-bench-") as directory:
        Path(directory).chmod(
            0o711
        )  # PostgreSQL runs under a user of its own when root brings the cluster up
        bench = Bench(Path(directory))
        bench.hpcmesos("up", "--agents", "4", "--gpus", "4", "--state", str(bench.state), "--detach")
        try:
            runs = [throughput(bench, arguments.true) for _ in range(arguments.repeat)]
            figures: dict[str, object] = {
                "machine": f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}",
                "array of true": runs,
                "median elements_per_s": statistics.median(run["elements_per_s"] for run in runs),
                "a million accepted, s": accepted(bench, "1-1000000"),
                "every second of a million accepted, s": accepted(bench, "1-1000000:2"),
                "qstat": listed(bench, arguments.listed),
            }
        finally:
            bench.hpcmesos("down", "--state", str(bench.state))
    for name, value in figures.items():
        print(f"{name:40} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
