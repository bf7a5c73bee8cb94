"""One cluster over all cards of this machine, for tests that need real ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.accounts import accounts
from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.e2e.conftest import check_clean, running

LOOK = 40.0
"""Seconds: the probe is asked each 10 s."""


def ask_probe(times: int = 1) -> tuple[dict[str, Any], float]:
    """What the agent's probe answers at last, and the CPU time in seconds of each answer but the first."""
    program = """
import json, os, sys, time
from hpcmesos.agent.gpus import Probe
probe = Probe()
probe.start()
found = probe.look()
before = time.process_time()
for _ in range(int(sys.argv[1]) - 1):
    found = probe.look()
print(json.dumps({"gpus": found, "seconds": time.process_time() - before}))
"""
    words = [sys.executable, "-c", program, str(times)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    answer = json.loads(done.stdout)
    return answer, answer["seconds"] / max(1, times - 1)


@pytest.fixture(scope="session")
def cards() -> list[dict[str, Any]]:
    """What NVML says of the cards, asked in a process of its own: a sick card may block the call for ever."""
    words = [sys.executable, "-m", "hpcmesos.agent.gpus"]
    done = subprocess.run(
        words, input='{"id": 1}\n', stdout=subprocess.PIPE, text=True, timeout=60, check=True
    )
    answer = json.loads(done.stdout)
    if not answer["gpus"]:
        pytest.skip(f"no NVIDIA GPU: {answer['error'] or 'the driver sees none'}")
    found: list[dict[str, Any]] = answer["gpus"]
    return found


@pytest.fixture(scope="session")
def machine(cards: list[dict[str, Any]]) -> Iterator[LiveCluster]:
    """One node with all cards."""
    with accounts(), running(LiveCluster(agents=1, gpus=len(cards))) as cluster:
        yield cluster


@pytest.fixture
def node(machine: LiveCluster) -> Iterator[LiveCluster]:
    """The same, with all cards free; left as it was found."""
    wait_until(lambda: set(states(machine)) == {"free"}, "all cards are free", LOOK)
    yield machine
    machine.run("qdel", "-W", "0", "all", user="")
    check_clean(machine)


def states(cluster: LiveCluster) -> list[str]:
    with cluster.client() as client:
        return [gpu.state for node in client.nodes() for gpu in node.gpus]
