"""pysqa: two jobs, the second after the first. ``pysqa_jobs.py DIR``; prints JSON."""

from __future__ import annotations

import json
import sys
import time

from pysqa import QueueAdapter


def main() -> None:
    queue, directory = QueueAdapter(queue_type="TORQUE"), sys.argv[1]
    first = queue.submit_job(
        command="sleep 300",
        job_name="first",
        working_directory=directory,
        cores=1,
        memory_max=1,
        run_time_max=600,
    )
    second = queue.submit_job(
        command="true", job_name="second", working_directory=directory, cores=1, dependency_list=[str(first)]
    )
    deadline = time.monotonic() + 30
    while queue.get_status_of_job(process_id=first) != "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    states = [queue.get_status_of_job(process_id=one) for one in (first, second)]
    for one in (second, first):
        queue.delete_job(process_id=one)
    print(json.dumps(states))


if __name__ == "__main__":
    main()
