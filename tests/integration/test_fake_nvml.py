"""The real pynvml, in a process of its own, reads the fake library as it would read a driver's."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.nvml.plugin import Environment, FakeNvml, default_uuid

READ = """
import json, pynvml
pynvml.nvmlInit()
cards = []
for index in range(pynvml.nvmlDeviceGetCount()):
    try:
        card = pynvml.nvmlDeviceGetHandleByIndex(index)
        old, new = pynvml.nvmlDeviceGetMemoryInfo(card), pynvml.nvmlDeviceGetMemoryInfo(card, pynvml.nvmlMemory_v2)
        assert (old.total, old.free, old.used) == (new.total, new.free, new.used)
        cards.append({
            "uuid": pynvml.nvmlDeviceGetUUID(card), "name": pynvml.nvmlDeviceGetName(card),
            "memory": new.total, "used": new.used, "minor": pynvml.nvmlDeviceGetMinorNumber(card),
            "numa": pynvml.nvmlDeviceGetNumaNodeId(card), "bus": pynvml.nvmlDeviceGetPciInfo(card).busId,
            "busy": pynvml.nvmlDeviceGetUtilizationRates(card).gpu,
            "processes": {p.pid: p.usedGpuMemory for p in pynvml.nvmlDeviceGetComputeRunningProcesses(card)},
        })
        again = pynvml.nvmlDeviceGetHandleByUUID(cards[-1]["uuid"])
        assert pynvml.nvmlDeviceGetIndex(again) == index
    except pynvml.NVMLError as error:
        cards.append({"error": str(error), "lost": isinstance(error, pynvml.NVMLError_GpuIsLost)})
print(json.dumps({"driver": pynvml.nvmlSystemGetDriverVersion(), "cards": cards}))
pynvml.nvmlShutdown()
"""

LINKS = """
import json, pynvml
pynvml.nvmlInit()
cards = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
print(json.dumps({
    "level": [pynvml.nvmlDeviceGetTopologyCommonAncestor(cards[0], other) for other in cards],
    "nvlink": [pynvml.nvmlDeviceGetP2PStatus(cards[0], other, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
               for other in cards[1:]],
    "links": [pynvml.nvmlDeviceGetNvLinkState(cards[0], link) for link in range(3)],
    "peer": pynvml.nvmlDeviceGetNvLinkRemotePciInfo(cards[0], 0).busId,
}))
"""


def run(program: str, env: Environment, timeout: float = 30) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | env,
        stdout=subprocess.PIPE,
        timeout=timeout,
        check=True,
    )
    return json.loads(done.stdout)


def test_cards_are_read(fake_nvml: FakeNvml) -> None:
    seen = run(READ, fake_nvml([{}, {"name": "NVIDIA H100 80GB HBM3", "numa": 1, "utilization": 35}]))
    assert seen["driver"] == "550.54.15"
    assert [card["uuid"] for card in seen["cards"]] == [default_uuid(0), default_uuid(1)]
    assert seen["cards"][1] == {
        "uuid": default_uuid(1),
        "name": "NVIDIA H100 80GB HBM3",
        "memory": 80 << 30,
        "used": 0,
        "minor": 1,
        "numa": 1,
        "bus": "00000000:02:00.0",
        "busy": 35,
        "processes": {},
    }


def test_processes_are_read(fake_nvml: FakeNvml) -> None:
    seen = run(READ, fake_nvml([{"processes": {4711: 1 << 30, 4712: 2 << 30}, "used": 3 << 30}]))
    assert seen["cards"][0]["processes"] == {"4711": 1 << 30, "4712": 2 << 30}
    assert seen["cards"][0]["used"] == 3 << 30


def test_one_lost_card_leaves_the_others(fake_nvml: FakeNvml) -> None:
    seen = run(READ, fake_nvml([{}, {"lost": True}, {}]))
    assert [card.get("lost", False) for card in seen["cards"]] == [False, True, False]


def test_links_are_read(fake_nvml: FakeNvml) -> None:
    cards = [{"nvlinks": [default_uuid(1)]}, {"switch": 1}, {"numa": 1}, {}]
    assert run(LINKS, fake_nvml(cards)) == {
        "level": [0, 40, 50, 10],
        "nvlink": [0, 5, 5],
        "links": [1, 0, 0],
        "peer": "00000000:02:00.0",
    }


def test_a_running_program_sees_the_change(fake_nvml: FakeNvml) -> None:
    watch = "import pynvml; pynvml.nvmlInit()\nwhile True: print(pynvml.nvmlDeviceGetCount(), flush=True); input()"
    env = os.environ | fake_nvml([{}])
    with subprocess.Popen(
        [sys.executable, "-c", watch], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdin and program.stdout
        assert program.stdout.readline() == "1\n"
        fake_nvml([{}, {}])
        program.stdin.write("\n")
        program.stdin.flush()
        assert program.stdout.readline() == "2\n"
        program.kill()


def test_a_call_can_block_for_ever(fake_nvml: FakeNvml) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run(READ, fake_nvml([{}], hang=["nvmlDeviceGetName"]), timeout=1)


def test_without_facts_there_is_no_driver(fake_nvml: FakeNvml) -> None:
    env = fake_nvml([]) | {"FAKE_NVML_FILE": "/nonexistent"}
    program = "import pynvml\ntry: pynvml.nvmlInit()\nexcept pynvml.NVMLError_DriverNotLoaded: print('true')"
    assert run(program, env) is True
