"""What the starter makes of requests, sent to it directly: also of ones that no shepherd sends. The compiled one is
built here so that it tells of every misuse of memory, and without a warning."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcmesos.launch import programs, starter
from hpcmesos.launch.owners import Owner
from hpcmesos.launch.processes import Launch, Outputs

from . import shepherd_kit as kit

pytestmark = pytest.mark.skipif(not kit.UNIFIED, reason="needs a writable cgroup v2 hierarchy")

SOURCE = Path(programs.STARTER).with_suffix(".c")
CHECKED = ("-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined")
MISUSE = 99
"""Exit code of a program that has misused memory."""
ME = Owner("root", 0, 0, (), "/", "/bin/sh", switch=False)


class Starter:
    """A running one, of which this process is the shepherd."""

    def __init__(self, words: list[str], directory: Path, cgroup: Path) -> None:
        self.cgroup = cgroup
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sanitizers = f"exitcode={MISUSE}:detect_leaks=0"
        with theirs:
            self.process = subprocess.Popen(
                [*words, "starter", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=directory,
                env={"ASAN_OPTIONS": sanitizers, "UBSAN_OPTIONS": f"{sanitizers}:halt_on_error=1"},
                stdin=subprocess.DEVNULL,
            )

    def ask(self, data: bytes, fds: tuple[int, ...] = (), *, deaf: bool = False) -> dict[str, Any]:
        """All that the report says, and as ``status`` how the child ended, which has to end by itself.

        ``deaf``: nobody reads the report.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            if deaf:
                ours.shutdown(socket.SHUT_RDWR)
            ours.settimeout(kit.PATIENCE)
            with theirs:
                socket.send_fds(self._connection, [data], [theirs.fileno(), *fds])
            said: dict[str, Any] = {}
            while not deaf and (message := socket.recv_fds(ours, 65536, 5)) and message[0]:
                for fd in message[1]:
                    os.close(fd)
                if message[0].startswith(b"{"):  # else of a child that has its report as its stderr
                    said |= json.loads(message[0].decode("utf-8", "surrogateescape"))
                ours.shutdown(socket.SHUT_WR)  # one that waits at its gate gives up
        if said.get("pid"):
            said["status"] = os.waitstatus_to_exitcode(os.waitpid(said["pid"], 0)[1])
        return said

    def close(self) -> int:
        """Its exit code."""
        self._connection.close()
        return self.process.wait(kit.PATIENCE)


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled one, with sanitizers."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler when hpcmesos was installed")
    program = tmp_path_factory.mktemp("starter") / "starter"
    subprocess.run(["cc", *CHECKED, "-fno-sanitize-recover=all", "-o", program, SOURCE], check=True)
    return program


@pytest.fixture(params=["compiled", "interpreted"])
def running(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Starter]:
    compiled = request.param == "compiled"
    words = [str(request.getfixturevalue("checked"))] if compiled else [sys.executable, "-IS", programs.START]
    yield from serving(words, tmp_path)


def serving(words: list[str], directory: Path) -> Iterator[Starter]:
    cgroup = Path(f"{kit.UNIFIED}/hpcmesos-test-{os.getpid()}-requests")
    cgroup.mkdir()
    one = Starter(words, directory, cgroup)
    try:
        yield one
        assert one.close() == 0
    finally:
        one.process.kill()
        one.process.wait()
        cgroup.rmdir()


def children() -> set[int]:
    """Of this process, those among them that have ended and nobody has asked for."""
    lists = Path("/proc/self/task").glob("*/children")
    return {int(pid) for path in lists for pid in path.read_text().split()}


def script(directory: Path, text: str, *places: str) -> Launch:
    outputs = Outputs([*places, str(directory / "out")], [], "oe", truncate=True)
    argv = ["sh", "-c", text]
    return Launch("sh", argv, {"PATH": os.defpath}, (str(directory),), ME, 0o022, (), outputs=outputs)


def test_what_is_asked_is_started(running: Starter, tmp_path: Path) -> None:
    said = running.ask(starter.packed(script(tmp_path, "echo $0; exit 7"), str(running.cgroup), []))
    assert (said["status"], said["streams"], said["undelivered"]) == (7, ["stdout"], "")
    assert (tmp_path / "out").read_text() == "sh\n"


STANDING = """
grep -E '^(Umask|NSpid|Uid|Gid|Groups|Sig[BIC]|ShdPnd|Cap|NoNewPrivs|Seccomp)' /proc/self/status | grep -v NSpid
cat /proc/self/limits /proc/self/oom_score_adj /proc/self/cgroup; nice; ls /proc/self/fd | wc -l
test $(cut -d' ' -f6 /proc/self/stat) -eq $$ && echo 'of its own session'; env
"""


def test_both_make_the_same_of_a_process(checked: Path, tmp_path: Path) -> None:
    """Signals, mask, identity, rights, limits, cgroup, session, descriptors and variables."""
    told = []
    for words in ([str(checked)], [sys.executable, "-IS", programs.START]):
        for one in serving(words, tmp_path):
            owner = replace(ME, switch=True, groups=(4, 20))
            asked = replace(script(tmp_path, STANDING), owner=owner, umask=0o027)
            said = one.ask(starter.packed(asked, str(one.cgroup), []))
            assert said["status"] == 0, said
            told.append((tmp_path / "out").read_text())
    assert told[0] == told[1]
    assert "of its own session" in told[0]


