"""Frameworks over a gang: what users may write, who runs where, and what each task is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hpcmesos.errors import InvalidValue
from hpcmesos.gang import frameworks
from hpcmesos.gang.frameworks import Framework, Share
from hpcmesos.launch.tasks import fill

ROOT = Path(frameworks.__file__).parents[2]


def share(number: int, slots: int, gpus: int = 0, prefix: str = "GPU") -> Share:
    uuids = tuple(f"{prefix}-{number}-{index}" for index in range(gpus))
    return Share(f"10.0.0.{number}", slots, uuids, tuple(range(20000, 20000 + slots)))


def told(text: str, *members: Share) -> list[dict[str, str]]:
    """The environment of every task, in order."""
    framework = frameworks.parse(text)
    tasks = frameworks.tasks(framework, members)
    return [frameworks.environment(framework, task, tasks) for task in tasks]


def places(text: str, *members: Share) -> list[tuple[str, int, int, int]]:
    return [
        (task.role, task.index, task.node, len(task.gpus))
        for task in frameworks.tasks(frameworks.parse(text), members)
    ]


@pytest.mark.parametrize(
    ("text", "framework", "shortest"),
    [
        ("tensorflow", Framework("tensorflow"), "tensorflow"),
        (
            "tensorflow:ps=1,worker=4",
            Framework("tensorflow", (("worker", 4), ("ps", 1))),
            "tensorflow:worker=4,ps=1",
        ),
        (
            " tensorflow : evaluator=1 : chief=1 : ps=0 ",
            Framework("tensorflow", (("chief", 1), ("evaluator", 1))),
            "tensorflow:chief=1,evaluator=1",
        ),
        (
            "tfmesos:ps=1,worker=4",
            Framework("tfmesos", (("worker", 4), ("ps", 1))),
            "tfmesos:worker=4,ps=1",
        ),
        ("torch", Framework("torch"), "torch"),
        ("jax:worker=2", Framework("jax", (("worker", 2),)), "jax:worker=2"),
        ("torchrun", Framework("torchrun"), "torchrun"),
        ("torchrun:static", Framework("torchrun"), "torchrun"),
        ("torchrun:c10d", Framework("torchrun", (), "c10d"), "torchrun:c10d"),
    ],
)
def test_what_users_may_write(text: str, framework: Framework, shortest: str) -> None:
    assert frameworks.parse(text) == framework
    assert str(framework) == shortest
    assert frameworks.parse(shortest) == framework


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tensorflw:ps=1", "framework=tensorflw:ps=1: no such framework; write tensorflow"),
        ("pytorch", "framework=pytorch: no such framework; write torch"),
        ("", "framework=: no such framework; write "),
        (
            "tensorflow:wroker=4",
            "framework=tensorflow:wroker=4: tensorflow has no role 'wroker'; write tensorflow:worker=4",
        ),
        ("torch:ps=1", "framework=torch:ps=1: torch has no role 'ps'; write torch:worker=1"),
        ("tensorflow:", "framework=tensorflow:: tensorflow has no role ''; write tensorflow:"),
        (
            "tensorflow:worker=-1",
            "framework=tensorflow:worker=-1: '-1' is no count of worker; write tensorflow:worker=1",
        ),
        (
            "tensorflow:chief=2",
            "framework=tensorflow:chief=2: '2' is no count of chief; write tensorflow:chief=1",
        ),
        ("tensorflow:ps=2", "framework=tensorflow:ps=2: nobody trains; write tensorflow:worker=1,ps=2"),
        ("tensorflow:worker=0", "framework=tensorflow:worker=0: nobody trains; write tensorflow:worker=1"),
        (
            "tensorflow:worker=1,worker=2",
            "framework=tensorflow:worker=1,worker=2: worker is named twice; write tensorflow:worker=1",
        ),
        (
            "torchrun:worker=2",
            "framework=torchrun:worker=2: torchrun starts a process a GPU by itself; write torchrun or torchrun:c10d",
        ),
        ("a\nb", "framework='a\\nb': no such framework; write "),
    ],
)
def test_refusals_name_the_nearest_valid_form(text: str, message: str) -> None:
    with pytest.raises(InvalidValue) as refusal:
        frameworks.parse(text)
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)


def test_alone_it_is_one_worker_a_slot_head_first() -> None:
    assert places("tensorflow", share(1, 2), share(2, 1)) == [
        ("worker", 0, 0, 0),
        ("worker", 1, 0, 0),
        ("worker", 2, 1, 0),
    ]


def test_trainers_take_slots_with_gpus_and_servers_those_beyond() -> None:
    assert places("tensorflow:chief=1,worker=3,ps=1,evaluator=1", share(1, 3, 2), share(2, 3, 2)) == [
        ("chief", 0, 0, 1),
        ("worker", 0, 0, 1),
        ("worker", 1, 1, 1),
        ("worker", 2, 1, 1),
        ("ps", 0, 0, 0),
        ("evaluator", 0, 1, 0),
    ]


def test_a_server_on_a_slot_with_gpus_leaves_them_to_the_trainers_there() -> None:
    assert places("tensorflow:ps=1,worker=1", share(1, 2, 2)) == [("worker", 0, 0, 2), ("ps", 0, 0, 0)]


def test_a_head_without_gpus_serves() -> None:
    assert places("tfmesos:ps=1,worker=2", share(1, 1), share(2, 2, 4)) == [
        ("worker", 0, 1, 2),
        ("worker", 1, 1, 2),
        ("ps", 0, 0, 0),
    ]


@pytest.mark.parametrize(
    ("text", "members", "message"),
    [
        (
            "tensorflow:ps=1,worker=4",
            [share(1, 4)],
            (
                "framework=tensorflow:worker=4,ps=1: 5 tasks take a slot each, the job has 4; "
                "ask for more, or write framework=tensorflow:worker=3,ps=1"
            ),
        ),
        (
            "torch",
            [share(1, 4, 2), share(2, 4, 1)],
            (
                "framework=torch: 8 tasks train on a GPU each, the job has 3 slots with one; "
                "ask for more, or write framework=torch:worker=3"
            ),
        ),
        (
            "tensorflow:worker=1,ps=3",
            [share(1, 2)],
            "framework=tensorflow:worker=1,ps=3: 4 tasks take a slot each, the job has 2; ask for more",
        ),
        ("jax", [share(1, 0)], "framework=jax: 1 tasks take a slot each, the job has 0; ask for more"),
        (
            "torchrun",
            [share(1, 1, 2), share(2, 1)],
            "framework=torchrun: no GPU on 10.0.0.2; ask for GPUs on every node, or on none",
        ),
        ("torchrun", [share(1, 0)], "framework=torchrun: the job has no slot; ask for one on every node"),
    ],
)
def test_a_gang_that_cannot_hold_the_tasks_is_an_error(text: str, members: list[Share], message: str) -> None:
    framework = frameworks.parse(text)
    for plan in (frameworks.tasks, frameworks.ports_needed):
        with pytest.raises(InvalidValue) as refusal:
            plan(framework, members)
        assert str(refusal.value) == message


def test_every_task_has_a_port_of_its_own() -> None:
    framework = frameworks.parse("tensorflow:ps=1,worker=2")
    members = [
        Share("10.0.0.1", 2, ports=(20007, 20009)),
        Share("10.0.0.2", 2, ports=(20001,)),
        Share("x", 0),
    ]
    assert frameworks.ports_needed(framework, members) == (2, 1, 0)
    assert [task.port for task in frameworks.tasks(framework, members)] == [20007, 20009, 20001]
    with pytest.raises(ValueError, match="member 1 was granted 0 ports"):
        frameworks.tasks(framework, [members[0], Share("10.0.0.2", 2)])


def test_tf_config_of_a_worker() -> None:
    first = told("tensorflow:chief=1,worker=2,ps=1", share(1, 3, 2), share(2, 1, 1))[1]
    assert json.loads(first.pop("TF_CONFIG")) == {
        "cluster": {
            "chief": ["10.0.0.1:20000"],
            "worker": ["10.0.0.1:20001", "10.0.0.2:20000"],
            "ps": ["10.0.0.1:20002"],
        },
        "task": {"type": "worker", "index": 0},
    }
    assert first == {
        "CUDA_VISIBLE_DEVICES": "GPU-1-1",
        "TFMESOS_PS_HOSTS": "10.0.0.1:20002",
        "TFMESOS_WORKER_HOSTS": "10.0.0.1:20001,10.0.0.2:20000",
        "TFMESOS_JOB_NAME": "worker",
        "TFMESOS_TASK_INDEX": "0",
        "TFMESOS_DISTRIBUTED": "1",
    }


def test_the_evaluator_knows_the_cluster_and_is_no_part_of_it() -> None:
    configs = [json.loads(env["TF_CONFIG"]) for env in told("tensorflow:worker=2,evaluator=1", share(1, 3))]
    cluster = {"worker": ["10.0.0.1:20000", "10.0.0.1:20001"]}
    assert configs == [
        {"cluster": cluster, "task": {"type": "worker", "index": 0}},
        {"cluster": cluster, "task": {"type": "worker", "index": 1}},
        {"cluster": cluster, "task": {"type": "evaluator", "index": 0}},
    ]


def test_servers_see_no_gpu() -> None:
    worker, server = told("tensorflow:ps=1,worker=1", share(1, 2, 2))
    assert worker["CUDA_VISIBLE_DEVICES"] == "GPU-1-0,GPU-1-1"
    assert server["CUDA_VISIBLE_DEVICES"] == ""


def test_tfmesos_words_in_arguments() -> None:
    tasks = frameworks.tasks(frameworks.parse("tfmesos:ps=1,worker=2"), [share(1, 2), share(2, 1)])
    argv = ["--ps={ps_hosts}", "--workers={worker_hosts}", "{job_name}:{task_index}", "awk '{print $1}'"]
    values = frameworks.placeholders(tasks[1], tasks)
    assert [fill(word, values) for word in argv] == [
        "--ps=10.0.0.2:20000",
        "--workers=10.0.0.1:20000,10.0.0.1:20001",
        "worker:1",
        "awk '{print $1}'",
    ]


def test_without_servers_tfmesos_hosts_are_empty() -> None:
    framework = frameworks.parse("tfmesos")
    tasks = frameworks.tasks(framework, [share(1, 1)])
    assert fill("{ps_hosts}", frameworks.placeholders(tasks[0], tasks)) == ""
    assert frameworks.environment(framework, tasks[0], tasks)["TFMESOS_PS_HOSTS"] == ""


def test_torch_finds_the_first_rank_and_sees_its_nodes_gpus() -> None:
    assert told("torch", share(1, 2, 2), share(2, 0), share(3, 1, 1))[1:] == [
        {
            "CUDA_VISIBLE_DEVICES": "GPU-1-0,GPU-1-1",
            "MASTER_ADDR": "10.0.0.1",
            "MASTER_PORT": "20000",
            "RANK": "1",
            "WORLD_SIZE": "3",
            "LOCAL_RANK": "1",
            "LOCAL_WORLD_SIZE": "2",
            "NODE_RANK": "0",
            "GROUP_RANK": "0",
            "GROUP_WORLD_SIZE": "2",
        },
        {
            "CUDA_VISIBLE_DEVICES": "GPU-3-0",
            "MASTER_ADDR": "10.0.0.1",
            "MASTER_PORT": "20000",
            "RANK": "2",
            "WORLD_SIZE": "3",
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "NODE_RANK": "1",
            "GROUP_RANK": "1",
            "GROUP_WORLD_SIZE": "2",
        },
    ]


def test_torchrun_is_one_task_a_node_and_a_process_a_gpu() -> None:
    framework = frameworks.parse("torchrun")
    tasks = frameworks.tasks(framework, [share(1, 1, 4), share(2, 1, 2)])
    second = frameworks.environment(framework, tasks[1], tasks)
    assert (second["PET_NPROC_PER_NODE"], second["PET_NODE_RANK"]) == ("2", "1")
    assert frameworks.environment(framework, tasks[0], tasks) == {
        "CUDA_VISIBLE_DEVICES": "GPU-1-0,GPU-1-1,GPU-1-2,GPU-1-3",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "20000",
        "NODE_RANK": "0",
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "4",
        "PET_RDZV_BACKEND": "static",
        "PET_RDZV_ENDPOINT": "10.0.0.1:20000",
        "PET_NODE_RANK": "0",
    }


def test_torchrun_without_gpus_starts_a_process_a_slot() -> None:
    framework = frameworks.parse("torchrun:c10d")
    tasks = frameworks.tasks(framework, [share(1, 3), share(2, 2)])
    assert [task.processes for task in tasks] == [3, 2]
    told = frameworks.environment(framework, tasks[1], tasks)
    assert {name: value for name, value in told.items() if name.startswith("PET_")} == {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "2",
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": "10.0.0.1:20000",
        "PET_NODE_RANK": "1",
        "PET_RDZV_CONF": "is_host=0",
    }


def test_jax_may_not_go_on_without_cuda() -> None:
    assert told("jax", share(1, 1, 2), share(2, 1, 1))[0] == {
        "CUDA_VISIBLE_DEVICES": "GPU-1-0,GPU-1-1",
        "JAX_COORDINATOR_ADDRESS": "10.0.0.1:20000",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "0",
        "JAX_LOCAL_DEVICE_IDS": "0,1",
        "JAX_PLATFORMS": "cuda",
    }


def test_jax_on_simulated_gpus_or_none_runs_on_cpus() -> None:
    assert "JAX_PLATFORMS" not in told("jax", share(1, 1, 1, prefix="SIM"))[0]
    cpu = told("jax", share(1, 1))[0]
    assert cpu["CUDA_VISIBLE_DEVICES"] == ""
    assert not {"JAX_PLATFORMS", "JAX_LOCAL_DEVICE_IDS"} & set(cpu)


def test_addresses_of_version_6_stand_in_brackets() -> None:
    (alone,) = told("jax", Share("fd00::1", 1, ports=(20000,)))
    assert alone["JAX_COORDINATOR_ADDRESS"] == "[fd00::1]:20000"


def test_shares_come_from_the_spec_of_an_attempt() -> None:
    member = {"node": "node1", "address": "10.0.0.1", "slots": 2, "gpus": [{"uuid": "GPU-a", "index": 3}]}
    assert frameworks.shares({"members": [member, member | {"ports": [20001, 20002]}]}) == (
        Share("10.0.0.1", 2, ("GPU-a",)),
        Share("10.0.0.1", 2, ("GPU-a",), (20001, 20002)),
    )


def test_only_the_standard_library_is_imported() -> None:
    code = (
        "import sys; from hpcmesos.gang import frameworks; "
        "print({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names - {'__main__', 'hpcmesos'})"
    )
    result = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()", result.stdout
