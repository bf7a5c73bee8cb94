"""Who comes first where the kernel shares the processor among sessions; elsewhere nothing changes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcmesos import priority
from tests.e2e.cluster_kit import wait_until

FIRST = "/autogroup-N nice -10" if os.geteuid() == 0 else "/autogroup-N nice 0"
SERVER = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX); listener.bind(sys.argv[1]); listener.listen()
if os.fork() == 0:
    os.setsid()
    line, _ = listener.accept()
    line.sendall(str(os.getpid()).encode())
    line.recv(1)
else:
    os.wait()
"""
DAEMON = """
import os, subprocess, sys
program = "from hpcmesos.priority import come_first; come_first(); print(open('/proc/self/autogroup').read())"
print(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
"""


def weight(text: str) -> str:
    """What /proc/PID/autogroup says, without the number of the group."""
    return f"/autogroup-N {text.strip().partition(' ')[2]}" if text.strip() else ""


def of(pid: int | str) -> str:
    try:
        return weight(Path(f"/proc/{pid}/autogroup").read_text())
    except FileNotFoundError:
        return ""


@pytest.fixture(autouse=True)
def autogroup() -> None:
    enabled = Path("/proc/sys/kernel/sched_autogroup_enabled")
    if not of("self") or enabled.read_text().strip() != "1":
        pytest.skip("no autogroup of sessions in this kernel")


@pytest.fixture
def line(tmp_path: Path) -> Iterator[tuple[socket.socket, int]]:
    """A connection to a server that serves each one by a process in a session of its own, and that process."""
    path = tmp_path / "socket"
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(path)], start_new_session=True)
    with socket.socket(socket.AF_UNIX) as connection:
        wait_until(lambda: connection.connect_ex(str(path)) == 0, "the server listens")
        yield connection, int(connection.recv(100))
    assert server.wait(10) == 0


def test_the_server_of_a_local_connection_comes_first(line: tuple[socket.socket, int]) -> None:
    connection, pid = line
    priority.bring_server_forward(connection.fileno(), pid)
    assert of(pid) == FIRST


def test_a_number_that_is_another_process_here_changes_nothing(line: tuple[socket.socket, int]) -> None:
    before = of("self")
    priority.bring_server_forward(line[0].fileno(), os.getpid())
    assert of("self") == before


def test_a_server_of_another_host_is_no_business_of_ours(line: tuple[socket.socket, int]) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as far,
    ):
        priority.bring_server_forward(far.fileno(), line[1])
    assert of(line[1]) == "/autogroup-N nice 0"


def test_a_daemon_brings_its_session_forward_and_nobody_elses() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DAEMON], capture_output=True, text=True, check=True, start_new_session=True
    )
    assert weight(done.stdout) == FIRST
    before = of("self")
    program = "from hpcmesos.priority import come_first; come_first()"
    subprocess.run(["sh", "-c", f'"{sys.executable}" -c "{program}"; true'], check=True)
    assert of("self") == before
