"""DPDispatcher: a task whose script begins with an empty line. ``dpdispatcher_task.py PBS|Torque DIR``."""

from __future__ import annotations

import sys
from pathlib import Path

from dpdispatcher import Machine, Resources, Submission, Task


def main() -> None:
    kind, place = sys.argv[1], Path(sys.argv[2])
    local, remote = place / "local", place / "remote"
    (local / "one").mkdir(parents=True)
    remote.mkdir()
    machine = Machine.load_from_dict(
        {
            "batch_type": kind,
            "context_type": "LocalContext",
            "local_root": str(local),
            "remote_root": str(remote),
        }
    )
    resources = Resources.load_from_dict(
        {"number_node": 1, "cpu_per_node": 1, "gpu_per_node": 0, "queue_name": "batch", "group_size": 1}
    )
    task = Task(
        command="echo made by $PBS_JOBNAME > out.txt",
        task_work_path="one/",
        forward_files=[],
        backward_files=["out.txt"],
    )
    submission = Submission(work_base=".", machine=machine, resources=resources, task_list=[task])
    submission.run_submission(check_interval=1)
    print((local / "one" / "out.txt").read_text(), end="")


if __name__ == "__main__":
    main()
