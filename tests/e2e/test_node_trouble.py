"""What nodes survive: a journal torn or gone, a full spool, a clock that jumps. No job is lost or runs twice."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpcmesos import pidfile
from tests.e2e.cluster_kit import HPCMESOS, LiveCluster, wait_until
from tests.e2e.conftest import check_clean
from tests.e2e.test_nodes import looping, silent_node, tries

FAKETIME = Path("/usr/lib") / f"{os.uname().machine}-linux-gnu" / "faketime" / "libfaketime.so.1"
BACK = 10.0
"""Seconds within which jobs start again when a fault is over."""


def kill_daemons(cluster: LiveCluster, node: str) -> None:
    """As if both had crashed at once."""
    for daemon in ("agent", "shepherd"):
        pid = cluster.pid(f"{node}/{daemon}")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: pidfile.start_time(pid) is None, f"the end of {daemon}")


def tear(journal: Path) -> None:
    """In the middle of the spec, as a file system may leave it after a crash."""
    for path in journal.glob("*.journal"):
        os.truncate(path, 100)


def remove(journal: Path) -> None:
    shutil.rmtree(journal)


@pytest.mark.parametrize("damage", [tear, pytest.param(remove, marks=pytest.mark.full)])
def test_a_journal_that_is_lost_makes_no_second_run(
    make_cluster: Callable[..., LiveCluster], damage: Callable[[Path], None]
) -> None:
    cluster = make_cluster(agents=2, gpus=2)
    job = cluster.qsub(looping(cluster, "torn"), "-r", "y")
    wait_until(lambda: tries(cluster, "torn") == "alone\n", "the first attempt runs")
    node = silent_node(cluster, job)
    kill_daemons(cluster, node)
    damage(cluster.state / "agents" / node / "journal")
    cluster.up()
    wait_until(lambda: tries(cluster, "torn") == "alone\nalone\n", "it runs elsewhere", 60)
    (cluster.work() / "torn.go").touch()
    ended = cluster.wait(job)
    assert (ended["Exit_status"], ended["run_count"]) == (7, 2)
    assert f"cause=NODE_LOST;culprit={node}" in ended["attempt_1"]


@contextlib.contextmanager
def lent() -> Iterator[LiveCluster]:
    """A cluster that the test may take down by itself."""
    cluster = LiveCluster(agents=2, gpus=4)
    try:
        cluster.up()
        yield cluster
    finally:
        if (cluster.state / "cluster.json").exists():
            cluster.down()
        cluster.remove()


# --- full spool


@contextlib.contextmanager
def on_small_disk(cluster: LiveCluster, node: str) -> Iterator[Path]:
    """The node's state on a file system of 64 MiB; answers its directory."""
    state = cluster.state / "agents" / node
    kill_daemons(cluster, node)
    kept = cluster.root / "kept"
    shutil.copytree(state, kept, symlinks=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=711", "tmpfs", state], check=True)
    try:
        shutil.copytree(kept, state, symlinks=True, dirs_exist_ok=True)
        state.chmod(0o711)
        cluster.up()
        yield state
        cluster.down()
    finally:
        subprocess.run(["umount", "--lazy", state], check=True)


@pytest.mark.root
@pytest.mark.full
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounting a small file system")
def test_a_full_spool_loses_no_end() -> None:
    with lent() as cluster, on_small_disk(cluster, "node1") as disk:
        spool = ("-o", "/nowhere/out", "-e", "/nowhere/err")
        lost = (
            "-W",
            f"stageout=nothing.here@{os.uname().nodename}:/nowhere/x",
        )  # the shepherd's log tells it
        job = cluster.qsub(looping(cluster, "full"), "-l", "nodes=node1", *lost, *spool)
        wait_until(lambda: tries(cluster, "full") == "alone\n", "a job runs before")
        writer = cluster.qsub("head -c 200M /dev/zero; exit 5\n", "-l", "nodes=node1", *spool)
        assert cluster.wait(writer)["Exit_status"] == 5
        with contextlib.suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(65536))
        (cluster.work() / "full.go").touch()
        ended = cluster.wait(job)
        assert (ended["Exit_status"], ended["run_count"]) == (7, 1)
        other = cluster.qsub("exit 4\n")
        assert cluster.wait(other)["Exit_status"] == 4, "other nodes take what this one cannot"
        (disk / "ballast").unlink()
        began = time.monotonic()
        again = cluster.qsub("exit 6\n", "-l", "nodes=node1")
        assert cluster.wait(again)["Exit_status"] == 6
        assert time.monotonic() - began < BACK
        check_clean(cluster)


# --- clocks


def set_clock(cluster: LiveCluster, ahead: int) -> None:
    draft = cluster.root / "clock.new"
    draft.write_text(f"{ahead:+d}\n")
    draft.replace(cluster.root / "clock")


@contextlib.contextmanager
def fake_clock_agent(cluster: LiveCluster, node: str) -> Iterator[None]:
    """The agent of the node, and the shepherd that it starts, by the clock of ``set_clock``."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("HPCMESOS_")} | {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(cluster.root / "clock"),
        "FAKETIME_CACHE_DURATION": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    config = cluster.state / "agents" / node / "agent.toml"
    with (cluster.state / "log" / f"{node}.log").open("ab") as log:
        process = subprocess.Popen(
            [*HPCMESOS, "agent", "--config", config],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=environ,
            start_new_session=True,
        )
    with process:
        pid_file = str(config.parent / "agent.pid")
        wait_until(lambda: pidfile.living(pid_file), "the agent runs")
        yield


def endure(cluster: LiveCluster, jump: int) -> None:
    go = cluster.work() / f"clock{jump}.go"
    script = f"pbsdsh -u sh -c 'until [ -e {go} ]; do sleep 0.2; done'\nexit 7\n"
    gang = cluster.qsub(script, "-l", "nodes=2", "-l", "walltime=1:00:00", "-r", "y")
    cluster.wait_state(gang, "R")
    set_clock(cluster, jump)
    over = time.monotonic() + 60
    while time.monotonic() < over:
        assert cluster.wait(cluster.qsub("exit 3\n"))["Exit_status"] == 3
    set_clock(cluster, 0)
    began = time.monotonic()
    assert cluster.wait(cluster.qsub("exit 4\n"))["Exit_status"] == 4
    assert time.monotonic() - began < BACK
    assert cluster.job(gang)["job_state"] == "R"
    go.touch()
    ended = cluster.wait(gang)
    assert (ended["Exit_status"], ended["run_count"]) == (7, 1)


@pytest.mark.full
@pytest.mark.skipif(not FAKETIME.exists(), reason="no libfaketime")
def test_clocks_of_nodes_jump() -> None:
    """Of agents and shepherds; a gang runs all the time, and single jobs begin and end in every phase."""
    with lent() as cluster:
        set_clock(cluster, 0)
        with contextlib.ExitStack() as agents:
            for node in ("node1", "node2"):
                kill_daemons(cluster, node)
                agents.enter_context(fake_clock_agent(cluster, node))
            cluster.up()
            for jump in (3600, -3600):
                endure(cluster, jump)
            check_clean(cluster)
            cluster.down()
