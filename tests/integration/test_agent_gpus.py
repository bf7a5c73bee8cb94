"""The probe program over the fake libnvidia-ml.so.1, and the agent's side of it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hpcmesos import wire
from hpcmesos.agent.events import Event, ProbeReport, ProbeSilent, Process
from hpcmesos.agent.probe import Probe

LIMIT = 20.0


def ask(
    environ: dict[str, str], times: int = 1, between: Callable[[], Any] = lambda: None
) -> list[dict[str, Any]]:
    """Starts the program and asks it so often."""
    answers = []
    with subprocess.Popen(
        [sys.executable, "-m", "hpcmesos.agent.gpus"],
        env=os.environ | environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as program:  # fmt: skip
        assert program.stdin and program.stdout
        for number in range(times):
            if number:
                between()
            program.stdin.write(json.dumps({"id": number}) + "\n")
            program.stdin.flush()
            answers.append(json.loads(program.stdout.readline()))
        program.stdin.close()
        assert program.wait(LIMIT) == 0
    return answers


def test_facts_processes_and_users(fake_nvml: Callable[..., dict[str, str]]) -> None:
    uuids = ["GPU-a", "GPU-b", "GPU-c"]
    cards: list[dict[str, Any]] = [
        {
            "uuid": "GPU-a",
            "nvlinks": ["GPU-b", "GPU-b"],
            "nvlink_errors": 3,
            "processes": {os.getpid(): 1 << 20, 4194303: 5},
        },
        {"uuid": "GPU-b", "nvlinks": ["GPU-a", "GPU-a"]},
        {"uuid": "GPU-c", "switch": 1, "numa": 1, "name": "Other"},
    ]
    (answer,) = ask(fake_nvml(cards))
    assert answer["error"] == ""
    first, second, third = answer["gpus"]
    assert [g["uuid"] for g in answer["gpus"]] == uuids
    assert (first["index"], first["model"], first["memory"]) == (0, "Fake GPU 80GB", 80 << 30)
    assert third["model"] == "Other"
    assert first["processes"] == [
        [os.getpid(), "root" if os.geteuid() == 0 else first["processes"][0][1]],
        [4194303, ""],
    ]
    assert second["processes"] == []
    assert (first["figures"]["nvlink_errors"], second["figures"]["nvlink_errors"]) == (6, 0)
    assert "nvlink_errors" not in third["figures"], "it has no links"
    assert first["links"][0] == 0
    assert first["links"][1] > 10 > first["links"][2]
    assert first["links"][1] == second["links"][0]


def test_a_lost_card_costs_one_card(fake_nvml: Callable[..., dict[str, str]]) -> None:
    environ = fake_nvml([{}, {}])

    def lose() -> None:
        fake_nvml([{}, {"lost": True}])

    before, after = ask(environ, 2, lose)
    assert [g["lost"] for g in before["gpus"]] == [False, False]
    assert [g["lost"] for g in after["gpus"]] == [False, True]


def test_no_nvml_is_said_and_is_no_failure() -> None:
    (answer,) = ask({"LD_LIBRARY_PATH": "/nonexistent"})
    assert answer["gpus"] == [] and answer["error"]


def collect(
    count: int,
    environ: dict[str, str],
    monkeypatch: Any,
    ours: Callable[[Sequence[wire.Gpu]], set[str]],
    first_timeout: float = LIMIT,
) -> list[Event]:
    """The first events of the agent's side."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    async def work() -> list[Event]:
        events: asyncio.Queue[Event] = asyncio.Queue()
        probe = Probe(ours, events.put_nowait, first_timeout)
        task = asyncio.create_task(probe.run())
        try:
            async with asyncio.timeout(LIMIT):
                found = [await events.get()]
                for _ in range(count - 1):
                    probe.ask()
                    found.append(await events.get())
            return found
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    return asyncio.run(work())


