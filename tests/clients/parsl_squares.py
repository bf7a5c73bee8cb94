"""Parsl: squares by a block of workers that is a PBS job. ``parsl_squares.py torque|pbspro DIRECTORY``; prints JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.launchers import SimpleLauncher
from parsl.providers import PBSProProvider, TorqueProvider


@parsl.python_app
def square(number: int) -> tuple[int, str]:
    import os

    return number * number, os.environ["PBS_JOBID"]


def main() -> None:
    kind, directory = sys.argv[1], Path(sys.argv[2])
    common = {
        "launcher": SimpleLauncher(),
        "init_blocks": 1,
        "max_blocks": 1,
        "walltime": "00:05:00",
        "worker_init": f"export PATH={Path(sys.executable).parent}:$PATH",
    }
    provider = TorqueProvider(**common) if kind == "torque" else PBSProProvider(**common, cpus_per_node=1)
    executor = HighThroughputExecutor(
        label="blocks", address="127.0.0.1", max_workers_per_node=1, provider=provider
    )
    with parsl.load(Config(executors=[executor], run_dir=str(directory / "runinfo"))):
        done = [future.result(timeout=50) for future in [square(number) for number in range(10)]]
        executor.provider._status()
        states = {job: str(known["status"].state) for job, known in executor.provider.resources.items()}
    print(
        json.dumps(
            {"squares": [one for one, _ in done], "jobs": sorted({job for _, job in done}), "states": states}
        )
    )


if __name__ == "__main__":
    main()
