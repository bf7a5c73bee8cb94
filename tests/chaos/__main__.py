"""``scripts/chaos``: a seeded run of jobs and faults, and whether every promise was kept.

Exit code 0: they were. The same seed makes the same jobs and the same plan of faults; what they meet differs.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tests.chaos import clusters, plan, verdict
from tests.chaos.run import Run, run
from tests.e2e.accounts import accounts


def main() -> int:
    words = _parse()
    kinds = words.kinds.split(",") if words.kinds else clusters.kinds_here()
    planned = plan.make(words.seed, words.minutes * 60, words.jobs, words.faults, kinds)
    say(f"seed {words.seed}: {words.jobs} jobs, {len(planned.faults)} faults, {words.minutes:g} minutes")
    with accounts():
        done = run(planned, say, words.keep)
    print(verdict.table(done.verdict, done.faults, words.seed, done.notes))
    if words.json:
        words.json.write_text(json.dumps(_as_json(planned, done), indent=1) + "\n")
    if words.keep and not done.verdict.kept:
        print(f"logs: {words.keep}")
    return 0 if done.verdict.kept else 1


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long jobs and faults come (2)")
    parser.add_argument("--jobs", type=int, default=300, help="how many (300)")
    parser.add_argument(
        "--faults", type=int, default=20, help="how many, rounded up to equally many of each kind (20)"
    )
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(10**6), help="a number (random)"
    )
    parser.add_argument(
        "--kinds", default="", help=f"faults to do, by commas; of {', '.join(clusters.kinds_here())}"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--keep", type=Path, help="folder for all logs when a promise was broken")
    return parser.parse_args()


def _as_json(planned: plan.Plan, done: Run) -> dict[str, object]:
    return {
        "seed": planned.seed,
        "seconds": round(done.seconds, 1),
        "counts": dict(done.verdict.counts),
        "slowest_node_lost": round(done.verdict.slowest, 1),
        "violations": {promise: found for promise, found in done.verdict.violations.items() if found},
        "faults": [asdict(fault) for fault in done.faults],
        "invariants_looked_at": done.looks,
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
    }


if __name__ == "__main__":
    sys.exit(main())