def test_reports_become_events_of_our_cards_only(
    fake_nvml: Callable[..., dict[str, str]], monkeypatch: Any
) -> None:
    environ = fake_nvml([{"uuid": "GPU-a", "processes": {1: 5}}, {"uuid": "GPU-b"}])
    events = collect(2, environ, monkeypatch, lambda gpus: {"GPU-a"})
    for event in events:
        assert isinstance(event, ProbeReport)
        assert [(r.gpu.uuid, r.processes) for r in event.readings] == [("GPU-a", (Process(1, "root"),))]


def test_a_blocked_card_blocks_the_probe_only(
    fake_nvml: Callable[..., dict[str, str]], monkeypatch: Any
) -> None:
    environ = fake_nvml([{}], hang=["nvmlDeviceGetComputeRunningProcesses_v3"])
    (event,) = collect(1, environ, monkeypatch, lambda gpus: {gpu.uuid for gpu in gpus}, first_timeout=2.0)
    assert event == ProbeSilent(2.0)


def test_figures_and_each_error_of_the_driver_once(fake_nvml: Callable[..., dict[str, str]]) -> None:
    card: dict[str, Any] = {
        "utilization": 35,
        "used": 5 << 30,
        "temperature": 61,
        "power": 250_500,
        "energy": 7_000,
    }
    environ = fake_nvml([card | {"xids": [13]}, {"rows_failed": True, "ecc": 2}])
    changes = iter([[13, 48], [13, 48], [13, 48, 43, 79]])
    answers = ask(
        environ, 4, lambda: fake_nvml([card | {"xids": next(changes)}, {"rows_failed": True, "ecc": 2}])
    )
    first, second = answers[0]["gpus"]
    assert first["figures"] == {
        "utilization": 35, "memory_used": 5 << 30, "temperature": 61, "power": 250.5, "energy": 7.0,
        "ecc_errors": 0, "rows_failed": 0,
    }  # fmt: skip
    assert (second["figures"]["rows_failed"], second["figures"]["ecc_errors"]) == (1, 2)
    assert (first["minor"], second["minor"]) == (0, 1)
    assert [answer["gpus"][0]["xids"] for answer in answers] == [[], [48], [], [43, 79]]


def test_instances_stand_for_a_card_in_mig_mode(fake_nvml: Callable[..., dict[str, str]]) -> None:
    parts: list[dict[str, Any]] = [
        {"uuid": "MIG-x", "used": 1 << 30, "processes": {os.getpid(): 5}},
        {"uuid": "MIG-y", "gpu": 9, "compute": 1, "profile": "1g.10gb+me"},
    ]
    cut = {"uuid": "GPU-b", "temperature": 71, "rows_failed": True, "mig": parts}
    whole = {"uuid": "GPU-a"}
    environ = fake_nvml([whole, cut, {"mig": []}])
    lost = [whole, cut | {"lost": True}]
    later = iter([[whole, cut | {"xids": [48]}], [whole, {"uuid": "GPU-b"}], lost])
    answers = ask(environ, 4, lambda: fake_nvml([*next(later), {"mig": []}]))
    uncut, first, second = answers[0]["gpus"]
    assert (uncut["uuid"], uncut["parent"], first["uuid"], second["uuid"]) == ("GPU-a", "", "MIG-x", "MIG-y")
    assert [g["index"] for g in (uncut, first, second)] == [0, 1, 2]
    assert (first["parent"], first["profile"], first["instance"]) == ("GPU-b", "1g.10gb", [7, 0])
    assert (second["profile"], second["instance"], second["minor"]) == ("1g.10gb.me", [9, 1], 1)
    assert (first["memory"], first["processes"][0][0], second["processes"]) == (10 << 30, os.getpid(), [])
    assert first["figures"] == {"memory_used": 1 << 30, "temperature": 71, "ecc_errors": 0, "rows_failed": 1}
    assert [g["xids"] for g in answers[1]["gpus"]] == [[], [48], [48]], (
        "the card's fault is that of its instances"
    )
    assert [g["lost"] for g in answers[2]["gpus"]] == [False, True, True], "MIG was switched off under them"
    assert [g["lost"] for g in answers[3]["gpus"]] == [False, True, True], "the card has fallen off the bus"
    assert answers[3]["gpus"][1]["error"] == "GPU is lost"
