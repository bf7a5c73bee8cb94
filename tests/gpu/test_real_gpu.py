"""What only a real card can show."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.gpu.conftest import LOOK, ask_probe, states

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
CUDA = f"{sys.executable} {Path(__file__).parent / 'cuda.py'}"
CLEAN_TIMEOUT = 60.0
"""Seconds until a card with a stray process is quarantined, by default."""
MOST_OF_A_CORE = 0.01
"""Share of a core that sampling eight cards may cost (design, section 11)."""


def pids() -> list[int]:
    """The processes that compute on any card."""
    answer, _ = ask_probe()
    return [pid for card in answer["gpus"] for pid, _ in card["processes"]]


def text(cluster: LiveCluster, job: str) -> str:
    return cluster.output(job) + cluster.output(job, kind="e")


def test_the_probe_reads_figures_and_devices(cards: list[dict[str, Any]]) -> None:
    """What jobs' records and isolation rest on: every card has a device node, and says how busy and warm it is."""
    assert len({card["uuid"] for card in cards}) == len(cards)
    for card in cards:
        assert card["uuid"].startswith("GPU-")
        assert card["model"]
        assert card["memory"] > 1 << 30
        assert card["pci"].count(":") == 2
        assert Path(f"/dev/nvidia{card['minor']}").is_char_device()
        assert 0 <= card["figures"]["utilization"] <= 100
        assert 0 < card["figures"]["temperature"] < 120
        assert 0 <= card["figures"]["memory_used"] <= card["memory"]
        assert card["figures"]["power"] > 0
        assert card["xids"] == []
    again, _ = ask_probe()
    assert [card["uuid"] for card in again["gpus"]] == [card["uuid"] for card in cards]


def test_sampling_is_cheap(cards: list[dict[str, Any]]) -> None:
    answer, seconds = ask_probe(21)
    share = seconds / len(answer["gpus"]) * 8 / 10.0  # eight cards, each 10 s
    print(f"sampling: {1000 * seconds:.1f} ms of CPU a look; 8 cards: {100 * share:.2f} % of a core")
    assert share <= MOST_OF_A_CORE  # a promise to whoever computes there


def test_the_node_shows_its_cards(node: LiveCluster, cards: list[dict[str, Any]]) -> None:
    shown = node.run("pbsnodes", check=True).stdout
    print(shown)
    for card in cards:
        assert card["uuid"] in shown
        assert card["model"] in shown


def test_a_job_sees_its_own_card_only(node: LiveCluster, cards: list[dict[str, Any]]) -> None:
    script = f"#!/bin/sh\necho $CUDA_VISIBLE_DEVICES\n{CUDA} count\n"
    jobs = [node.qsub(script, "-l", "nodes=1:gpus=1") for _ in cards]
    granted = []
    for job in jobs:
        assert node.wait(job)["Exit_status"] == 0, text(node, job)
        told, seen = node.output(job).split()
        assert told == seen
        granted.append(told)
    assert set(granted) <= {card["uuid"] for card in cards}


def test_a_job_without_cards_gets_none(node: LiveCluster, cards: list[dict[str, Any]]) -> None:
    job = node.qsub(f"#!/bin/sh\n{CUDA} count\n")
    assert node.wait(job)["Exit_status"] != 0
    assert "CUDA_ERROR_NO_DEVICE" in node.output(job)


def test_a_wrong_environment_reaches_no_card(node: LiveCluster, cards: list[dict[str, Any]]) -> None:
    if "devices" not in node.run("pbsnodes", check=True).stdout:
        pytest.skip("no devices controller of v1 and no systemd: isolation is the environment's alone")
    every = ",".join(card["uuid"] for card in cards)
    script = f"#!/bin/sh\nexport CUDA_VISIBLE_DEVICES={every}\n{CUDA} count\nexec 3</dev/nvidia{cards[0]['minor']}\n"
    job = node.qsub(script)
    assert node.wait(job)["Exit_status"] != 0
    assert not any(card["uuid"] in node.output(job) for card in cards)
    assert "Operation not permitted" in text(node, job)


def test_a_card_is_one_jobs_alone(node: LiveCluster, cards: list[dict[str, Any]]) -> None:
    every = f"nodes=1:gpus={len(cards)}"
    held = node.qsub(f"#!/bin/sh\n{CUDA} work 256 600\n", "-l", every, "-l", "walltime=600")
    node.wait_state(held, "R")
    waits = node.qsub(f"#!/bin/sh\n{CUDA} count\n", "-l", every)
    reason = wait_until(lambda: node.job(waits).get("comment"), "a reason to wait")
    print(reason)
    wait_until(pids, "the first job computes")
    node.run("qdel", held, check=True)
    assert node.wait(waits)["Exit_status"] == 0, text(node, waits)
    assert len(node.output(waits).split()) == len(cards)


