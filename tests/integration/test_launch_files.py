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
