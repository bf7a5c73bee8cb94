"""A file server that hangs costs its own job, not the node.

Alone: who reads of a process in /proc that waits for such a server waits, too, as the checks of other tests would.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpcmesos import pidfile

from . import shepherd_kit as kit
from . import stuck_files

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(
        os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
    ),
]


KNOT = """
import ctypes, mmap, os, socket, sys, threading
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.write(file, bytes(4096))
place = libc.mmap(None, 4096, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, file, 0)
ctypes.memset(place, 1, 4096)
print("ready", flush=True)
sys.stdin.readline()
fixed = 0x10
tie = (place, 4096, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | fixed, -1, 0)
threading.Thread(target=libc.mmap, args=tie).start()
sys.stdin.readline()
caller = socket.socket(socket.AF_UNIX)
caller.connect(sys.argv[2])
sys.stdin.readline()
"""
"""Told so, it replaces a page that a file server has yet to get: its memory is locked until the server has it."""


@contextmanager
def mounted(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    directory.mkdir()
    server = subprocess.Popen([sys.executable, stuck_files.__file__, str(directory)])
    try:
        kit.wait_until(lambda: os.path.ismount(directory), "the file system is mounted")
        yield server
    finally:
        server.send_signal(signal.SIGCONT)
        subprocess.run(["umount", "-l", str(directory)], check=False)
        server.kill()
        server.wait()


@contextmanager
def knot(
    far: Path, server: subprocess.Popen[bytes], environ: dict[str, str], node: kit.Node
) -> Iterator[subprocess.Popen[str]]:
    """A process of nobody's that holds its memory's lock, as the server is stopped; a line more, and it calls."""
    program = [sys.executable, "-c", KNOT, str(far / "knot"), str(node.sockets / "ranks.sock")]
    with subprocess.Popen(
        program, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout and process.stdin
            assert process.stdout.readline() == "ready\n"
            os.kill(server.pid, signal.SIGSTOP)
            process.stdin.write("\n")
            process.stdin.flush()
            kit.wait_until(lambda: is_held(process.pid), "its environment does not come")
            yield process
        finally:
            os.kill(server.pid, signal.SIGCONT)
            process.kill()


def is_held(pid: int) -> bool:
    try:
        subprocess.run(["cat", f"/proc/{pid}/environ"], capture_output=True, check=True, timeout=3)
    except subprocess.TimeoutExpired:
        return True
    return False


@pytest.mark.parametrize("cgroups", [True, False], ids=["cgroups", "tree"])
def test_a_shepherd_starts_whatever_the_kernel_keeps_back(tmp_path: Path, cgroups: bool) -> None:
    """A process that an earlier shepherd left, and nobody can look into, is killed once that can be done."""
    if cgroups and not kit.UNIFIED:
        pytest.skip("needs a writable cgroup v2 hierarchy")
    far = tmp_path / "far"
    with mounted(far) as server, kit.cluster(tmp_path, ["node1"], cgroups) as [node]:
        marks = {"HPCMESOS_SOCKET": str(node.sockets / "ranks.sock"), "HPCMESOS_ATTEMPT": "1.hpcm#1"}
        with knot(far, server, {**os.environ, **marks}, node) as left:
            node.kill()
            node.start()
            with kit.runs([node], tmp_path) as start:
                assert start("exit 3\n").ended()["code"] == 3
            assert f"keeps back the environment of {left.pid}" in node.log()
            assert left.poll() is None
            os.kill(server.pid, signal.SIGCONT)
            assert left.wait(kit.PATIENCE) == -signal.SIGKILL
            kit.wait_until(lambda: f"killed: {left.pid} of 1.hpcm#1" in node.log(), "the log says it")


def test_a_caller_whom_the_kernel_keeps_back_is_nobody(tmp_path: Path) -> None:
    """Anybody may call ranks.sock; whose process it is is asked of the kernel, which may not say."""
    if not kit.UNIFIED:
        pytest.skip("needs a writable cgroup v2 hierarchy")
    far = tmp_path / "far"
    with (
        mounted(far) as server,
        kit.cluster(tmp_path, ["node1"], True) as [node],
        kit.runs([node], tmp_path) as start,
        knot(far, server, dict(os.environ), node) as caller,
    ):
        first = start("until test -e go; do sleep 0.05; done; exit 3\n")
        first.started()
        assert caller.stdin
        caller.stdin.write("\n")
        caller.stdin.flush()
        said = f"keeps back the environment of {caller.pid}"
        kit.wait_until(lambda: said in node.log(), "the shepherd has looked")
        assert start("exit 4\n").ended()["code"] == 4
        (tmp_path / "go").touch()
        assert first.ended()["code"] == 3


def test_the_end_of_a_launch_beside_what_the_kernel_keeps_back(tmp_path: Path) -> None:
    """Which of a job's processes are of the launch is not told of one that hangs; no other job waits for that."""
    if not kit.UNIFIED:
        pytest.skip("needs a writable cgroup v2 hierarchy")
    far = tmp_path / "far"
    (tmp_path / "knot.py").write_text(KNOT)
    script = f"""
        mkfifo tell
        exec 9<>tell
        {sys.executable} knot.py {far}/knot '' <tell >said &
        echo $! >pid
        until test -e stopped; do sleep 0.05; done
        echo >&9
        until test -e held; do sleep 0.05; done
        hpcmesos run -n 1 true
        exit 5
    """
    with mounted(far) as server, kit.cluster(tmp_path, ["node1"], True) as [node]:
        hanging = kit.Run([node], kit.spec([node], tmp_path, script, attempt="1.hpcm#1"))
        kit.wait_until(lambda: "ready" in text_of(tmp_path / "said"), "it has the page")
        os.kill(server.pid, signal.SIGSTOP)
        (tmp_path / "stopped").touch()
        held = int(kit.wait_until(lambda: text_of(tmp_path / "pid"), "its pid"))
        kit.wait_until(lambda: is_held(held), "its environment does not come")
        (tmp_path / "held").touch()
        kit.wait_until(lambda: f"keeps back the environment of {held}" in node.log(), "the launch ends")
        with kit.runs([node], tmp_path) as start:
            assert start("exit 3\n", attempt="2.hpcm#1").ended()["code"] == 3
        os.kill(server.pid, signal.SIGCONT)
        assert hanging.ended()["code"] == 5
        node.agent.send(op="forget", attempt=hanging.attempt)


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.mark.full
def test_a_file_server_that_hangs_stops_only_its_own_job(tmp_path: Path) -> None:
    if not kit.UNIFIED:
        pytest.skip("needs a writable cgroup v2 hierarchy")
    far = tmp_path / "far"
    with mounted(far) as server, kit.cluster(tmp_path, ["node1"], True) as [node]:
        before = kit.Run([node], kit.spec([node], far, "echo text\n", attempt="1.hpcm#1", workdir="/"))
        assert (before.ended()["code"], before.tail("stdout")) == (0, "text\n")
        caught = kit.Run(
            [node],
            kit.spec([node], far, "echo begun; sleep 600\n", attempt="2.hpcm#1", workdir="/", walltime=2),
        )
        caught.started()
        os.kill(server.pid, signal.SIGSTOP)
        late = kit.Run([node], kit.spec([node], far, "exit 4\n", attempt="3.hpcm#1", workdir="/"))
        # Meanwhile the walltime of the second passes: a line is added to its output, its tail is read; both hang.
        for number in range(4, 8):
            near = kit.Run(
                [node], kit.spec([node], tmp_path, "sleep 1; exit 3\n", attempt=f"{number}.hpcm#1")
            )
            assert near.ended(timeout=30)["code"] == 3
        ended = caught.ended(timeout=90)
        assert ended["cause"] == "WALLTIME"
        assert "cannot be killed" in ended["message"]  # it waits for the server to take its last words
        os.kill(server.pid, signal.SIGCONT)
        assert late.ended()["code"] == 4
        pid = caught.started()["pid"]
        kit.wait_until(lambda: not kit.is_alive(pid), "what could not be killed ends")
        node.agent.send(op="forget", attempt=caught.attempt)
        directory = node.state / "attempts" / caught.attempt
        kit.wait_until(lambda: not directory.exists(), "it is forgotten")


