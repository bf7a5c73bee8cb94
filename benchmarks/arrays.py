"""Arrays: how soon a million elements are accepted, qstat on 100,000 of them before they start and when most of them
are done, the CPU that an element of `true` costs.

Brings up a cluster of its own (4 agents, fsync on), prints a table and, with ``--json FILE``, JSON. CPU suffers less
than wall time from what else a machine does; both grow when few elements share a transaction: when it is slow.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import psycopg
from kit import Bench, command_latency, cpu_seconds, machine, timed

COPIED = "server, name, owner, queue, priority, request, created_at, queued_at, rerunable, submit_host"
"""Columns of jobs that an element has from its array."""


def accepted(bench: Bench, elements: str) -> float:
    """Seconds of a qsub of an array that is held."""
    return timed(lambda: bench.run("qsub", "-h", "-t", elements, "--", "/bin/true"))


def listed(bench: Bench, size: int) -> dict[str, object]:
    """qstat while an array of ``size`` runs, 50 at once at most."""
    quiet = ("-o", "/dev/null", "-e", "/dev/null")
    array = bench.run("qsub", "-t", f"1-{size}%50", *quiet, "--", "/bin/sleep", "1")
    found = seen(bench, array, size, "runs")
    bench.run("qdel", array)
    bench.hpcmesos("wait", array)
    return found


def seen(bench: Bench, array: str, size: int, first: str) -> dict[str, object]:
    """Latencies of qstat; ``first``: what the first element does."""
    seq = array.partition("[")[0]
    views = {
        "one element that waits": ["qstat", f"{seq}[{size}]"],
        f"one element that {first}": ["qstat", f"{seq}[1]"],
        "folded": ["qstat"],
        "expanded": ["qstat", "-t", array],
    }
    return {name: command_latency(bench, command, 10) for name, command in views.items()}


def midway(bench: Bench, size: int, done: int) -> dict[str, object]:
    """qstat of an array of which ``done`` elements are over, written into the database: to run them takes minutes."""
    array = bench.run("qsub", "-h", "-t", f"1-{size}", "--", "/bin/true")
    seq = int(array.partition("[")[0])
    values = {"seq": seq, "done": done, "left": f"{{[{done + 1},{size + 1})}}"}
    with psycopg.connect(bench.database_url) as connection:
        connection.execute(
            f"INSERT INTO jobs (seq, element, state, attempt, started_at, ended_at, exit_status, cause, {COPIED})"
            f" SELECT seq, i, 'C', 1, now(), now(), 0, 'OK', {COPIED} FROM jobs, generate_series(1, %(done)s) i"
            " WHERE seq = %(seq)s AND element = -1",
            values,
        )
        connection.execute(
            "INSERT INTO attempts (seq, element, number, started_at, ended_at, cause, code, usage)"
            " SELECT %(seq)s, i, 1, now(), now(), 'OK', 0, jsonb_build_object('cput', i %% 7 * 0.3, 'walltime', 1)"
            " FROM generate_series(1, %(done)s) i",
            values,
        )
        connection.execute(
            "UPDATE jobs SET todo = %(left)s::int4multirange, succeeded = %(done)s"
            " WHERE seq = %(seq)s AND element = -1",
            values,
        )
    return seen(bench, array, size, "is over")


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
        Path(directory).chmod(0o711)
        bench = Bench(Path(directory))
        with bench.up(4, 4):
            runs = [throughput(bench, arguments.true) for _ in range(arguments.repeat)]
            figures: dict[str, object] = {
                "machine": machine(),
                "array of true": runs,
                "median elements_per_s": statistics.median(run["elements_per_s"] for run in runs),
                "a million accepted, s": accepted(bench, "1-1000000"),
                "every second of a million accepted, s": accepted(bench, "1-1000000:2"),
                "qstat": listed(bench, arguments.listed),
                "qstat midway": midway(bench, arguments.listed, int(0.62 * arguments.listed)),
            }
    for name, value in figures.items():
        print(f"{name:40} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
