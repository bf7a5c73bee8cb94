"""How long one decision takes: 10,000 nodes x 8 GPUs, half busy, 100,000 waiting jobs of 500 shapes.

Measured, in CPU seconds of this process on one core: 1,000 changed rows into the tables, the plan, the reasons of all
jobs that wait, and estimated starts of the first 1,000. Under the leader's own policy, with at most 1,000 starts in one
pass; ``--all-at-once`` starts all that fits in one plan. What is loaded is kept from the collector, as in the leader.
Prints a table; ``--json FILE`` and ``--picture FILE`` (SVG, log-log) write the same for growing numbers of nodes and of
jobs. ``--small`` keeps it alive in CI.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import resource
import statistics
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from hpcmesos.gang.schedule import schedule
from hpcmesos.gang.snapshot import GpuView, JobView, Member, NodeView, RunningView, Snapshot
from hpcmesos.gang.tables import JobTable, NodeTable, RunningTable
from hpcmesos.master.passes import POLICY
from hpcmesos.model import Chunk, GpuUuid, JobId, NodeName, Placement, Request

GPUS, CPUS, MEM = 8, 64, 512 << 30
NOW = 1_800_000_000.0
NODES_PER_LEAF = 32


def node(at: int) -> NodeView:
    gpus = tuple(GpuView(GpuUuid(f"GPU-{at}-{gpu}"), gpu, True, gpu // 4) for gpu in range(GPUS))
    switch = f"core/row{at // (NODES_PER_LEAF * 16)}/leaf{at // NODES_PER_LEAF}"
    return NodeView(NodeName(f"node{at}"), True, CPUS, CPUS, MEM, MEM, gpus, frozenset({"a100"}), (), switch)


def shapes(count: int, rng: random.Random) -> list[Request]:
    """Mostly parts of one node, some gangs of up to 64 nodes."""
    found: dict[Request, None] = {}
    while len(found) < count:
        if rng.random() < 0.7:
            gpus = rng.choice((0, 1, 1, 2, 4, 8))
            chunk = Chunk(1, rng.randint(1, 64), gpus, rng.randint(0, 64) << 30)
        else:
            gpus = rng.choice((4, 8, 8))
            chunk = Chunk(
                rng.choice((2, 4, 8, 16, 32, 64)), rng.randint(gpus, 64), gpus, rng.randint(0, 64) << 30
            )
        found[Request((chunk,), Placement.SCATTER)] = None
    return list(found)


class Bench:
    """Tables as the leader keeps them."""

    def __init__(self, nodes: int, jobs: int, most: int, seed: int = 1) -> None:
        """``most``: starts in one plan."""
        self.policy = replace(POLICY, max_starts=most)
        rng = random.Random(seed)
        views = [node(at) for at in range(nodes)]
        self.nodes = NodeTable(views)
        self.running = RunningTable(self.nodes)
        self.pending = JobTable()
        busy = rng.sample(range(nodes), nodes // 2)
        for number, at in enumerate(busy):
            uuids = tuple(gpu.uuid for gpu in views[at].gpus)
            member = Member(views[at].name, CPUS, MEM, GPUS, uuids)
            ends = NOW + rng.uniform(60, 86400)
            self.nodes.allocate([member])
            self.running.put(RunningView(JobId(number, "r"), (member,), NOW - 3600, ends, user="u"))
        kinds = shapes(min(500, jobs), rng)
        for number in range(jobs):
            request = rng.choice(kinds)
            walltime = rng.choice((600, 3600, 14400, 86400))
            waited = rng.uniform(0, 7 * 86400)
            job = JobId(1_000_000 + number, "p")
            user = f"user{rng.randrange(200)}"
            self.pending.put(
                JobView(
                    job,
                    replace(request, walltime=walltime),
                    rng.randint(0, 2),
                    NOW - waited,
                    "batch",
                    user=user,
                )
            )
        self.rng = rng

    def change(self, rows: int) -> list[NodeView]:
        """So many rows as an owner of the tables would bring them: nodes whose state has come anew."""
        return [view for at, view in enumerate(self.nodes) if at < rows]

    def measure(self, rows: int) -> dict[str, float]:
        changed = self.change(rows)
        marks = [time.process_time()]
        self.nodes.put(changed)
        marks.append(time.process_time())
        snapshot = Snapshot(self.nodes, self.pending, running=self.running)
        plan = schedule(snapshot, self.policy, NOW)
        marks.append(time.process_time())
        reasons = dict(plan.reasons)
        marks.append(time.process_time())
        estimates = plan.estimates(1000)
        marks.append(time.process_time())
        rows_s, plan_s, reasons_s, estimates_s = (b - a for a, b in pairwise(marks))
        return {
            "rows_s": rows_s,
            "plan_s": plan_s,
            "reasons_s": reasons_s,
            "estimates_s": estimates_s,
            "total_s": marks[-1] - marks[0],
            "starts": len(plan.starts),
            "reasons": len(reasons),
            "estimates": len(estimates),
        }


def run(nodes: int, jobs: int, repeat: int, most: int) -> dict[str, float]:
    bench = Bench(nodes, jobs, most)
    gc.collect()
    gc.freeze()
    results = [bench.measure(min(1000, nodes)) for _ in range(repeat)]
    figures = {key: statistics.median(result[key] for result in results) for key in results[0]}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"nodes": nodes, "jobs": jobs, **figures, "peak_mib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--small", action="store_true")
    parser.add_argument(
        "--growth", action="store_true", help="also a tenth and a hundredth of nodes and of jobs"
    )
    parser.add_argument("--all-at-once", action="store_true", help="start all that fits in one plan")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    if args.small:
        args.nodes, args.jobs, args.repeat = 100, 1000, 1
    sizes = [(args.nodes, args.jobs)]
    if args.growth or args.picture:
        sizes = [
            *((args.nodes, args.jobs // part) for part in (100, 31, 10, 3, 1)),
            *((args.nodes // part, args.jobs) for part in (100, 31, 10, 3)),
        ]
    results = []
    for nodes, jobs in sizes:
        figures = run(nodes, jobs, args.repeat, jobs if args.all_at_once else POLICY.max_starts)
        gc.unfreeze()
        results.append(figures)
        print(
            "  ".join(f"{key} {value:,.3f}".removesuffix(".000") for key, value in figures.items()),
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    if args.picture:
        _picture(results, args)


def _picture(results: list[dict[str, float]], args: argparse.Namespace) -> None:
    from hpcmesos.traces.pictures import Line, log_log

    by_jobs = [(row["jobs"], row["total_s"]) for row in results if row["nodes"] == args.nodes]
    by_nodes = [(row["nodes"], row["total_s"]) for row in results if row["jobs"] == args.jobs]
    lines = [
        Line(f"waiting jobs, at {args.nodes:,} nodes", tuple(sorted(by_jobs))),
        Line(f"nodes, at {args.jobs:,} waiting jobs", tuple(sorted(by_nodes))),
    ]
    args.picture.write_text(log_log(lines, "number of jobs or nodes", "CPU seconds of one decision"))


if __name__ == "__main__":
    main()
