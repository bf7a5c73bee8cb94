"""An array at full speed: alone, while 200 connections ask and qstat runs, and beside a stranger's long transaction.

Each connection asks for the state of one job every 5 s; `qstat` is started twice a second. The stranger has a
REPEATABLE READ transaction that has read the job tables and remains active; arrays flow beside it at full speed for
``--stranger`` seconds, and then, older than that, for ``--repeat`` arrays more. The first two in turns, ``--repeat``
times. Rates are all jobs of a part by all of its time.

All of it in a cluster that has been at full speed for ``--old`` seconds, longer than ended jobs stay among the others:
so the sweep that moves them away, and the autovacuum behind it, are at work in each part.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from kit import Bench, machine, some_user, timed

from hpcmesos.client import Client

ASKERS, EVERY = 200, 5.0
QSTATS_A_SECOND = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--old", type=float, default=420.0)
    parser.add_argument("--stranger", type=float, default=300.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hpcmesos-bench-") as directory:
        Path(directory).chmod(0o711)
        bench = Bench(Path(directory), some_user())
        with bench.up(4, 0, "--cpus", "16"):
            figures = measure(bench, options)
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    asked = bench.submit("-h", "--", "/bin/true")
    rates: dict[str, list[float]] = {"alone": [], "asked": []}
    answers: list[float] = []
    shown: list[float] = []
    rates["until old"] = flow(bench, options.jobs, options.old)
    for _ in range(options.repeat):
        rates["alone"].append(array(bench, options.jobs))
        with asking(bench, asked, answers, shown):
            rates["asked"].append(array(bench, options.jobs))
    with stranger(bench):
        rates["stranger"] = flow(bench, options.jobs, options.stranger)
        rates["older stranger"] = [array(bench, options.jobs) for _ in range(options.repeat)]
    mean = {name: statistics.harmonic_mean(values) for name, values in rates.items()}  # arrays of one size
    return {
        "machine": machine(),
        "jobs": options.jobs,
        "jobs_per_s": rates,
        "mean": mean,
        "asked / alone": mean["asked"] / mean["alone"],
        "stranger / alone": mean["stranger"] / mean["alone"],
        "older stranger / alone": mean["older stranger"] / mean["alone"],
        "answer_ms": quantiles(answers),
        "qstat_ms": quantiles(shown),
        "postgresql": bench.settings(),
    }


def flow(bench: Bench, count: int, seconds: float) -> list[float]:
    """Jobs a second of arrays of so many, one after the other for so long, at least one."""
    begun = time.monotonic()
    rates = [array(bench, count)]
    while time.monotonic() - begun < seconds:
        rates.append(array(bench, count))
    return rates


def array(bench: Bench, count: int) -> float:
    """Jobs a second."""

    def run() -> None:
        job = bench.submit("-o", "/dev/null", "-e", "/dev/null", "-t", f"0-{count - 1}", "--", "/bin/true")
        bench.hpcmesos("wait", job)

    return count / timed(run)


@contextmanager
def asking(bench: Bench, job: str, answers: list[float], shown: list[float]) -> Iterator[None]:
    """Connections that ask, and qstat."""
    over = threading.Event()
    threads = [
        threading.Thread(target=ask, args=(bench.socket, job, answers, over, number * EVERY / ASKERS))
        for number in range(ASKERS)
    ]
    threads.append(threading.Thread(target=show, args=(bench, job, shown, over)))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def ask(socket: Path, job: str, answers: list[float], over: threading.Event, first: float) -> None:
    with Client(socket=socket) as client:
        pause = first
        while not over.wait(pause):
            answers.append(1000 * timed(lambda: client.job(job)))
            pause = EVERY


def show(bench: Bench, job: str, shown: list[float], over: threading.Event) -> None:
    while not over.wait(1 / QSTATS_A_SECOND):
        begun = time.perf_counter()
        subprocess.run(["qstat", job], env=bench.environ, stdout=subprocess.DEVNULL, check=True)
        shown.append(1000 * (time.perf_counter() - begun))


@contextmanager
def stranger(bench: Bench) -> Iterator[None]:
    """Nothing that ended or changed since it began can be cleared away while it lasts. Raises what ended it early:
    nothing was measured beside it then.
    """
    over = threading.Event()
    ended: list[psycopg.Error] = []
    with psycopg.connect(bench.database_url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        for table in ("jobs", "attempts", "shares", "events"):
            connection.execute(f"SELECT count(*) FROM {table}").fetchone()

        def stay() -> None:
            try:
                while not over.is_set():
                    connection.execute("SELECT pg_sleep(0.5)")
            except psycopg.Error as error:
                ended.append(error)

        thread = threading.Thread(target=stay)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        if ended:
            raise ended[0]


def quantiles(samples: list[float]) -> dict[str, float]:
    ordered = sorted(samples) or [0.0]
    last = len(ordered) - 1
    return {"median": statistics.median(ordered), "p99": ordered[int(0.99 * last)], "count": len(samples)}


if __name__ == "__main__":
    main()
