"""``-W mps=true``: a daemon for each node's part of an attempt, a process of the attempt like any other.

The program is a stand-in on the PATH: as NVIDIA's own it leaves a daemon of another session behind, and returns.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration import shepherd_kit as kit
from tests.integration.shepherd_kit import Node, Run

OWNER = "nobody" if os.getuid() == 0 else kit.ME
GOOD = """#!/bin/sh
[ "$1" = -d ] || exit 2
cd "$CUDA_MPS_PIPE_DIRECTORY" && : >"$CUDA_MPS_LOG_DIRECTORY/control.log" || exit 1
setsid sh -c 'echo "$$ $CUDA_VISIBLE_DEVICES" >daemon; exec sleep 1000' </dev/null >/dev/null 2>&1 &
while [ ! -s daemon ]; do sleep 0.01; done
"""
LAZY = """#!/bin/sh
cd "$CUDA_MPS_PIPE_DIRECTORY" || exit 1
setsid sh -c 'echo $$ >daemon; until [ -e client ]; do sleep 0.01; done; sleep 1000 & echo $! >server; wait' \\
    </dev/null >/dev/null 2>&1 &
while [ ! -s daemon ]; do sleep 0.01; done
"""
"""As NVIDIA's, it starts its server when the first program comes."""
SAVES = """
trap 'touch {place}/usr1' USR1
trap 'touch {place}/term; until [ -e {place}/saved ]; do sleep 0.01; done; exit 7' TERM
cd "$CUDA_MPS_PIPE_DIRECTORY" && touch client
until [ -s server ]; do sleep 0.01; done
cat daemon server >{place}/pids.new; mv {place}/pids.new {place}/pids
while :; do sleep 0.01; done
"""
BAD = "#!/bin/sh\necho first\necho Cannot find MPS control daemon process\nexit 1\n"
TELL = 'read pid gpus <"$CUDA_MPS_PIPE_DIRECTORY/daemon"; echo "$pid $gpus $(stat -c %U /proc/$pid)"'


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where its owner may write; ``bin`` comes first in the PATH."""
    directory = Path(tempfile.mkdtemp(prefix="hpcm-mps-", dir="/var/lib" if os.getuid() == 0 else None))
    directory.chmod(0o777)
    (directory / "bin").mkdir(mode=0o755)
    monkeypatch.setenv("PATH", f"{directory / 'bin'}:{os.environ['PATH']}")
    yield directory
    shutil.rmtree(directory)


def install(place: Path, program: str) -> None:
    path = place / "bin" / "nvidia-cuda-mps-control"
    path.write_text(program)
    path.chmod(0o755)


@contextmanager
def nodes(place: Path, count: int, cgroups: bool) -> Iterator[tuple[list[Node], Callable[..., Run]]]:
    """With two simulated GPUs each."""
    state = place / "state"
    state.mkdir()
    with kit.cluster(state, [f"n{i + 1}" for i in range(count)], cgroups=cgroups) as found:
        kit.give_gpus(found, 2)
        with kit.runs(found, place) as start:
            yield (
                found,
                lambda script, **more: start(
                    "#!/bin/sh\n" + script, owner=OWNER, workdir="/", mps=True, **more
                ),
            )


@pytest.mark.parametrize("cgroups", [True, False])
def test_every_node_has_its_own_and_keeps_none(place: Path, cgroups: bool) -> None:
    if cgroups and not kit.UNIFIED:
        pytest.skip("no cgroup v2")
    install(place, GOOD)
    with nodes(place, 2, cgroups) as (found, start):
        run = start(f"{TELL}\npbsdsh -h {found[1].address} sh -c '{TELL}'\n")
        assert run.ended()["cause"] == "OK", run.tail("stderr")
        lines = [line.split() for line in run.tail("stdout").splitlines()]
        assert [(gpus, user) for _, gpus, user in lines] == [
            (",".join(gpu["uuid"] for gpu in node.gpus), OWNER) for node in found
        ]
        run.ended(1)
        pids = [int(pid) for pid, _, _ in lines]
        assert len(set(pids)) == 2
        assert not [pid for pid in pids if kit.is_alive(pid)], "nothing of it is left"


def test_a_job_that_is_killed_takes_it_along(place: Path) -> None:
    install(place, GOOD)
    with nodes(place, 1, False) as (_, start):
        run = start(f"{TELL} >{place}/told\nexec sleep 1000\n")
        told = kit.wait_until(lambda: (place / "told").exists() and (place / "told").read_text(), "a daemon")
        run.end(kill_delay=0.0)
        assert run.ended()["cause"] == "DELETED"
        assert not kit.is_alive(int(told.split()[0]))


@pytest.mark.parametrize("cgroups", [True, False])
def test_signals_for_the_job_are_not_for_it(place: Path, cgroups: bool) -> None:
    if cgroups and not kit.UNIFIED:
        pytest.skip("no cgroup v2")
    install(place, LAZY)
    with nodes(place, 2, cgroups) as (found, start):
        run = start(SAVES.format(place=place))
        pids = [int(pid) for pid in kit.wait_until(lambda: told(place / "pids"), "a server").split()]
        assert len(pids) == 2
        found[0].agent.send(op="signal", attempt=run.attempt, signal=int(signal.SIGUSR1))
        kit.wait_until((place / "usr1").exists, "the job hears its signal")
        assert all(map(kit.is_alive, pids))
        run.end(kill_delay=60.0)
        kit.wait_until((place / "term").exists, "the job is to end")
        assert all(map(kit.is_alive, pids)), "it saves what it has on the GPUs"
        run.ended(1, timeout=30)  # nothing of the job is there: that node does not wait for the delay
        (place / "saved").touch()
        assert run.ended()["code"] == 7
        assert not any(map(kit.is_alive, pids))


def told(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.mark.skipif(not kit.UNIFIED, reason="no cgroup v2")
def test_a_script_that_is_not_born_yet_hears_of_its_end(place: Path) -> None:
    install(place, GOOD)
    with nodes(place, 1, True) as ([node], start):
        starter = kit.wait_until(lambda: kit.starter(node), "there is a starter")
        os.kill(starter, signal.SIGSTOP)
        try:
            run = start("exec sleep 1000\n")
            run.end(kill_delay=30.0)
            node.reconnect()
        finally:
            os.kill(starter, signal.SIGCONT)
        ended = run.ended()
        assert not ended["forced"], "it had not to be killed when the delay was over"
        assert ended["signal"] in (signal.SIGTERM, None), "None: the signal came before it had told its pid"
        assert ended["cause"] == "DELETED"


def test_a_share_without_gpus_has_none(place: Path) -> None:
    with nodes(place, 1, False) as (found, start):
        member = found[0].member() | {"gpus": []}
        run = start('echo "[$CUDA_MPS_PIPE_DIRECTORY]"\n', members=[member])
        assert run.ended()["cause"] == "OK"
        assert run.tail("stdout") == "[]\n"


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("", "mps: there is no nvidia-cuda-mps-control in the agent's PATH; it comes with NVIDIA's driver"),
        (BAD, "mps: nvidia-cuda-mps-control ended with 1: Cannot find MPS control daemon process"),
    ],
)
def test_a_node_that_cannot_is_named(place: Path, program: str, why: str) -> None:
    if program:
        install(place, program)
    with nodes(place, 1, False) as (found, _):
        value = kit.spec(found, place, "true\n", attempt="77.hpcm#1", mps=True, owner=OWNER)
        found[0].agent.send(op="prepare", spec=value)
        refused = found[0].agent.wait("refused", "77.hpcm#1")
        assert (refused["culprit"], refused["reason"]) == ("n1", why)
