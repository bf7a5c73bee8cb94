"""How long a replay takes, and what comes of it: Philly's 82,247 jobs on equal nodes of 8 GPUs, the shipped policy.

Prints a table and, with ``--json FILE``, writes the figures: CPU seconds of this process, calls of ``schedule()``,
utilisation, waits by size of the jobs. ``HPCMESOS_TRACES`` names the directory of the trace; ``--trace`` another CSV.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from hpcmesos.gang.policy import NAMED
from hpcmesos.gang.simulate import Simulator
from hpcmesos.traces import clusters, gpu_csv, report
from hpcmesos.units import format_duration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(os.environ.get("HPCMESOS_TRACES", ".")) / "philly_82k.csv.gz"
    parser.add_argument("--trace", type=Path, default=default)
    parser.add_argument("--nodes", type=int, default=96)
    parser.add_argument("--policy", default="default", choices=sorted(NAMED))
    parser.add_argument("--unknown", action="store_true", help="the scheduler does not know run times")
    parser.add_argument("--jobs", type=int, help="the first so many only")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jobs = sorted(gpu_csv.read(args.trace), key=lambda job: (job.submitted_at, job.id))[: args.jobs]
    site = clusters.grid(args.nodes, 8)
    began = time.process_time()
    replay = Simulator(site, jobs, NAMED[args.policy], known=not args.unknown).run()
    seconds = time.process_time() - began
    figures = report.summary(args.policy, replay, site)
    print(
        f"{len(jobs):,} jobs on {args.nodes} x 8 GPUs, policy {args.policy}: {seconds:.1f} s of CPU,"
        f" {replay.calls:,} decisions, utilisation {figures.utilisation:.1%}"
    )
    for size, waits in figures.by_size.items():
        shown = (format_duration(value) for value in (waits.mean, waits.median, waits.p95, waits.longest))
        print(f"{size:>6} GPUs {waits.jobs:>7,} jobs: wait mean, median, p95, longest", *shown)
    if args.json:
        content = {"cpu_s": seconds, "calls": replay.calls, "nodes": args.nodes, **figures.as_json()}
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
