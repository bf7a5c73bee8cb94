"""PSI/J: one job ends well, one fails, one has two nodes, one is cancelled. ``psij_jobs.py EXECUTOR DIR``."""

from __future__ import annotations

import json
import sys
from datetime import timedelta

from psij import Job, JobAttributes, JobExecutor, JobSpec, JobState, ResourceSpecV1
from psij.executors.batch.batch_scheduler_executor import BatchSchedulerExecutorConfig

MINUTE = timedelta(minutes=1)


def job(directory: str, nodes: int, *command: str) -> Job:
    return Job(
        JobSpec(
            executable=command[0],
            arguments=list(command[1:]),
            directory=directory,
            launcher="single",
            resources=ResourceSpecV1(node_count=nodes, processes_per_node=1),
            attributes=JobAttributes(duration=5 * MINUTE, queue_name="batch"),
        )
    )


def main() -> None:
    often = BatchSchedulerExecutorConfig(initial_queue_polling_delay=1, queue_polling_interval=1)
    executor, directory = JobExecutor.get_instance(sys.argv[1], config=often), sys.argv[2]
    jobs = {
        "good": job(directory, 1, "/bin/true"),
        "bad": job(directory, 1, "/bin/sh", "-c", "exit 3"),
        "two": job(directory, 2, "/bin/sh", "-c", "test $(sort -u $PBS_NODEFILE | wc -l) = 2"),
        "cancelled": job(directory, 1, "/bin/sleep", "300"),
    }
    for one in jobs.values():
        executor.submit(one)
    jobs["cancelled"].wait(timeout=MINUTE, target_states=[JobState.ACTIVE])
    jobs["cancelled"].cancel()
    ended = {name: one.wait(timeout=MINUTE) for name, one in jobs.items()}
    print(json.dumps({name: [status.state.name, status.exit_code] for name, status in ended.items()}))


if __name__ == "__main__":
    main()
