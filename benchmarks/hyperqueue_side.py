"""HyperQueue's side, run by a Python that has it: a LocalCluster with workers, fed by lines of JSON on stdin.

Each line is {"directory": PATH, "commands": [[COUNT, [WORD, ...]], ...]}: one job of as many tasks; answered by a line
{"seconds": S, "failed": N}, from submission until all tasks have ended. Every task has two files of its own.
"""

from __future__ import annotations

import json
import sys
import time

from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig


def main() -> None:
    workers, cores = int(sys.argv[1]), int(sys.argv[2])
    with LocalCluster() as cluster:
        for _ in range(workers):
            cluster.start_worker(WorkerConfig(cores=cores))
        client = cluster.client()
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            print(json.dumps(run(client, request["directory"], request["commands"])), flush=True)


def run(client, directory: str, commands: list) -> dict[str, float]:
    begun = time.perf_counter()
    job = Job(default_workdir=directory, max_fails=None)
    for count, words in commands:
        for _ in range(count):
            job.program(words)
    submitted = client.submit(job)
    client.wait_for_jobs([submitted], raise_on_error=False)
    seconds = time.perf_counter() - begun
    failed = len(client.get_failed_tasks(submitted))
    client.forget(submitted)
    return {"seconds": seconds, "failed": failed}


main()
