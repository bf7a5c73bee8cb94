"""Jobs a second, side by side in one run: hpcmesos, HyperQueue and Slurm on this machine.

An array of ``--jobs`` elements, 1 % of which fail, on 4 agents, in turns with the peers, ``--repeat`` times; each
element has two files, its exit status is in the database afterwards, and is counted there. "program" starts the bare
program; "shell" a script of sh on both sides. In one further run all daemons but the shepherds are killed half way.
Slurm's array has a tenth of the elements, for it needs minutes for all of them. ``--submits``: as many single
submissions of scripts, one after the other, beside Slurm.

Peers that cannot be had are left out, and the table says so. Prints a table; ``--json FILE``, ``--svg FILE``.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import picture
from kit import Bench, cpu_seconds, machine, some_user, timed
from peers import HYPERQUEUE, HyperQueue, Slurm

from hpcmesos import pidfile

AGENTS = 4
SCRIPT = "#!/bin/sh\n[ $((${PBS_ARRAYID:-${SLURM_ARRAY_TASK_ID:-0}} % 100)) -ne 7 ]\n"
SHELL = "[ $((${HQ_TASK_ID:-0} % 100)) -ne 7 ]"
"""HyperQueue's form of the script."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--slurm-jobs", type=int, help="elements of Slurm's array; a tenth of --jobs")
    parser.add_argument("--submits", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--cores", type=int, default=16, help="slots of each agent or worker")
    parser.add_argument("--peers", default="hyperqueue,slurm", help="empty: none")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    options.slurm_jobs = options.slurm_jobs or max(1, options.jobs // 10)
    with tempfile.TemporaryDirectory(prefix="hpcmesos-bench-") as directory:
        Path(directory).chmod(0o711)
        figures = Run(Path(directory), options).measure()
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if options.svg:
        options.svg.write_text(picture.bars("Jobs a second, median", picture_rows(figures)))


class Run:
    """One run of everything, in turns."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self.directory = directory
        self.options = options
        self.bench = Bench(directory, some_user())
        self.hyperqueue: HyperQueue | None = None
        self.slurm: Slurm | None = None
        self.left_out: dict[str, str] = {}
        self._numbers = itertools.count()
        self.samples: dict[str, list[dict[str, float]]] = {}

    def measure(self) -> dict[str, Any]:
        options = self.options
        self._start_peers(options.peers.split(","))
        try:
            with self.bench.up(AGENTS, 0, "--cpus", str(options.cores)):
                settings = self.bench.settings()
                self._take_turns()
                if options.jobs:
                    self._record("hpcmesos, daemons killed", lambda: self._array(killed=True))
        finally:
            for peer in (self.hyperqueue, self.slurm):
                if peer:
                    peer.stop()
        return self._figures(settings)

    def _start_peers(self, wanted: list[str]) -> None:
        size = (AGENTS, self.options.cores, self.bench.user)
        if "hyperqueue" in wanted:
            try:
                self.hyperqueue = HyperQueue(self.directory, *size)
            except (OSError, ValueError, SystemExit) as error:
                self.left_out["hyperqueue"] = str(error)
        if "slurm" in wanted:
            if missing := Slurm.missing() or ([] if os.geteuid() == 0 else ["root"]):
                self.left_out["slurm"] = f"without {', '.join(missing)}"
            else:
                self.slurm = Slurm(self.directory, *size)

    def _take_turns(self) -> None:
        options = self.options
        for _ in range(options.repeat):
            if options.jobs:
                self._record("hpcmesos, program", self._array)
                self._record("hpcmesos, shell", lambda: self._array(script=True))
                if self.hyperqueue:
                    self._record("hyperqueue, program", lambda: self._hyperqueue(bare=True))
                    self._record("hyperqueue, shell", lambda: self._hyperqueue(bare=False))
                if self.slurm:
                    self._record("slurm, shell", self._slurm_array)
            if options.submits:
                self._record("hpcmesos, single submits", self._submits)
                if self.slurm:
                    self._record("slurm, single submits", self._slurm_submits)

    def _record(self, name: str, run: Callable[[], dict[str, float]]) -> None:
        self.samples.setdefault(name, []).append(run() | {"load": os.getloadavg()[0]})
        seconds = self.samples[name][-1]["seconds"]
        print(f"{name}: {seconds:.2f} s", file=sys.stderr, flush=True)

    # --- ours

    def _array(self, script: bool = False, killed: bool = False) -> dict[str, float]:
        count = self.options.jobs
        failures = count // 100
        work = self._empty()
        words = ["-o", f"{work}/", "-e", f"{work}/", "-t"]
        before = cpu_seconds(self.bench.state)
        begun = time.perf_counter()
        if script:
            jobs = [self.bench.submit("-S", "/bin/sh", *words, f"0-{count - 1}", stdin=SCRIPT)]
        else:
            jobs = [
                self.bench.submit(*words, f"0-{count - failures - 1}", "--", "/bin/true"),
                self.bench.submit(*words, f"0-{failures - 1}", "--", "/bin/false"),
            ]
        if killed:
            self._kill_half_way(jobs)
        self.bench.hpcmesos("wait", *jobs)
        seconds = time.perf_counter() - begun
        after = cpu_seconds(self.bench.state)
        cpu = {f"{part}_cpu_ms": 1000 * (after[part] - before[part]) / count for part in after}
        self._check(jobs, count, failures)
        files = sum(1 for _ in os.scandir(work))
        if files != 2 * count:
            raise SystemExit(f"{files} output files of {2 * count}")
        return {"seconds": seconds} | ({} if killed else cpu)

    def _check(self, jobs: list[str], count: int, failures: int) -> None:
        """Every element has the exit status that it must have."""
        seqs = [int(job.partition("[")[0].partition(".")[0]) for job in jobs]
        query = (
            "SELECT exit_status, count(*) FROM jobs WHERE seq = ANY(%s) AND element >= 0 AND state = 'C'"
            " GROUP BY 1"
        )
        with self.bench.database() as connection:
            found = dict(connection.execute(query, (seqs,)).fetchall())
        if found != {0: count - failures, 1: failures}:
            raise SystemExit(f"exit statuses {found}, not {count - failures} times 0 and {failures} times 1")

    def _kill_half_way(self, jobs: list[str]) -> None:
        seq = int(jobs[0].partition("[")[0])
        half = self.options.jobs // 2
        with self.bench.database() as connection:
            query = "SELECT count(*) FROM jobs WHERE seq = %s AND element >= 0 AND state = 'C'"
            while connection.execute(query, (seq,)).fetchone()[0] < half:
                time.sleep(0.05)
        for pid in daemons(self.bench.state):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        words = ["--agents", str(AGENTS), "--gpus", "0", "--state", str(self.bench.state), "--detach"]
        self.bench.hpcmesos("up", *words)

    def _submits(self) -> dict[str, float]:
        count = self.options.submits
        work = self._empty()
        before = cpu_seconds(self.bench.state)
        begun = time.perf_counter()
        words = ["-S", "/bin/sh", "-o", f"{work}/", "-e", f"{work}/"]
        jobs = [self.bench.submit(*words, stdin="#!/bin/sh\ntrue\n") for _ in range(count)]
        submitted = time.perf_counter() - begun
        self.bench.hpcmesos("wait", *jobs)
        seconds = time.perf_counter() - begun
        after = cpu_seconds(self.bench.state)
        cpu = {f"{part}_cpu_ms": 1000 * (after[part] - before[part]) / count for part in after}
        return {"seconds": seconds, "submit_s": submitted} | cpu

    # --- theirs

    def _hyperqueue(self, bare: bool) -> dict[str, float]:
        assert self.hyperqueue
        count = self.options.jobs
        failures = count // 100
        commands = [(count, ["sh", "-c", SHELL])]
        if bare:
            commands = [(count - failures, ["/bin/true"]), (failures, ["/bin/false"])]
        answer = self.hyperqueue.run(self._empty(), commands)
        if answer["failed"] != failures:
            raise SystemExit(f"HyperQueue: {answer['failed']} failures of {failures}")
        return answer

    def _slurm_array(self) -> dict[str, float]:
        assert self.slurm
        return {"seconds": self.slurm.array(self._empty(), self.options.slurm_jobs, SCRIPT)}

    def _slurm_submits(self) -> dict[str, float]:
        assert self.slurm
        slurm, work = self.slurm, self._empty()

        def run() -> None:
            for _ in range(self.options.submits):
                slurm.submit(work, script="#!/bin/sh\ntrue\n")
            slurm.wait()

        return {"seconds": timed(run)}

    # --- the outcome

    def _empty(self) -> Path:
        """A new directory in which the user may write. The others stay: ext4 passes over inodes that were freed in the
        last minutes, so whoever makes files after a removal pays for it, up to 1 ms each.
        """
        work = self.directory / f"output{next(self._numbers)}"
        work.mkdir()
        work.chmod(0o777)
        return work

    def _plain(self, text: str) -> str:
        """Without the directories of this run."""
        return text.replace(str(self.directory), "DIR").replace(f"{Path(__file__).parent}/", "")

    def _figures(self, settings: dict[str, str]) -> dict[str, Any]:
        options = self.options
        sizes = {"slurm, shell": options.slurm_jobs}
        jobs = {
            name: options.submits if "submits" in name else sizes.get(name, options.jobs)
            for name in self.samples
        }
        medians = {
            name: {key: statistics.median(one[key] for one in runs) for key in runs[0]}
            for name, runs in self.samples.items()
        }
        return {
            "machine": machine(),
            "jobs": options.jobs,
            "slurm_jobs": options.slurm_jobs,
            "submits": options.submits,
            "repeat": options.repeat,
            "user": self.bench.user or "the present one",
            "postgresql": settings,
            "argv": {
                "hpcmesos": "qsub -t 0-N -- /bin/true | qsub -S /bin/sh -t 0-N",
                "hyperqueue": self._plain(" ".join(self.hyperqueue.argv[1:])) if self.hyperqueue else None,
                "hyperqueue_version": HYPERQUEUE,
                "slurm": "slurmctld -D; slurmd -D -N b1..b4; sbatch --array=0-N",
            },
            "slurm.conf": self._plain(self.slurm.configuration) if self.slurm else None,
            "left_out": self.left_out,
            "jobs_per_s": {name: jobs[name] / one["seconds"] for name, one in medians.items()},
            "medians": medians,
            "samples": self.samples,
        }


def daemons(state: Path) -> list[int]:
    """Masters, API processes, agents and PostgreSQL of a cluster: all but the shepherds."""
    postgres = int((state / "postgres" / "postmaster.pid").read_text().split()[0])
    found = [postgres, *_children(postgres, lambda _: True)]
    for path in [*state.glob("master*/master.pid"), *state.glob("agents/*/agent.pid")]:
        if daemon := pidfile.living(str(path)):
            found += [daemon.pid, *_children(daemon.pid, lambda line: b"shepherd" not in line)]
    return found


def _children(pid: int, wanted: Callable[[bytes], bool]) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if wanted(Path(f"/proc/{child}/cmdline").read_bytes())]


def picture_rows(figures: dict[str, Any]) -> list[tuple[str, float]]:
    return list(figures["jobs_per_s"].items())


def show(figures: dict[str, Any]) -> None:
    print(f"{figures['machine']}; PostgreSQL {figures['postgresql']}; medians of {figures['repeat']}")
    for name, rate in figures["jobs_per_s"].items():
        median = figures["medians"][name]
        cpu = ", ".join(
            f"{key.removesuffix('_cpu_ms')} {value:.2f}" for key, value in median.items() if "cpu" in key
        )
        print(
            f"{name:28} {rate:8.1f} jobs/s {median['seconds']:8.2f} s"
            + (f"   CPU ms a job: {cpu}" if cpu else "")
        )
    for peer, why in figures["left_out"].items():
        print(f"{peer} is left out: {why}")
    rates = figures["jobs_per_s"]
    for kind in ("program", "shell"):
        if f"hyperqueue, {kind}" in rates:
            print(
                f"hpcmesos / hyperqueue, {kind}: {rates[f'hpcmesos, {kind}'] / rates[f'hyperqueue, {kind}']:.2f}"
            )
    if "slurm, single submits" in rates:
        ratio = rates["slurm, single submits"] / rates["hpcmesos, single submits"]
        print(f"time of single submits, hpcmesos / slurm: {ratio:.2f}")


if __name__ == "__main__":
    main()
