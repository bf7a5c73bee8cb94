"""``-W framework=``: what each task of this node is told. Written once with PREPARE, so that ranks start quickly.

The shepherd writes ``tasks`` into the attempt's directory; the rank wrapper, and the shepherd for commands of the
remote shell, take what belongs to one task. The Nth process that a launch has on a node is the node's Nth task.
"""

from __future__ import annotations

import os

from hpcmesos.launch import quick

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TASK = "HPCMESOS_TASK"
"""Set by who starts several commands on one host by the remote shell: which of its tasks this one is."""
FILE = "HPCMESOS_TASKS"
"""The path of the file, on every host of a job with a framework."""


def of_node(spec: dict[str, Any]) -> dict[str, Any]:
    """What the file holds: how many tasks there are, what all are told, and what each of this node's is told.

    Raises:
        ValueError: when the gang does not have what the framework needs.
    """
    from hpcmesos.gang import frameworks  # 20 ms, for the jobs that ask for it

    framework = frameworks.parse(spec["framework"])
    tasks = frameworks.tasks(framework, frameworks.shares(spec))
    told = [_told(spec, framework, task, tasks) for task in tasks if task.node == spec["me"]]
    # A script on the only task's node may well be that task.
    alone = len(tasks) == len(told) == 1
    common = told[0]["environ"] if alone else frameworks.common_environment(framework, tasks)
    return {"total": len(tasks), "common": common, "tasks": told}


def _told(spec: dict[str, Any], framework: Any, task: Any, tasks: Any) -> dict[str, Any]:
    from hpcmesos.gang import frameworks

    environ = frameworks.environment(framework, task, tasks)
    if spec["gpubind"] == "rank":
        environ["CUDA_VISIBLE_DEVICES"] = ",".join(task.gpus)
    values = frameworks.placeholders(task, tasks) if framework.name == "tfmesos" else {}
    serves = task.role in frameworks.SERVERS
    return {"environ": environ, "values": values, "gpus": list(task.gpus), "serves": serves}


def load(path: str) -> dict[str, Any]:
    """The file's content. Raises OSError or ValueError."""
    with open(path, "rb", buffering=0) as file:
        found: dict[str, Any] = quick.loads(file.readall().decode())
    return found


def choose(known: dict[str, Any], local: int | None) -> dict[str, Any] | None:
    """The node's task ``local``; None for its only one, if that is so. None: there is no such task."""
    tasks: list[dict[str, Any]] = known["tasks"]
    if local is None:
        return tasks[0] if len(tasks) == 1 else None
    return tasks[local] if 0 <= local < len(tasks) else None


def fill(word: str, values: dict[str, str]) -> str:
    """``{ps_hosts}`` and the like replaced; other braces stay."""
    for name, value in values.items():
        word = word.replace(f"{{{name}}}", value)
    return word


def of_rank(local_rank: int, size: int) -> dict[str, Any] | None:
    """The task of this rank of an MPI launch; None: the job has no framework, or more ranks than tasks."""
    path = os.environ.get(FILE)
    if not path:
        return None
    known = load(path)
    if size != known["total"] and os.environ.get("HPCMESOS_RANK") == "0":
        os.write(2, f"hpcmesos: {size} ranks were started for {known['total']} tasks\n".encode())
    return choose(known, local_rank)


def become(task: dict[str, Any], command: list[str]) -> list[str]:
    """Takes over what the task is told; answers the words of its command, placeholders filled in."""
    os.environ |= task["environ"]
    return [fill(word, task["values"]) for word in command]


def for_shell(known: dict[str, Any], environ: dict[str, str], command: str) -> str:
    """The same for a command of the remote shell that is started with ``environ``."""
    local = environ.pop(TASK, "")
    task = choose(known, int(local) if local.isdigit() else None)
    if task is None:
        return command
    environ |= task["environ"]
    return fill(command, task["values"])
