"""TensorFlow, PyTorch and JAX over a gang: which task runs where, on which port, with which GPUs, and what it is told.

``-W framework=`` takes ``tensorflow``, ``tfmesos``, ``torch``, ``torchrun`` or ``jax``. Alone, each slot of the job
becomes one worker; ``tensorflow:ps=1,worker=4`` names roles and counts (``:`` may stand for ``,``, which separates
attributes under ``-W``). ``torchrun`` is one task a node, which starts one process a GPU by itself.

The rules of placement:

- a task takes one slot and has one port of its own, also where the framework listens on the first task's alone;
- ``chief`` and ``worker`` train: in a gang with GPUs they take the slots that have one, head first, and the GPUs of a
  node are divided among those on it. One that would get none is an error: nothing falls to the CPU in silence;
- ``ps`` and ``evaluator`` run on CPUs and get no GPU. They take the slots beyond a node's GPUs first;
- in a gang without GPUs everything runs on CPUs, as was asked.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpcmesos.errors import InvalidValue
from hpcmesos.gang.mpi import rank_gpus
from hpcmesos.model import SIMULATED_PREFIX, Placement, Request

_ROLES: dict[str, tuple[str, ...]] = {
    "tensorflow": ("chief", "worker", "ps", "evaluator"),
    "tfmesos": ("worker", "ps"),
    "torch": ("worker",),
    "torchrun": (),
    "jax": ("worker",),
}
"""What each framework knows, trainers first."""
ROLES = frozenset(role for known in _ROLES.values() for role in known)
_TRAIN = ("chief", "worker")
SERVERS = ("ps",)
"""Roles that never end by themselves: they serve those that train."""
_AT_MOST_ONE = ("chief", "evaluator")
_RENDEZVOUS = ("static", "c10d")
_COMMON = frozenset(
    {
        *("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"),
        *("TFMESOS_PS_HOSTS", "TFMESOS_WORKER_HOSTS", "TFMESOS_DISTRIBUTED"),
        *("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES"),
        *("PET_NNODES", "PET_RDZV_BACKEND", "PET_RDZV_ENDPOINT"),
    }
)


@dataclass(frozen=True, slots=True)
class Framework:
    """What ``-W framework=`` asks for; ``str()`` gives it in its shortest valid form."""

    name: str
    roles: tuple[tuple[str, int], ...] = ()  # with counts, trainers first; empty: a worker a slot
    rendezvous: str = "static"  # torchrun's; c10d listens on ports of its own choice in some versions

    def __str__(self) -> str:
        words = [f"{role}={count}" for role, count in self.roles]
        if self.rendezvous != "static":
            words = [self.rendezvous]
        return f"{self.name}:{','.join(words)}" if words else self.name


@dataclass(frozen=True, slots=True)
class Share:
    """What a gang has of one node."""

    address: str
    slots: int
    gpus: tuple[str, ...] = ()  # UUIDs, in the order of their index on the node
    ports: tuple[int, ...] = ()  # granted with the gang; ``ports_needed`` works without


@dataclass(frozen=True, slots=True)
class Task:
    """One process to start, by the shares' order ``node``."""

    role: str
    index: int  # within its role, from 0
    node: int
    address: str
    port: int
    gpus: tuple[str, ...]
    processes: int = 1  # torchrun: how many it starts by itself


def shares(spec: Mapping[str, Any]) -> tuple[Share, ...]:
    """The members of an attempt's spec (see ``mpi``), with ``ports`` where they were granted."""
    return tuple(
        Share(
            member["address"],
            member["slots"],
            tuple(gpu["uuid"] for gpu in member["gpus"]),
            tuple(member.get("ports", ())),
        )
        for member in spec["members"]
    )


def parse(text: str) -> Framework:
    """Reads the value of ``-W framework=``.

    Raises:
        InvalidValue: one line that says what is wrong and the nearest valid form.
    """
    name, colon, rest = (part.strip() for part in text.partition(":"))
    if name not in _ROLES:
        raise _invalid(text, f"no such framework; write {_nearest(name, _ROLES)}")
    words = [word.strip() for word in re.split("[,:]", rest)] if colon else []
    if name == "torchrun":
        if len(words) > 1 or not set(words) <= set(_RENDEZVOUS):
            raise _invalid(text, "torchrun starts a process a GPU by itself; write torchrun or torchrun:c10d")
        return Framework(name, (), *words)
    counts: dict[str, int] = {}
    for word in words:
        role, count = _role(text, name, word)
        if role in counts:
            raise _invalid(text, f"{role} is named twice; write {name}:{role}={counts[role]}")
        counts[role] = count
    roles = tuple((role, counts[role]) for role in _ROLES[name] if counts.get(role))
    if words and not any(role in _TRAIN for role, _ in roles):
        nearest = Framework(name, (("worker", 1), *roles))
        raise _invalid(text, f"nobody trains; write {nearest}")
    return Framework(name, roles)