def test_a_file_server_that_hangs_does_not_stop_the_next_shepherd(tmp_path: Path) -> None:
    if not kit.UNIFIED:
        pytest.skip("needs a writable cgroup v2 hierarchy")
    far = tmp_path / "far"
    with mounted(far) as server, kit.cluster(tmp_path, ["node1"], True) as [node]:

        def run(number: int, directory: Path, script: str) -> kit.Run:
            return kit.Run(
                [node], kit.spec([node], directory, script, attempt=f"{number}.hpcm#1", workdir="/")
            )

        quiet = run(1, far, "echo begun; sleep 600\n")
        stuck = [run(number, far, "while :; do echo more; sleep 0.05; done\n") for number in range(2, 5)]
        near = run(5, tmp_path, "echo begun; sleep 600\n")
        pids = [one.started()["pid"] for one in (quiet, *stuck, near)]
        kit.wait_until(lambda: (tmp_path / "out").read_text(), "it has written")
        os.kill(server.pid, signal.SIGSTOP)
        dying = node.process
        dying.kill()  # it waits for the server to close its files, and keeps its lock and its sockets meanwhile
        node.agent.close()
        path = str(node.state / "shepherd.pid")
        kit.wait_until(lambda: pidfile.living(path) is None, "it has ended for everybody else")
        assert dying.poll() is None
        node.start()
        for one in (quiet, *stuck, near):
            assert one.ended(timeout=30)["cause"] == "NODE_LOST"
        assert (quiet.tail("stdout"), near.tail("stdout")) == ("", "begun\n")
        assert "cannot be killed" in stuck[0].ended()["message"]
        after = run(6, tmp_path, "exit 3\n")
        assert after.ended()["code"] == 3
        os.kill(server.pid, signal.SIGCONT)
        kit.wait_until(lambda: not any(map(kit.is_alive, pids)), "what could not be killed ends")
        for one in (quiet, *stuck, near, after):
            node.agent.send(op="forget", attempt=one.attempt)
        dying.wait(kit.PATIENCE)
