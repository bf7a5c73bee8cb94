"""Ranks that are on their way from the starter when it, their step, or the job ends."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcmesos.launch import limits
from hpcmesos.launch.births import Birth
from hpcmesos.launch.enclosure import Cgroup
from hpcmesos.launch.owners import Owners
from hpcmesos.launch.processes import Children, Launch, Report

from . import shepherd_kit as kit

pytestmark = pytest.mark.skipif(not kit.UNIFIED, reason="no cgroup v2")

PIDS = Path("/sys/fs/cgroup/pids")
FILES = {"pids": "pids.max", "hugetlb": "hugetlb.2MB.max"}
"""By controllers of cgroup v2; where v1 has the others, hugetlb is the one that is left."""
RANKS = 3
STEP = f"""
touch ready
until test -e go; do sleep 0.01; done
hpcmesos run -n {RANKS} --oversubscribe sh -c 'touch ran; exec sleep 600' &
echo $! >launcher
wait $!
echo $? >code
until test -e on; do sleep 0.01; done
"""
EPILOGUE = """#!/bin/sh
touch {place}/epilogue
# For a second, what must not come may come.
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    test -e {place}/ran && exit 1
    sleep 0.05
done
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[kit.Node]:
    scripts = tmp_path / "site"
    scripts.mkdir(mode=0o755)
    (scripts / "epilogue").write_text(EPILOGUE.format(place=tmp_path))
    (scripts / "epilogue").chmod(0o500)
    settings = {"site_scripts": str(scripts), "site_script_timeout": 30}
    with kit.cluster(tmp_path, ["node1"], True, **settings) as [one]:
        yield one


def begin(node: kit.Node, directory: Path, script: str = STEP) -> kit.Run:
    """Its script stands before ``hpcmesos run``."""
    run = kit.Run([node], kit.spec([node], directory, script))
    kit.wait_until((directory / "ready").exists, "the script runs")
    return run


def comes(path: Path) -> bool:
    """Whether a file appears, that should not, within a second."""
    try:
        return bool(kit.wait_until(path.exists, "it comes", timeout=1))
    except AssertionError:
        return False


