"""dask-jobqueue: a sum over workers that are PBS jobs. Prints JSON: the sum, and each worker's job and host."""

from __future__ import annotations

import json
import os
import sys

from dask.distributed import Client
from dask_jobqueue import PBSCluster

WORKERS = 2


def job_of_worker() -> str:
    return os.environ["PBS_JOBID"]


def main() -> None:
    with (
        PBSCluster(
            cores=1,
            memory="512MiB",
            walltime="00:05:00",
            log_directory=sys.argv[1],
            local_directory=sys.argv[1],
        ) as cluster,
        Client(cluster) as client,
    ):
        cluster.scale(jobs=WORKERS)
        client.wait_for_workers(WORKERS, timeout=40)
        total = sum(client.gather(client.map(lambda number: number * number, range(100))))
        print(json.dumps({"sum": total, "jobs": sorted(client.run(job_of_worker).values())}))


if __name__ == "__main__":
    main()
