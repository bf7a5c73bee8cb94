"""What only a real card can show."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pynvml
import pytest

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def real_gpu() -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        pytest.skip(f"no NVIDIA GPU: {error}")
    count = pynvml.nvmlDeviceGetCount()
    pynvml.nvmlShutdown()
    if count == 0:
        pytest.skip("no NVIDIA GPU: the driver sees none")


def inventory() -> Any:
    """Read in a process of its own, as the agent does: a sick card may block the call for ever."""
    program = """
import json, pynvml
pynvml.nvmlInit()
cards = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
print(json.dumps([{
    "uuid": pynvml.nvmlDeviceGetUUID(card), "name": pynvml.nvmlDeviceGetName(card),
    "memory": pynvml.nvmlDeviceGetMemoryInfo(card).total, "minor": pynvml.nvmlDeviceGetMinorNumber(card),
    "bus": pynvml.nvmlDeviceGetPciInfo(card).busId,
    "pids": [process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(card)],
} for card in cards]))
"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=60, check=True)
    return json.loads(done.stdout)


def test_pynvml_reads_the_cards() -> None:
    cards = inventory()
    assert cards
    assert len({card["uuid"] for card in cards}) == len(cards)
    for card in cards:
        assert card["uuid"].startswith("GPU-")
        assert card["name"]
        assert card["memory"] > 1 << 30
        assert card["bus"].count(":") == 2


def test_the_inventory_is_stable() -> None:
    first, second = inventory(), inventory()
    assert [card["uuid"] for card in first] == [card["uuid"] for card in second]


def test_the_probe_reads_figures_and_devices() -> None:
    """What jobs' records and isolation rest on: every card has a device node, and says how busy and warm it is."""
    done = subprocess.run(
        [sys.executable, "-m", "hpcmesos.agent.gpus"],
        input='{"id": 1}\n', stdout=subprocess.PIPE, text=True, timeout=60, check=True,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert answer["error"] == ""
    for card in answer["gpus"]:
        assert Path(f"/dev/nvidia{card['minor']}").is_char_device()
        assert 0 <= card["figures"]["utilization"] <= 100
        assert 0 < card["figures"]["temperature"] < 120
        assert 0 <= card["figures"]["memory_used"] <= card["memory"]
        assert card["xids"] == []