def ask(node: kit.Node, directory: Path) -> int:
    """Lets the script have ranks made, of a starter that stands still; answers its pid."""
    starter = kit.wait_until(lambda: kit.starter(node), "there is a starter")
    os.kill(starter, signal.SIGSTOP)
    descriptors = Path(f"/proc/{node.process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    (directory / "go").touch()
    # Of each rank the shepherd has two pipes, the connection for PMI, and the report.
    kit.wait_until(lambda: len(list(descriptors.iterdir())) >= before + 4 * RANKS, "the ranks are asked for")
    return starter


def launcher_in(directory: Path) -> int:
    """The pid of ``hpcmesos run``, which the script writes down when it has begun it."""
    file = directory / "launcher"
    return int(kit.wait_until(lambda: file.exists() and file.read_text(), "the launcher's pid"))


@pytest.mark.parametrize("last", [signal.SIGCONT, signal.SIGKILL], ids=["goes on", "dies"])
def test_no_rank_begins_once_the_end_has_come(node: kit.Node, tmp_path: Path, last: signal.Signals) -> None:
    """Neither by the starter, which had been asked for it before that, nor by the shepherd in its place."""
    run = begin(node, tmp_path)
    script = run.started()["pid"]
    starter = ask(node, tmp_path)
    launcher = launcher_in(tmp_path)
    # It does not end with the job's processes here, as one on another node would not.
    Path(f"{kit.UNIFIED}/cgroup.procs").write_text(str(launcher))
    run.end(kill_delay=0)
    kit.wait_until(lambda: not kit.is_alive(script), "the script is killed")
    early = comes(tmp_path / "epilogue")
    os.kill(starter, last)
    ended = run.ended()
    kit.kill(launcher)
    assert (ended["cause"], ended["message"]) == ("DELETED", "")
    assert not Path(f"{node.cgroup}/{run.attempt}").exists()
    assert not (tmp_path / "ran").exists()
    assert not early, "an epilogue has the node without the job"


def test_the_end_waits_for_what_the_starter_may_still_make(node: kit.Node, tmp_path: Path) -> None:
    run = begin(node, tmp_path)
    script = run.started()["pid"]
    starter = ask(node, tmp_path)
    run.end(kill_delay=0)
    kit.wait_until(lambda: not kit.is_alive(script), "the script is killed")
    run.ended()
    assert not kit.is_alive(starter), "it was killed: nothing else says that it makes nothing any more"


def test_no_rank_begins_whose_launcher_is_gone(node: kit.Node, tmp_path: Path) -> None:
    run = begin(node, tmp_path)
    starter = ask(node, tmp_path)
    os.kill(launcher_in(tmp_path), signal.SIGKILL)
    kit.wait_until(lambda: (tmp_path / "code").exists(), "the launcher is gone")
    node.reconnect()  # it has looked at its connections
    os.kill(starter, signal.SIGCONT)
    cgroup = Path(f"{node.cgroup}/{run.attempt}/cgroup.procs")
    kit.wait_until(lambda: kit.idle(starter), "it has made what it was asked for")
    (tmp_path / "on").touch()
    assert run.ended()["code"] == 0
    assert not cgroup.exists()
    assert not (tmp_path / "ran").exists()


def test_a_signal_reaches_the_ranks_that_were_on_their_way(node: kit.Node, tmp_path: Path) -> None:
    run = begin(node, tmp_path)
    starter = ask(node, tmp_path)
    os.kill(launcher_in(tmp_path), signal.SIGTERM)
    node.reconnect()
    os.kill(starter, signal.SIGCONT)
    code = tmp_path / "code"
    kit.wait_until(lambda: code.exists() and code.read_text(), "the step is over")
    assert int(code.read_text()) == 128 + signal.SIGTERM
    (tmp_path / "on").touch()
    assert run.ended()["code"] == 0


DEATH_AT_BIRTH = """
import ctypes, os, signal, sys
SEIZE, TRACE_FORK_AND_CLONE, ANY = 0x4206, 0x02 | 0x08, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
pid = int(sys.argv[1])
if libc.ptrace(SEIZE, pid, 0, TRACE_FORK_AND_CLONE):
    sys.exit(os.strerror(ctypes.get_errno()))
print("seized", flush=True)
os.waitpid(pid, ANY)  # the child exists, its maker has not returned from the kernel
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, ANY)
"""  # its own end lets the child go on


def test_death_of_the_starter_between_a_birth_and_its_word(node: kit.Node, tmp_path: Path) -> None:
    """The child says itself which it is; the others are made by somebody else."""
    script = f"""
    touch ready; until test -e go; do sleep 0.01; done
    hpcmesos run -n {RANKS} --oversubscribe sh -c 'echo $PPID'
    """
    run = begin(node, tmp_path, script)
    starter = kit.wait_until(lambda: kit.starter(node), "there is a starter")
    words = [sys.executable, "-c", DEATH_AT_BIRTH, str(starter)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as tracer:
        assert tracer.stdout
        assert tracer.stdout.readline() == "seized\n"
        (tmp_path / "go").touch()
        assert tracer.wait(kit.PATIENCE) == 0
    assert run.ended()["code"] == 0, run.tail("stderr")
    assert run.tail("stdout").split() == [str(node.process.pid)] * RANKS


@pytest.mark.skipif(not os.access(PIDS / "cgroup.procs", os.W_OK), reason="no pids controller of v1")
def test_a_limit_fails_the_rank_and_not_the_starter(node: kit.Node, tmp_path: Path) -> None:
    script = """
    touch ready; until test -e go; do sleep 0.01; done
    hpcmesos run -n 1 touch ran; echo $?
    touch limited; until test -e on; do sleep 0.01; done
    hpcmesos run -n 1 true; echo $?
    """
    run = begin(node, tmp_path, script)
    starter = kit.wait_until(lambda: kit.starter(node), "there is a starter")
    home = next(
        line.partition(":pids:")[2] for line in Path(f"/proc/{starter}/cgroup").read_text().splitlines()
        if ":pids:" in line
    )  # fmt: skip
    group = PIDS / f"hpcmesos-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(starter))
        (group / "pids.max").write_text("1")
        (tmp_path / "go").touch()
        kit.wait_until((tmp_path / "limited").exists, "the first step is over")
        (PIDS / home.lstrip("/") / "cgroup.procs").write_text(str(starter))
    finally:
        (tmp_path / "on").touch()
        run.ended()
        group.rmdir()
    assert run.tail("stdout").split() == ["255", "0"]
    assert "cannot start rank 0: [Errno 11] Resource temporarily unavailable" in run.tail("stderr")
    assert kit.starter(node) == starter
    assert not (tmp_path / "ran").exists()


def test_an_attempt_that_is_gone_is_no_fault_of_the_starters() -> None:
    """Its cgroup was removed after the starter had opened it: nothing is begun, and nothing tried once more."""
    cgroup = Cgroup(kit.UNIFIED, f"hpcmesos-test-{os.getpid()}", {}, {})
    directory = os.open(cgroup.directory, os.O_RDONLY)
    cgroup.remove()
    cgroup.directory = f"/proc/{os.getpid()}/fd/{directory}"
    launch = Launch(
        "true", ["true"], {}, ("/",), Owners().resolve(kit.ME), 0o022, (), (None, 1, 2), gated=True
    )
    asked_again: list[bool] = []

    async def failure() -> Exception | None:
        children = Children()
        children.use_starter()
        failed: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        birth = Birth(
            children,
            Report(),
            on_exit=lambda status, usage: None,
            retry=lambda: asked_again.append(True),
            on_failure=failed.set_result,
        )
        try:
            birth.begin(launch, cgroup, quickly=True)
            assert (birth.unknown, cgroup.empty()) == (True, False)
            async with asyncio.timeout(kit.PATIENCE):
                return await failed
        finally:
            children.give_up_starter()
            os.wait()

    error = asyncio.run(failure())
    os.close(directory)
    assert isinstance(error, OSError)
    assert error.errno in (errno.ENOENT, errno.ENODEV)  # gone before the kernel looks, or while it does
    assert not asked_again
    assert cgroup.empty()


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One that cgroup v2 has here, as a limit; the top level has it as before when the test is over."""
    top = Path(kit.UNIFIED)
    present = (top / "cgroup.controllers").read_text().split()
    found = next((name for name in FILES if name in present), "")
    if not found:
        pytest.skip("no pids controller of v2, nor hugetlb")
    monkeypatch.setattr(limits, "_in_v2", lambda name, value: [(FILES[name], str(value))])
    given = found in (top / "cgroup.subtree_control").read_text().split()
    yield found
    if not given:
        (top / "cgroup.subtree_control").write_text(f"-{found}")


def test_the_cgroups_above_may_have_gone(controller: str) -> None:
    """As when the unit that keeps the jobs' part of the tree is stopped and started: limits hold all the same."""
    above = Path(kit.UNIFIED) / f"hpcmesos-test-{os.getpid()}"
    made = []
    try:
        for name in ("1.hpcm#1", "2.hpcm#1"):
            made.append(Cgroup(str(above / "attempts"), name, {}, {controller: 0}))
            assert made[-1].empty()
            assert (Path(made[-1].directory) / FILES[controller]).read_text() == "0\n"
    finally:
        for cgroup in made:
            cgroup.remove()
        (above / "attempts").rmdir()
        above.rmdir()


def test_a_limit_that_cannot_be_set_is_no_cgroup() -> None:
    """cgroup v2 has no file for devices."""
    name = f"hpcmesos-test-{os.getpid()}"
    with pytest.raises(OSError, match="its cgroup has no devices controller") as raised:
        Cgroup(kit.UNIFIED, name, {}, {"devices": ((195,), (), [])})
    assert raised.value.filename == f"{kit.UNIFIED}/{name}"
    assert not (Path(kit.UNIFIED) / name).exists()
