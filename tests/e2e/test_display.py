"""qsub -X: real X programs in a job, at a real X server of the submitter's that asks for a cookie."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.cluster_kit import USERS, LiveCluster
from tests.e2e.terminal_kit import Terminal
from tests.e2e.test_interactive import started

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def x_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """DISPLAY, and the cookie's value."""
    if not all(map(shutil.which, ("Xvfb", "xauth", "xdpyinfo"))):
        pytest.skip("no X server")
    place, cookie = tmp_path_factory.mktemp("x"), secrets.token_hex(16)
    authority = place / "server"
    subprocess.run(
        ["xauth", "-q", "-f", authority, "add", ":0", ".", cookie], check=True, capture_output=True
    )
    reading, writing = os.pipe()
    words = [
        "Xvfb",
        "-noreset",  # else it begins anew, and drops who connects just then, whenever its last program ends
        "-displayfd",
        str(writing),
        "-auth",
        authority,
        "-nolisten",
        "tcp",
        "-screen",
        "0",
        "640x480x24",
    ]
    with (place / "log").open("wb") as log:
        server = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(writing,)
        )
    os.close(writing)
    try:
        with os.fdopen(reading) as told:
            yield f":{told.readline().strip()}", cookie
    finally:
        server.terminate()
        server.wait()


@contextmanager
def session(cluster: LiveCluster, x_server: tuple[str, str], *words: str) -> Iterator[Terminal]:
    """qsub -I -X of a user whose own file has the server's cookie."""
    display, cookie = x_server
    authority = cluster.work() / "own-Xauthority"
    words_ = ["xauth", "-q", "-f", str(authority), "add", display, ".", cookie]
    cluster.run(*words_, check=True)
    environ = {**cluster.environ, "DISPLAY": display, "XAUTHORITY": str(authority)}
    terminal = Terminal(["qsub", "-I", "-X", *words], environ, cluster.work(), cluster.user)
    try:
        yield terminal
    finally:
        terminal.close()


def test_programs_show_their_windows(cluster: LiveCluster, x_server: tuple[str, str]) -> None:
    with session(cluster, x_server) as terminal:
        started(terminal)
        terminal.type("echo $DISPLAY; xdpyinfo | grep -e 'dimensions' -e 'vendor'; echo do''ne\n")
        shown = terminal.expect("done\r\n", 60)
        number = re.search(r"localhost:(\d+)\.0", shown)
        assert number, shown
        assert "640x480" in shown
        assert "X.Org" in shown
        words = "for i in 1 2 3 4 5; do xlsatoms >atoms.$i & done; wait; cat atoms.? | sort | uniq -c"
        terminal.type(f"{words} | awk '$1 != 5' | wc -l; wc -l <atoms.1; echo do''ne\n")
        shown = terminal.expect("done\r\n", 60)
        different, atoms = map(int, re.findall(r"^(\d+)\r$", shown, re.MULTILINE)[-2:])
        assert different == 0, f"five at once have seen the same: {shown}"
        assert atoms >= 68, "those that every server has"
        stranger = cluster.run(
            "xdpyinfo", user=USERS[1] if cluster.user else None,
            environ={"DISPLAY": f"localhost:{number[1]}.0", "XAUTHORITY": "/dev/null"},
        )  # fmt: skip
        assert stranger.returncode != 0, "without the cookie of the job nobody gets through"
        terminal.type("exit 0\n")
        assert terminal.wait() == 0
    gone = cluster.run("xdpyinfo", environ={"DISPLAY": f"localhost:{number[1]}.0"})
    assert gone.returncode != 0


def test_the_users_own_cookie_stays_at_home(cluster: LiveCluster, x_server: tuple[str, str]) -> None:
    with session(cluster, x_server) as terminal:
        started(terminal)
        terminal.type("xauth list | wc -l; xauth list | awk '{print $3}'; echo do''ne\n")
        shown = terminal.expect("done\r\n", 60)
        (made,) = re.findall(r"^([0-9a-f]{32})\r$", shown, re.MULTILINE)
        assert made != x_server[1]


def test_a_program_ends_with_its_server(cluster: LiveCluster, x_server: tuple[str, str]) -> None:
    """The session ends under an open window: nothing is left."""
    with session(cluster, x_server) as terminal:
        started(terminal)
        terminal.type("xev >xev.out & until grep -q Expose xev.out; do sleep 0.1; done; echo sho''wn\n")
        terminal.expect("shown", 60)
        terminal.type("exit 4\n")
        assert terminal.wait() == 4


def test_an_x_server_that_is_not_there(cluster: LiveCluster, x_server: tuple[str, str]) -> None:
    with session(cluster, (":4077", x_server[1])) as terminal:
        started(terminal)
        terminal.type("xdpyinfo; echo code $?\n")
        refusal = "qsub: the X server cannot be reached"
        if refusal not in terminal.expect("code 1\r\n", 60):
            terminal.expect(refusal)  # what qsub itself says has another way to the terminal
