"""qtoolkit, the layer under jobflow-remote: submit, look, cancel. ``qtoolkit_job.py DIR``; prints JSON."""

from __future__ import annotations

import json
import sys
import time

from qtoolkit.core.data_objects import QResources, QState
from qtoolkit.io.pbs import PBSIO
from qtoolkit.manager import QueueManager


def main() -> None:
    manager = QueueManager(PBSIO())
    wanted = QResources(
        queue_name="batch", job_name="from-qtoolkit", nodes=1, processes_per_node=1, time_limit=300
    )
    job_id = manager.submit(
        ["sleep 300"], options=wanted, work_dir=sys.argv[1], create_submit_dir=True
    ).job_id
    deadline = time.monotonic() + 30
    while (job := manager.get_job(job_id)).state is not QState.RUNNING and time.monotonic() < deadline:
        time.sleep(0.1)
    listed = [one.job_id for one in manager.get_jobs_list([job_id])]
    cancelled = manager.cancel(job_id)
    print(
        json.dumps(
            {
                "state": job.state.name,
                "name": job.name,
                "nodes": job.info.nodes,
                "cpus": job.info.cpus,
                "time_limit": job.info.time_limit,
                "listed": listed == [job_id],
                "cancelled": cancelled.status.name,
            }
        )
    )


if __name__ == "__main__":
    main()
