"""ipyparallel: two engines as an array; prints the jobs in which they run as JSON."""

from __future__ import annotations

import json

import ipyparallel


def job_of_engine() -> str:
    import os  # it runs over there

    return os.environ["PBS_JOBID"]


def main() -> None:
    cluster = ipyparallel.Cluster(engines="pbs", n=2)
    client = cluster.start_and_connect_sync(activate=False)
    jobs = sorted(client[:].apply_sync(job_of_engine))
    cluster.stop_cluster_sync()
    print(json.dumps(jobs))


if __name__ == "__main__":
    main()