def _role(text: str, name: str, word: str) -> tuple[str, int]:
    role, _, count = (part.strip() for part in word.partition("="))
    known = _ROLES[name]
    if role not in known:
        nearest = _nearest(role, known)
        raise _invalid(text, f"{name} has no role {role!r}; write {name}:{nearest}={_count(nearest, count)}")
    if not re.fullmatch("[0-9]{1,6}", count) or int(count) != _count(role, count):
        raise _invalid(text, f"{count!r} is no count of {role}; write {name}:{role}={_count(role, count)}")
    return role, int(count)


def _count(role: str, text: str) -> int:
    """The nearest valid count of the role."""
    count = int(text) if re.fullmatch("[0-9]{1,6}", text) else 1
    return min(count, 1) if role in _AT_MOST_ONE else count


def _nearest(word: str, choices: Iterable[str]) -> str:
    import difflib  # only for the sake of errors, and programs that must start fast import this module

    return difflib.get_close_matches(word, list(choices), n=1, cutoff=0)[0]


def _invalid(asked: object, why: str) -> InvalidValue:
    shown = str(asked)
    return InvalidValue(f"framework={shown if shown.isprintable() else repr(shown)}: {why}")


def check(framework: Framework, request: Request) -> None:
    """Refuses what would not fit the gang that the request gets; where pieces may share a node, as if none did.

    Raises:
        InvalidValue: when the framework's tasks do not fit.
    """
    if request.placement is Placement.PACK:
        pieces = [(request.slots, request.gpus)]
    else:
        pieces = [(chunk.slots, chunk.gpus) for chunk in request.chunks for _ in range(chunk.count)]
    gpus = [str(number) for number in range(max((number for _, number in pieces), default=0))]
    _place(framework, [Share("some nodes", slots, tuple(gpus[:number])) for slots, number in pieces])


def ports_needed(framework: Framework, members: Sequence[Share]) -> tuple[int, ...]:
    """How many ports to grant each member; nodes that share one kernel must not be granted the same.

    Raises:
        InvalidValue: when the framework's tasks do not fit the gang.
    """
    placed = Counter(node for _, node in _place(framework, members))
    return tuple(placed[node] for node in range(len(members)))


def tasks(framework: Framework, members: Sequence[Share]) -> tuple[Task, ...]:
    """The gang's tasks, role by role in the order of their index, so that the first is the one whom all others meet.

    Raises:
        InvalidValue: when there are too few slots, or a task that trains would get no GPU while others have some.
        ValueError: when a member was granted fewer ports than ``ports_needed`` says.
    """
    placed = _place(framework, members)
    trainers = Counter(node for role, node in placed if role in _TRAIN)
    indices: Counter[str] = Counter()
    seats: Counter[int] = Counter()  # tasks on a node so far
    trained: Counter[int] = Counter()
    found = []
    for role, node in placed:
        member = members[node]
        if seats[node] >= len(member.ports):
            raise ValueError(f"member {node} was granted {len(member.ports)} ports, too few for {framework}")
        gpus: tuple[str, ...] = ()
        if role in _TRAIN:
            gpus = tuple(rank_gpus(member.gpus, trained[node], trainers[node])[0])
            trained[node] += 1
        processes = (len(gpus) or member.slots) if framework.name == "torchrun" else 1
        found.append(
            Task(role, indices[role], node, member.address, member.ports[seats[node]], gpus, processes)
        )
        indices[role] += 1
        seats[node] += 1
    return tuple(found)