@pytest.mark.parametrize("data", [b'{"into": "/", "argv": ["true"]}', b"\0", b"hpcmesos 0\0/\0"])
def test_a_request_of_another_release_is_refused_for_good(running: Starter, data: bytes) -> None:
    """EINVAL: the shepherd goes on without a starter."""
    assert running.ask(data) == {"unable": errno.EINVAL}


def test_a_program_without_an_interpreter_is_run_by_sh_from_where_it_was_found(
    running: Starter, tmp_path: Path
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "tool").write_text('echo "$0 $1"; exit 4\n')
    (tools / "tool").chmod(0o755)
    asked = replace(script(tmp_path, ""), program="tool", argv=["tool", "word"])
    asked.environ = {"PATH": f"/nowhere:{tools}:{os.defpath}"}
    said = running.ask(starter.packed(asked, str(running.cgroup), []))
    assert (said["status"], (tmp_path / "out").read_text()) == (4, f"{tools}/tool word\n")


def test_a_cgroup_that_is_gone_is_told(running: Starter, tmp_path: Path) -> None:
    said = running.ask(starter.packed(script(tmp_path, ""), str(tmp_path / "gone"), []))
    assert said == {"unable": errno.ENOENT}


def test_nothing_begins_that_nobody_hears_of(running: Starter, tmp_path: Path) -> None:
    """The shepherd is gone, or would begin it once more."""
    request = starter.packed(script(tmp_path, "touch begun"), str(running.cgroup), [])
    others = children()
    running.ask(request, deaf=True)
    [pid] = kit.wait_until(lambda: children() - others, "it is there")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 125
    assert not (tmp_path / "begun").exists()


@pytest.mark.parametrize("letter", ["\x01", '"', "\udcff", "é"])
def test_a_report_of_long_paths_is_whole(running: Starter, tmp_path: Path, letter: str) -> None:
    """Places that cannot be opened, whose names are longer than a report when they are quoted."""
    lost = ["/nowhere/" + letter * (9_000 // len(os.fsencode(letter)))] * 2
    said = running.ask(starter.packed(script(tmp_path, "exit 3", *lost), str(running.cgroup), []))
    assert (said["status"], said["stdout_path"]) == (3, str(tmp_path / "out"))
    assert said["undelivered"].startswith("/nowhere/" + letter)


def test_a_message_without_descriptors_or_with_too_many_is_passed_over(
    running: Starter, tmp_path: Path
) -> None:
    request = starter.packed(script(tmp_path, "exit 5"), str(running.cgroup), [])
    running._connection.send(request)
    assert running.ask(request, (0,) * 8) == {}
    assert running.ask(request)["status"] == 5


def test_large_numbers_of_owners_are_kept(running: Starter, tmp_path: Path) -> None:
    """Users of 2^16 and more are themselves, on machines too that once knew smaller numbers only."""
    (tmp_path / "out").touch()
    os.chown(tmp_path / "out", 65536, 0)
    numbers = replace(ME, uid=65536, gid=131072, groups=(131072, 4_000_000_000), switch=True)
    asked = replace(script(Path("/"), "id -u; id -g; id -G"), owner=numbers)
    asked.outputs = Outputs([str(tmp_path / "out")], [], "oe", truncate=True)
    opened = [tmp_path, *tmp_path.parents][: len(tmp_path.parts) - 2]
    before = [(place, place.stat().st_mode) for place in opened]
    try:
        for place in opened:
            place.chmod(place.stat().st_mode | 0o111)
        said = running.ask(starter.packed(asked, str(running.cgroup), []))
    finally:
        for place, mode in before:
            place.chmod(mode)
    assert said["status"] == 0, said
    assert (tmp_path / "out").read_text().split("\n")[:3] == ["65536", "131072", "131072 4000000000"]


WORDS = st.sampled_from(
    [
        "",
        "0",
        "1",
        "2",
        "-1",
        "99999999999",
        "n",
        "oe",
        "eo",
        "x",
        "y/z",
        "PATH=",
        "PATH=:x",
        "\x01\xff",
        "w" * 5000,
    ]
)
LISTS = st.lists(WORDS, max_size=9)


@given(
    head=st.lists(WORDS, min_size=8, max_size=8),
    lists=st.lists(LISTS, max_size=9),
    off=st.integers(-2, 2),
    cut=st.integers(0, 40),
    joined=st.booleans(),
    fds=st.integers(0, 5),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def check(
    one: Starter, head: list[str], lists: list[list[str]], off: int, cut: int, joined: bool, fds: int
) -> None:
    words = [starter.FORMAT, str(one.cgroup) if joined else "/", *head]
    for values in lists:
        words += [str(len(values) + off), *values]
    data = "\0".join(words).encode("latin-1")
    said = one.ask(data[: max(1, len(data) - cut)], (0,) * min(fds, 4))
    assert said.get("status", 125) in (125, 126, 127), said
    assert one.process.poll() is None


def test_no_request_misuses_memory(checked: Path, tmp_path: Path) -> None:
    for one in serving([str(checked)], tmp_path):
        check(one)