def test_what_a_job_used_is_in_its_record(node: LiveCluster) -> None:
    job = node.qsub(f"#!/bin/sh\n{CUDA} work 4096 25\n", "-l", "nodes=1:gpus=1")
    ended = node.wait(job, 90)
    assert ended["Exit_status"] == 0, text(node, job)
    used = ended["resources_used"]
    print({name: value for name, value in used.items() if name.startswith("gpu")})
    assert int(used["gpu_percent_max"]) > 50
    assert int(used["gpu_mem"].removesuffix("kb")) >= 4096 << 10
    assert int(used["gpu_energy"].removesuffix("J")) > 500


def test_what_a_job_left_on_its_card_is_gone(node: LiveCluster) -> None:
    """A double fork into a session of its own, and nohup."""
    holds = f"(setsid nohup {CUDA} work 1024 600 >left 2>&1 &)"
    script = f"#!/bin/sh\n{holds}\nuntil grep -q ready left; do sleep 0.1; done\n"
    directory = node.work() / "left"
    directory.mkdir()
    shutil.chown(directory, node.user or os.getuid(), node.user or os.getgid())
    job = node.qsub(script, "-l", "nodes=1:gpus=1", "-d", str(directory))
    assert node.wait(job)["Exit_status"] == 0, text(node, job)
    wait_until(lambda: set(states(node)) == {"free"}, "the card is clean again", LOOK)
    assert pids() == []
    after = node.qsub(f"#!/bin/sh\n{CUDA} count\n", "-l", "nodes=1:gpus=1")
    assert node.wait(after)["Exit_status"] == 0


def test_a_stray_process_keeps_its_card_out_of_use(node: LiveCluster) -> None:
    """Somebody logged in and computes beside the batch system."""
    stray = subprocess.Popen([*CUDA.split(), "work", "64", "600"], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: "quarantined" in states(node), "the card is out of use", CLEAN_TIMEOUT + LOOK)
        shown = node.run("pbsnodes", check=True).stdout
        assert str(stray.pid) in shown
    finally:
        stray.send_signal(signal.SIGKILL)
        stray.wait()
    wait_until(lambda: set(states(node)) == {"free"}, "it is back by itself", LOOK)


def test_a_programs_fault_is_logged_and_costs_no_card(node: LiveCluster) -> None:
    job = node.qsub(f"#!/bin/sh\n{CUDA} fault\n", "-l", "nodes=1:gpus=1")
    assert node.wait(job)["Exit_status"] == 1
    assert "cuCtxSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS" in node.output(job)
    log = node.state / "log" / "node1.log"
    wait_until(lambda: "XID" in log.read_text(), "the agent's log names the XID", LOOK)
    print([line for line in log.read_text().splitlines() if "XID" in line])
    wait_until(lambda: set(states(node)) == {"free"}, "all cards stay in use", LOOK)


def test_torch_trains_over_all_cards(node: LiveCluster, cards: list[dict[str, Any]]) -> None:
    """The example, its sizes changed to this machine's: a rank for each card, joined by NCCL."""
    environment = ROOT / ".cache" / "torch" / "bin"
    if find_spec("torch") is not None:
        environment = Path(sys.executable).parent
    elif not (environment / "torchrun").exists():
        pytest.skip("no PyTorch: scripts/frameworks")
    directory = node.work() / "torch"
    shutil.copytree(ROOT / "examples" / "frameworks", directory)
    shutil.chown(directory, node.user or os.getuid(), node.user or os.getgid())
    size = f"nodes=1:ppn={len(cards)}:gpus={len(cards)}"
    words = ("-l", size, "-o", "out", "-v", f"PATH={environment}:/usr/bin:/bin", "torch_ddp.pbs")
    began = time.monotonic()
    job = node.run("qsub", *words, check=True, cwd=directory).stdout.strip()
    ended = node.wait(job, 180)
    said = (directory / "out").read_text()
    print(said, f"{time.monotonic() - began:.1f} s", sep="")
    assert ended["Exit_status"] == 0, said
    assert said.count("test accuracy 0.9") == len(cards)
    assert "SIMULATED" not in said