def _place(framework: Framework, members: Sequence[Share]) -> list[tuple[str, int]]:
    """Role and node of every task, in the order of ``tasks``."""
    if framework.name == "torchrun":
        return _place_by_node(framework, members)
    slots = sum(member.slots for member in members)
    roles = framework.roles or (("worker", max(1, slots)),)
    total = sum(count for _, count in roles)
    if total > slots:
        remedy = _remedy(framework, roles, slots - total)
        raise _invalid(framework, f"{total} tasks take a slot each, the job has {slots}; {remedy}")
    training, spare = _seats(members)
    wanted = sum(count for role, count in roles if role in _TRAIN)
    if wanted > len(training):
        remedy = _remedy(framework, roles, len(training) - wanted)
        raise _invalid(
            framework,
            f"{wanted} tasks train on a GPU each, the job has {len(training)} slots with one; {remedy}",
        )
    seats = iter((*training[:wanted], *spare, *training[wanted:]))
    return [(role, next(seats)) for role, count in roles for _ in range(count)]


def _place_by_node(framework: Framework, members: Sequence[Share]) -> list[tuple[str, int]]:
    nodes = [node for node, member in enumerate(members) if member.slots]
    bare = dict.fromkeys(members[node].address for node in nodes if not members[node].gpus)
    if not nodes:
        raise _invalid(framework, "the job has no slot; ask for one on every node")
    if bare and any(member.gpus for member in members):
        raise _invalid(framework, f"no GPU on {', '.join(bare)}; ask for GPUs on every node, or on none")
    return [("worker", node) for node in nodes]


def _seats(members: Sequence[Share]) -> tuple[list[int], list[int]]:
    """The node of each slot: of those that trainers may take, and of those beyond a node's GPUs; head first."""
    with_gpus = any(member.gpus for member in members)
    training: list[int] = []
    spare: list[int] = []
    for node, member in enumerate(members):
        good = min(member.slots, len(member.gpus)) if with_gpus else member.slots
        training += [node] * good
        spare += [node] * (member.slots - good)
    return training, spare


def _remedy(framework: Framework, roles: tuple[tuple[str, int], ...], change: int) -> str:
    """The nearest form that fits, with fewer workers, if there is one."""
    fewer = ((role, count + change if role == "worker" else count) for role, count in roles)
    left = tuple((role, count) for role, count in fewer if count)
    if any(count < 0 for _, count in left) or not any(role in _TRAIN for role, _ in left):
        return "ask for more"
    return f"ask for more, or write framework={Framework(framework.name, left)}"


def environment(framework: Framework, task: Task, tasks: Sequence[Task]) -> dict[str, str]:
    """The variables that ``task`` finds, on top of those of its host; ``tasks`` are all of the gang's.

    A torch rank sees all GPUs of its node's tasks, for programs choose theirs by LOCAL_RANK. All others see their own
    only: TensorFlow takes the memory of every GPU that it sees.
    """
    return _VARIABLES[framework.name](framework, task, tasks)


def common_environment(framework: Framework, tasks: Sequence[Task]) -> dict[str, str]:
    """Those of the variables that are of the gang as a whole: what the job script finds."""
    found = environment(framework, tasks[0], tasks)
    return {name: value for name, value in found.items() if name in _COMMON}


def placeholders(task: Task, tasks: Sequence[Task]) -> dict[str, str]:
    """What tfmesos' ``{ps_hosts}``, ``{job_name}`` and the like stand for in the arguments of ``task``."""
    values = {f"{role}_hosts": ",".join(_hosts(tasks, role)) for role in _ROLES["tensorflow"]}
    return values | {"job_name": task.role, "task_index": str(task.index)}


def _torchrun_options(framework: Framework, task: Task, tasks: Sequence[Task]) -> dict[str, str]:
    """As https://docs.pytorch.org/docs/stable/elastic/run.html names them.

    With ``static`` every process meets at the granted port; with ``c10d`` the host of the store is told, for torchrun
    guesses it by host names.
    """
    options = {
        "nnodes": str(len(tasks)),
        "nproc-per-node": str(task.processes),
        "rdzv-backend": framework.rendezvous,
        "rdzv-endpoint": _endpoint(tasks[0]),
        "node-rank": str(task.index),
    }
    if framework.rendezvous == "c10d":
        options["rdzv-conf"] = f"is_host={int(task.index == 0)}"
    return options


