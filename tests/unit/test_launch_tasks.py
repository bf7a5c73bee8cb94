"""What the shepherd tells each task of a framework."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpcmesos.launch import tasks


def spec(
    framework: str, *members: tuple[int, int, tuple[int, ...]], me: int = 0, bind: str = "none"
) -> dict[str, Any]:
    """``members``: slots, GPUs and ports."""
    return {
        "framework": framework,
        "gpubind": bind,
        "me": me,
        "members": [
            {
                "address": f"10.0.0.{number}",
                "slots": slots,
                "gpus": [{"uuid": f"SIM-{number}-{index}"} for index in range(gpus)],
                "ports": list(ports),
            }
            for number, (slots, gpus, ports) in enumerate(members, 1)
        ],
    }


GANG = ((3, 2, (20000, 20001, 20002)), (2, 2, (20003, 20004)))


def test_each_node_knows_its_own_tasks() -> None:
    first, second = (tasks.of_node(spec("tensorflow:ps=1,worker=4", *GANG, me=me)) for me in (0, 1))
    parts = [
        [json.loads(task["environ"]["TF_CONFIG"])["task"] for task in known["tasks"]]
        for known in (first, second)
    ]
    assert parts == [
        [{"type": "worker", "index": 0}, {"type": "worker", "index": 1}, {"type": "ps", "index": 0}],
        [{"type": "worker", "index": 2}, {"type": "worker", "index": 3}],
    ]
    assert [task["gpus"] for task in first["tasks"]] == [["SIM-1-0"], ["SIM-1-1"], []]
    assert first["total"] == second["total"] == 5
    assert first["common"] == second["common"]
    assert first["common"]["TFMESOS_PS_HOSTS"] == "10.0.0.1:20002"
    assert "TF_CONFIG" not in first["common"]


def test_the_only_task_is_told_to_the_script_too() -> None:
    known = tasks.of_node(spec("torch", (1, 1, (20000,))))
    assert known["common"] == known["tasks"][0]["environ"]
    assert known["common"]["RANK"] == "0"


def test_bound_ranks_see_their_own_gpu() -> None:
    for bind, seen in (("none", "SIM-2-0,SIM-2-1"), ("rank", "SIM-2-1")):
        gang = ((2, 2, (20000, 20001)), (2, 2, (20002, 20003)))
        known = tasks.of_node(spec("torch", *gang, me=1, bind=bind))
        assert known["tasks"][1]["environ"]["CUDA_VISIBLE_DEVICES"] == seen


def test_a_rank_becomes_its_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tasks"
    path.write_text(json.dumps(tasks.of_node(spec("tfmesos:ps=1,worker=4", *GANG))))
    monkeypatch.delenv(tasks.FILE, raising=False)
    assert tasks.of_rank(0, 5) is None
    monkeypatch.setenv(tasks.FILE, str(path))
    monkeypatch.setenv("HPCMESOS_RANK", "0")
    assert tasks.of_rank(3, 5) is None
    assert capfd.readouterr().err == ""
    task = tasks.of_rank(2, 4)
    assert capfd.readouterr().err == "hpcmesos: 4 ranks were started for 5 tasks\n"
    assert task is not None
    for name in task["environ"]:
        monkeypatch.setenv(name, "before")
    words = tasks.become(task, ["train", "--ps={ps_hosts}", "{job_name}:{task_index}", "{other}"])
    assert words == ["train", "--ps=10.0.0.1:20002", "ps:0", "{other}"]


def test_a_command_of_the_remote_shell_names_its_task() -> None:
    known = tasks.of_node(spec("tfmesos:ps=1,worker=4", *GANG))
    environ = {tasks.TASK: "1", "A": "b"}
    assert tasks.for_shell(known, environ, "echo {task_index} {x}") == "echo 1 {x}"
    assert environ.keys() >= {"A", "TF_CONFIG"}
    assert tasks.TASK not in environ
    assert tasks.for_shell(known, environ, "echo {task_index}") == "echo {task_index}"  # which of several?
    alone = tasks.of_node(spec("torchrun", (2, 2, (20000,)), (2, 2, (20001,)), me=1))
    environ = {}
    tasks.for_shell(alone, environ, "torchrun train.py")
    assert environ["PET_NODE_RANK"] == "1"
