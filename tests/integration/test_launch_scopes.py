"""GPU devices on a host with nothing but cgroup v2, held by scopes of a real systemd."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hpcmesos.launch import scopes
from tests.integration import shepherd_kit as kit
from tests.integration import systemd_kit
from tests.integration.shepherd_kit import Node
from tests.integration.systemd_kit import Systemd

OWNER = "nobody"
CGROUP = "/sys/fs/cgroup/hpcmesos/test/n1"
LIMITS = f"""
import json
from pathlib import Path
from hpcmesos.agent import isolation
found = isolation.limits(("devices",), Path("{CGROUP}"), "test", "n1")
print(json.dumps([found, isolation.enforced({{"cgroup": "x", "limits": {{**found, "devices": [195]}}}})]))
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Systemd]:
    if why := systemd_kit.missing():
        pytest.skip(why)
    with systemd_kit.systemd() as one:
        yield one


@pytest.fixture(scope="module")
def limits(host: Systemd) -> dict[str, Any]:
    """As an agent on that host finds them; the NVIDIA driver's major is ours to say, for it is not loaded."""
    words = host.inside([sys.executable, "-c", LIMITS])
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    found, enforced = json.loads(done.stdout)
    assert enforced == ["cgroup", "devices"]
    assert not found["v1"]
    return {**found, "devices": [195]}


@contextmanager
def shepherd(host: Systemd, place: Path, limits: dict[str, Any]) -> Iterator[Node]:
    (place / "open.py").write_text(kit.OPEN)
    for directory in (place, *place.parents):
        directory.chmod(directory.stat().st_mode | 0o711)
    with kit.cluster(place, ["n1"], False, prefix=host.inside, cgroup=CGROUP, limits=limits) as (node,):
        yield node


def scopes_of(host: Systemd) -> list[str]:
    """Those that are there; systemd may just remove one."""
    found = (name for _, names, _ in os.walk(host.group / "hpcmesos.slice") for name in names)
    return sorted(name for name in found if name.startswith("hpcmesos-") and name.endswith(".scope"))


def job(node: Node, minors: tuple[int, ...]) -> dict[str, Any]:
    gpus = [{"uuid": f"GPU-{minor}", "index": minor, "model": "", "simulated": False} for minor in minors]
    return {
        "owner": OWNER,
        "workdir": "/",
        "minors": list(minors),
        "members": [node.member() | {"gpus": gpus}],
    }


def test_a_job_opens_its_own_cards_alone(host: Systemd, limits: dict[str, Any], tmp_path: Path) -> None:
    words = f"#!/bin/sh\nhead -c 1 /dev/urandom >/dev/null && {sys.executable} {tmp_path}/open.py "
    words += " ".join(host.cards) + "\n"
    with shepherd(host, tmp_path, limits) as node, kit.runs([node], tmp_path) as start:
        expected = {
            (): ["EPERM", "EPERM", "EPERM"],
            (0,): ["ENXIO", "EPERM", "ENXIO"],
            (1,): ["EPERM", "ENXIO", "ENXIO"],
            (0, 1): ["ENXIO", "ENXIO", "ENXIO"],
        }
        for _ in range(2):  # the second time in scopes that are there
            runs = {minors: start(words, **job(node, minors)) for minors in expected}
            for minors, run in runs.items():
                assert run.ended()["code"] == 0, (run.tail("stderr"), node.log())
                assert run.tail("stdout").split() == expected[minors], minors
        assert len(scopes_of(host)) == 4
    kit.wait_until(lambda: not scopes_of(host), "the scopes go with their shepherd")


def test_without_the_scope_every_card_opens(host: Systemd, limits: dict[str, Any], tmp_path: Path) -> None:
    words = f"#!/bin/sh\n{sys.executable} {tmp_path}/open.py {' '.join(host.cards)}\n"
    with (
        shepherd(host, tmp_path, {"v1": {}}) as node,
        kit.runs([node], tmp_path) as start,
    ):
        run = start(words, **job(node, ()))
        run.ended()
        assert run.tail("stdout").split() == ["ENXIO"] * 3


def test_a_dead_shepherd_leaves_no_process_and_no_scope(
    host: Systemd, limits: dict[str, Any], tmp_path: Path
) -> None:
    with shepherd(host, tmp_path, limits) as node, kit.runs([node], tmp_path) as start:
        run = start("#!/bin/sh\nsetsid sleep 1000 &\nsleep 1000\n", **job(node, (0,)))
        run.started()
        (scope,) = (host.group / "hpcmesos.slice").rglob("hpcmesos-*.scope")
        inside = [int(pid) for pid in (scope / run.attempt / "cgroup.procs").read_text().split()]
        assert inside
        os.kill(systemd_kit.child_of(node.process.pid), signal.SIGKILL)
        node.process.wait()
        node.agent.close()
        node.start()
        assert run.ended()["cause"] == "NODE_LOST"
        assert not any(map(kit.is_alive, inside))
        kit.wait_until(lambda: not scope.exists(), "its scope is gone")


def test_no_systemd_no_scope(host: Systemd, limits: dict[str, Any], tmp_path: Path) -> None:
    """A scope that cannot be made refuses the attempt: it is not started with every card open."""
    (tmp_path / "bin").mkdir()
    failing = tmp_path / "bin" / "systemd-run"
    failing.write_text("#!/bin/sh\necho Failed to start transient scope unit: Access denied\nexit 1\n")
    failing.chmod(0o755)

    def prefix(words: list[str]) -> list[str]:
        return host.inside(["env", f"PATH={failing.parent}:{os.environ['PATH']}", *words])

    with kit.cluster(tmp_path, ["n1"], False, prefix=prefix, cgroup=CGROUP, limits=limits) as (node,):
        node.agent.send(
            op="prepare", spec=kit.spec([node], tmp_path, "true\n", attempt="7.hpcm#1", **job(node, ()))
        )
        reason = node.agent.wait("refused", "7.hpcm#1")["reason"]
    assert reason == (
        "systemd makes no scope to hold the GPU devices: Failed to start transient scope unit: Access denied"
    )


DEVICES = "Character devices:\n  1 mem\n  5 /dev/tty\n 10 misc\n195 nvidia\n195 nvidiactl\n511 nvidia-uvm\n"
DEVICES += "234 nvidia-caps\n"
DEVICES += "\nBlock devices:\n259 blkext\n"


def test_what_is_allowed() -> None:
    plain = ["block-* rwm", "char-mem rwm", "char-/dev/tty rwm", "char-misc rwm"]
    majors = [195, 234, 511]
    assert scopes.allowed(DEVICES, majors, []) == plain
    control = ["/dev/char/195:254 rwm", "/dev/char/195:255 rwm"]
    card = [*plain, "char-nvidia-uvm rwm", "/dev/char/195:3 rwm", *control]
    assert scopes.allowed(DEVICES, majors, [(195, 3)]) == card
    instance = [*plain, "char-nvidia-uvm rwm", "/dev/char/195:3 rwm", "/dev/char/234:21 rwm", *control]
    assert scopes.allowed(DEVICES, majors, [(195, 3), (234, 21)]) == instance