def _tensorflow(framework: Framework, task: Task, tasks: Sequence[Task]) -> dict[str, str]:
    """TF_CONFIG, and what tfmesos set (tfmesos/server.py).

    The evaluator knows the cluster and is no part of it: https://www.tensorflow.org/api_docs/python/tf/estimator/
    train_and_evaluate and https://www.tensorflow.org/guide/distributed_training#setting_up_the_tf_config_environment_variable
    """
    cluster = {role: _hosts(tasks, role) for role in ("chief", "worker", "ps")}
    config = {
        "cluster": {role: hosts for role, hosts in cluster.items() if hosts},
        "task": {"type": task.role, "index": task.index},
    }
    return {
        "CUDA_VISIBLE_DEVICES": ",".join(task.gpus),
        "TF_CONFIG": json.dumps(config),
        "TFMESOS_PS_HOSTS": ",".join(cluster["ps"]),
        "TFMESOS_WORKER_HOSTS": ",".join(cluster["worker"]),
        "TFMESOS_JOB_NAME": task.role,
        "TFMESOS_TASK_INDEX": str(task.index),
        "TFMESOS_DISTRIBUTED": "1",
    }


def _torch(framework: Framework, task: Task, tasks: Sequence[Task]) -> dict[str, str]:
    """What init_process_group reads for ``env://`` (https://docs.pytorch.org/docs/stable/distributed.html).

    And what torchrun sets beside it, for programs that were written for torchrun.
    """
    local = [other for other in tasks if other.node == task.node]
    nodes = list(dict.fromkeys(other.node for other in tasks))
    node_rank = str(nodes.index(task.node))
    return {
        "CUDA_VISIBLE_DEVICES": ",".join(gpu for other in local for gpu in other.gpus),
        "MASTER_ADDR": tasks[0].address,
        "MASTER_PORT": str(tasks[0].port),
        "RANK": str(task.index),
        "WORLD_SIZE": str(len(tasks)),
        "LOCAL_RANK": str(local.index(task)),
        "LOCAL_WORLD_SIZE": str(len(local)),
        "NODE_RANK": node_rank,
        "GROUP_RANK": node_rank,
        "GROUP_WORLD_SIZE": str(len(nodes)),
    }


def _torchrun(framework: Framework, task: Task, tasks: Sequence[Task]) -> dict[str, str]:
    """torchrun reads options that its command line lacks from PET_OPTION (torch/distributed/argparse_util.py)."""
    options = _torchrun_options(framework, task, tasks)
    return {
        "CUDA_VISIBLE_DEVICES": ",".join(task.gpus),
        "MASTER_ADDR": tasks[0].address,
        "MASTER_PORT": str(tasks[0].port),
        "NODE_RANK": str(task.index),
        **{f"PET_{option.replace('-', '_').upper()}": value for option, value in options.items()},
    }


def _jax(framework: Framework, task: Task, tasks: Sequence[Task]) -> dict[str, str]:
    """What jax.distributed.initialize reads, and what it has to be given.

    It reads JAX_COORDINATOR_ADDRESS and JAX_LOCAL_DEVICE_IDS by itself (jax/_src/distributed.py, 0.10).
    JAX_NUM_PROCESSES and JAX_PROCESS_ID, as Kubeflow names them, are the program's to pass on:
    ``jax.distributed.initialize(num_processes=int(os.environ["JAX_NUM_PROCESSES"]), process_id=...)``.

    With a real GPU JAX_PLATFORMS is ``cuda`` alone: with ``cuda,cpu``, or unset, JAX would go on without CUDA.
    """
    variables = {
        "CUDA_VISIBLE_DEVICES": ",".join(task.gpus),
        "JAX_COORDINATOR_ADDRESS": _endpoint(tasks[0]),
        "JAX_NUM_PROCESSES": str(len(tasks)),
        "JAX_PROCESS_ID": str(task.index),
    }
    if task.gpus:
        variables["JAX_LOCAL_DEVICE_IDS"] = ",".join(str(position) for position in range(len(task.gpus)))
        if not task.gpus[0].startswith(SIMULATED_PREFIX):
            variables["JAX_PLATFORMS"] = "cuda"
    return variables


_VARIABLES = {
    "tensorflow": _tensorflow,
    "tfmesos": _tensorflow,
    "torch": _torch,
    "torchrun": _torchrun,
    "jax": _jax,
}


def _hosts(tasks: Iterable[Task], role: str) -> list[str]:
    return [_endpoint(task) for task in tasks if task.role == role]


def _endpoint(task: Task) -> str:
    return f"[{task.address}]:{task.port}" if ":" in task.address else f"{task.address}:{task.port}"
