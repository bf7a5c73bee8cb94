"""Every budget of speed, in one run: each benchmark in its turn, and a table of what was measured beside its budget.

``--directory DIR`` keeps each benchmark's JSON and `budgets.json`. What a benchmark cannot measure here (a peer that
cannot be had) stands as "not measured". All of it takes about an hour; ``--only NAME,...`` runs some, ``--small`` each
in seconds and without peers, which shows that all still run and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAMS: dict[str, tuple[list[str], list[str]]] = {
    "throughput": (
        ["throughput.py", "--svg", "throughput.svg"],
        ["--jobs", "100", "--submits", "3", "--repeat", "1", "--peers", ""],
    ),
    "latencies": (["latencies.py"], ["--known", "50", "--repeat", "1", "--idle", "1"]),
    "arrays": (["arrays.py", "--repeat", "1"], ["--listed", "50", "--true", "50"]),
    "answering": (["answering.py"], ["--jobs", "50", "--old", "1", "--stranger", "1", "--repeat", "1"]),
    "many_agents": (
        ["many_agents.py", "--seconds", "30"],
        ["--agents", "20", "--rate", "10", "--seconds", "2"],
    ),
    "schedule": (["schedule.py"], ["--small", "--repeat", "1"]),
    "launch": (["launch.py", "--repeat", "3"], ["--nodes", "2", "--ranks", "4", "--repeat", "1"]),
    "takeover": (["takeover.py"], ["--pending", "50", "--kills", "1"]),
    "stop": (
        ["takeover.py", "--stop", "--pending", "20000", "--kills", "10"],
        ["--pending", "50", "--kills", "1"],
    ),
}
"""By name: the program with its options, and those that make it small."""

Figures = Any
"""What a program wrote as JSON."""


@dataclass(frozen=True)
class Budget:
    """One line of the table. ``most``: the value must not be above ``limit``; else not below it."""

    what: str
    program: str
    value: Callable[[Figures], float]
    limit: float
    most: bool = True

    def kept(self, value: float) -> bool:
        return value <= self.limit if self.most else value >= self.limit


def _cpu(name: str, *parts: str) -> Callable[[Figures], float]:
    return lambda found: sum(found["medians"][name][f"{part}_cpu_ms"] for part in parts)


def _ratio(one: str, other: str) -> Callable[[Figures], float]:
    return lambda found: found["jobs_per_s"][one] / found["jobs_per_s"][other]


def _gang(name: str) -> Callable[[Figures], float]:
    return lambda found: found["gang of 4 x 8 GPUs, ms"][name]["median"]


ARRAY = "hpcmesos, program"
BUDGETS = (
    Budget(
        "array, program: times HyperQueue's rate",
        "throughput",
        _ratio(ARRAY, "hyperqueue, program"),
        1.2,
        False,
    ),
    Budget(
        "array, sh: times HyperQueue's rate",
        "throughput",
        _ratio("hpcmesos, shell", "hyperqueue, shell"),
        1.2,
        False,
    ),
    Budget(
        "array, sh: times Slurm's rate", "throughput", _ratio("hpcmesos, shell", "slurm, shell"), 1.0, False
    ),
    Budget(
        "single submits: times Slurm's time",
        "throughput",
        _ratio("slurm, single submits", "hpcmesos, single submits"),
        2.0,
    ),
    Budget("CPU ms an element: leader", "throughput", _cpu(ARRAY, "leader"), 0.35),
    Budget("CPU ms an element: PostgreSQL", "throughput", _cpu(ARRAY, "postgres"), 0.35),
    Budget(
        "CPU ms an element: shepherd, starter, agent",
        "throughput",
        _cpu(ARRAY, "shepherds", "starters", "agents"),
        0.9,
    ),
    Budget("CPU ms an element: its own processes", "throughput", _cpu(ARRAY, "jobs"), 1.5),
    Budget(
        "CPU ms an element: in all",
        "throughput",
        _cpu(ARRAY, "leader", "api", "postgres", "shepherds", "starters", "agents", "jobs"),
        3.2,
    ),
    Budget("qsub, ms", "latencies", lambda found: found["commands, ms"]["qsub"]["median_ms"], 20),
    Budget("qstat JOB, ms", "latencies", lambda found: found["commands, ms"]["qstat JOB"]["median_ms"], 20),
    Budget(
        "jobs in bulk, a second",
        "latencies",
        lambda found: found["jobs in bulk"]["jobs a second, median"],
        5000,
        False,
    ),
    Budget("array of a million accepted, s", "latencies", lambda found: found["a million accepted, s"], 1.0),
    Budget("gang of 4 x 8: first line, ms", "latencies", _gang("the script's first line"), 80),
    Budget("gang of 4 x 8: hpcmesos run, ms", "latencies", _gang("last of 4 hosts, hpcmesos run"), 150),
    Budget("gang of 4 x 8: mpiexec, ms", "latencies", _gang("last of 4 hosts, mpiexec"), 350),
    Budget(
        "idle daemons of a node, MiB", "latencies", lambda found: found["idle"]["a node's daemons, MiB"], 60
    ),
    Budget(
        "idle daemons of a node, % of a core",
        "latencies",
        lambda found: found["idle"]["a node's daemons, % of a core"],
        0.5,
    ),
    Budget(
        "qstat of one element of 100,000, ms",
        "arrays",
        lambda found: found["qstat midway"]["one element that waits"]["median_ms"],
        50,
    ),
    Budget("qstat, folded, ms", "arrays", lambda found: found["qstat midway"]["folded"]["median_ms"], 200),
    Budget("qstat -t, ms", "arrays", lambda found: found["qstat midway"]["expanded"]["median_ms"], 2000),
    Budget("rate while 200 ask, part", "answering", lambda found: found["asked / alone"], 0.9, False),
    Budget("their answers, p99 ms", "answering", lambda found: found["answer_ms"]["p99"], 200),
    Budget(
        "rate within a stranger's 5 minutes, part",
        "answering",
        lambda found: found["stranger / alone"],
        0.9,
        False,
    ),
    Budget(
        "rate after a stranger's 5 minutes, part",
        "answering",
        lambda found: found["older stranger / alone"],
        0.9,
        False,
    ),
    Budget("2,000 agents: cores of the leader", "many_agents", lambda found: found["cores"]["leader"], 1.0),
    Budget("one decision, 100,000 on 10,000 nodes, s", "schedule", lambda found: found[0]["total_s"], 1.0),
    Budget(
        "64 ranks, hpcmesos run: times bare Hydra",
        "launch",
        lambda found: found["barrier"]["wall_s"]["run"] / found["barrier"]["wall_s"]["bare"],
        1.2,
    ),
    Budget(
        "64 ranks, the ring: times bare Hydra",
        "launch",
        lambda found: found["ring"]["wall_s"]["ring"] / found["ring"]["wall_s"]["bare"],
        1.2,
    ),
    Budget("leader killed: next job, median s", "takeover", lambda found: found["median_s"], 3.0),
    Budget("leader killed: next job, longest s", "takeover", lambda found: found["max_s"], 3.0),
    Budget("leader told to stop: next job, median s", "stop", lambda found: found["median_s"], 0.5),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--only", help=f"of {','.join(PROGRAMS)}; empty: only the table, of what is there")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    wanted = list(PROGRAMS) if options.only is None else list(filter(None, options.only.split(",")))
    for name in wanted:
        run(name, options.directory, options.small)
    rows = table(options.directory)
    for row in rows:
        print(line(row))
    (options.directory / "budgets.json").write_text(json.dumps(rows, indent=2) + "\n")


def run(name: str, directory: Path, small: bool) -> None:
    """One benchmark; its output goes to NAME.log, its figures to NAME.json."""
    (program, *words), fewer = PROGRAMS[name]
    words += fewer if small else []
    path = Path(__file__).resolve().with_name(program)
    figures = directory.resolve() / f"{name}.json"
    figures.unlink(missing_ok=True)
    with (directory / f"{name}.log").open("w") as log:
        command = [sys.executable, str(path), *words, "--json", str(figures)]
        code = subprocess.run(
            command, cwd=directory, stdout=log, stderr=subprocess.STDOUT, check=False
        ).returncode
    print(
        f"{name}: " + ("done" if code == 0 else f"exit code {code}, see {log.name}"),
        file=sys.stderr,
        flush=True,
    )


def table(directory: Path) -> list[dict[str, Any]]:
    """One row for each budget; ``value`` is None where it was not measured."""
    rows = []
    for budget in BUDGETS:
        path = directory / f"{budget.program}.json"
        try:
            value = float(budget.value(json.loads(path.read_text())))
        except (FileNotFoundError, KeyError):  # it was not run, or without the peer that this line needs
            value = None
        kept = None if value is None else budget.kept(value)
        sign = "<=" if budget.most else ">="
        rows.append(
            {
                "what": budget.what,
                "program": budget.program,
                "value": value,
                "budget": f"{sign} {budget.limit:g}",
                "kept": kept,
            }
        )
    return rows


def line(row: dict[str, Any]) -> str:
    if row["value"] is None:
        return f"{row['what']:45} not measured {row['budget']:>10}"
    return f"{row['what']:45} {row['value']:12.2f} {row['budget']:>10}  {'kept' if row['kept'] else 'MISSED'}"


if __name__ == "__main__":
    main()
