"""The process that forks for the shepherd: killed or stopped, it costs no job; and directories that are used again."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hpcmesos.launch import programs, starter
from hpcmesos.launch.owners import Owner
from hpcmesos.launch.processes import Launch, Outputs

from . import shepherd_kit as kit

pytestmark = pytest.mark.skipif(not kit.UNIFIED, reason="needs a writable cgroup v2 hierarchy")


@pytest.fixture(params=[programs.STARTER, ""], ids=["compiled", "interpreted"])
def node(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[kit.Node]:
    if request.param and not os.access(request.param, os.X_OK):
        pytest.skip("no C compiler when hpcmesos was installed")
    with kit.cluster(tmp_path, ["node1"], True, starter=request.param) as [one]:
        kit.wait_until(lambda: kit.starter(one), "there is a starter")
        program = Path(f"/proc/{kit.starter(one)}/exe").readlink()
        assert (program.name == "starter") is bool(request.param)
        yield one


def begin(node: kit.Node, directory: Path, number: int, script: str) -> kit.Run:
    return kit.Run([node], kit.spec([node], directory, script, attempt=f"{number}.hpcm#1"))


def test_scripts_are_children_of_the_shepherd(node: kit.Node, tmp_path: Path) -> None:
    run = begin(node, tmp_path, 1, "echo $PPID; cat /proc/self/cgroup\n")
    assert run.ended()["code"] == 0
    parent, *groups = run.tail("stdout").splitlines()
    assert int(parent) == node.process.pid
    assert any(line.startswith("0::") and line.endswith("/1.hpcm#1") for line in groups)
    assert kit.starter(node)


def test_scripts_and_ranks_hold_nothing_of_the_shepherds(node: kit.Node, tmp_path: Path) -> None:
    """Whoever had the starter's connection would read, or take away, what others want to have started."""
    listing = "for fd in /proc/self/fd/*; do readlink $fd; done"
    run = begin(node, tmp_path, 1, f"{listing}\nhpcmesos run -n 1 sh -c '{listing}'\n")
    assert run.ended()["code"] == 0, run.tail("stderr")
    sockets = [line for line in run.tail("stdout").splitlines() if line.startswith("socket:")]
    assert len(sockets) == 1, f"the rank's connection for PMI, and no other: {sockets}"


def test_what_the_program_finds(node: kit.Node, tmp_path: Path) -> None:
    """Its words, variables, directory, mask and streams, whatever bytes they have."""
    odd = 'q"\\ \n\udcff \N{SNOWMAN}'
    place = tmp_path / odd
    place.mkdir()
    tool = place / "tool"
    tool.write_text('printf "%s|" "$0" "$@" "$ODD"; pwd; umask; read line; echo "end: $?"; echo other >&2\n')
    tool.chmod(0o755)
    value = kit.spec(
        [node],
        place,
        attempt="1.hpcm#1",
        argv=["tool", odd, ""],
        environment={"ODD": odd, "PATH": f"/nowhere:{place}:/usr/bin:/bin"},
        umask=0o027,
    )
    run = kit.Run([node], value)
    ended = run.ended()
    assert ended["code"] == 0, run.tail("stderr")
    assert (ended["stdout_path"], ended["undelivered"]) == (f"{place}/out", "")
    words = os.fsencode(f"{place}/tool|{odd}||{odd}|{place}\n0027\nend: 1\n")
    assert (place / "out").read_bytes() == words
    assert (place / "err").read_bytes() == b"other\n"
    assert stat.S_IMODE((place / "out").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["no-such-program"], 127, "hpcmesos: no-such-program: No such file or directory"),
        (["/etc/hostname/x"], 127, "hpcmesos: /etc/hostname/x: Not a directory"),
        (["/etc"], 126, "hpcmesos: /etc: Permission denied"),
    ],
)
def test_what_cannot_be_executed(
    node: kit.Node, tmp_path: Path, argv: list[str], code: int, said: str
) -> None:
    run = kit.Run([node], kit.spec([node], tmp_path, attempt="1.hpcm#1", argv=argv))
    assert run.ended()["code"] == code
    assert run.tail("stderr") == f"{said}\n"


def test_outputs_that_cannot_be_opened(node: kit.Node, tmp_path: Path) -> None:
    """The spool takes what has no place; where that cannot be, nothing starts, and the reason is told."""
    lost = str(tmp_path / 'no"such' / "out")
    value = kit.spec([node], tmp_path, "echo text\n", attempt="1.hpcm#1", stdout=lost, stderr=lost, join="oe")
    run = kit.Run([node], value)
    ended = run.ended()
    assert (ended["code"], ended["stderr_path"]) == (0, "")
    assert ended["undelivered"] == f"{lost}: No such file or directory"
    assert ended["stdout_path"] == f"{node.state}/attempts/1.hpcm#1/stdout"
    assert run.tail("stdout") == "text\n"


def test_a_request_comes_back_as_it_was() -> None:
    """What starter.py reads is what was packed; a word with a zero byte is none."""
    owner = Owner("ann", 1000, 100, (100, 7), "/home/ann", "/bin/sh", switch=True)
    launch = Launch(
        "tool", ["tool", "", "b\udcff"], {"A": "=1", "B": ""}, ("/w", "/"), owner, 0o027,
        ("/v2/job/cgroup.procs", "/v1/job/cgroup.procs"),
        outputs=Outputs(["/o", "/spool/o"], [], "oe", truncate=True), made=("/m",),
    )  # fmt: skip
    into, found = starter.unpacked(starter.packed(launch, "/v2/job", []), [5])
    assert (into, found.program, found.argv) == ("/v2/job", launch.program, launch.argv)
    assert (found.environ, tuple(found.directories)) == (launch.environ, launch.directories)
    assert (found.owner.switch, found.owner.uid, found.owner.gid) == (True, 1000, 100)
    assert (tuple(found.owner.groups), found.umask) == (owner.groups, 0o027)
    assert (found.cgroups, found.made, found.gated) == (["/v1/job/cgroup.procs"], ["/m"], False)
    assert (found.outputs.stdout, found.outputs.stderr) == (["/o", "/spool/o"], [])
    assert (found.outputs.join, found.outputs.truncate, found.inherit) == ("oe", True, None)
    rank = replace(launch, outputs=None, gated=True, inherit=("PMI_FD", 9))
    _, found = starter.unpacked(starter.packed(rank, "/v2/job", [-1, 1, 2]), [5, 6, 7, 8])
    assert (found.stdio, found.inherit, bool(found.outputs)) == ([None, 6, 7], ("PMI_FD", 8), False)
    with pytest.raises(ValueError, match="null byte"):
        starter.packed(replace(launch, argv=["tool", "a\0b"]), "/v2/job", [])


def test_death_of_the_starter(node: kit.Node, tmp_path: Path) -> None:
    kit.wait_until(lambda: kit.starter(node), "there is a starter")
    run = begin(node, tmp_path, 1, "until test -e go; do sleep 0.01; done; exit 6\n")
    run.started()
    before = kit.starter(node)
    os.kill(before, signal.SIGKILL)
    kit.wait_until(lambda: kit.starter(node) != before, "it is gone")
    assert begin(node, tmp_path, 2, "exit 7\n").ended()["code"] == 7
    (tmp_path / "go").touch()
    assert run.ended()["code"] == 6


def test_a_starter_that_stands_still_is_replaced(node: kit.Node, tmp_path: Path) -> None:
    os.kill(kit.wait_until(lambda: kit.starter(node), "there is a starter"), signal.SIGSTOP)
    deleted = begin(node, tmp_path, 1, "touch one\n")
    deleted.end(kill_delay=0)
    late = begin(node, tmp_path, 2, "touch two; exit 5\n")
    assert (deleted.ended()["cause"], deleted.ended()["code"]) == ("DELETED", None)
    assert late.ended()["code"] == 5
    assert (tmp_path / "two").exists()
    assert not (tmp_path / "one").exists()


RANKS = """
until test -e go; do sleep 0.01; done
hpcmesos run -n 4 --oversubscribe sh -c 'test -S /proc/self/fd/$PMI_FD && echo $PPID && grep 0:: /proc/self/cgroup'
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["by the starter", "without it"])
def test_ranks_are_children_of_the_shepherd(node: kit.Node, tmp_path: Path, stopped: bool) -> None:
    """In the attempt's cgroup, with their connection for PMI, whoever makes them; a starter that stands still is
    replaced."""
    run = begin(node, tmp_path, 1, RANKS)
    run.started()
    before = kit.wait_until(lambda: kit.starter(node), "there is a starter")
    if stopped:
        os.kill(before, signal.SIGSTOP)
    (tmp_path / "go").touch()
    assert run.ended()["code"] == 0, run.tail("stderr")
    lines = run.tail("stdout").splitlines()
    assert [line for line in lines if line.isdigit()] == [str(node.process.pid)] * 4
    assert {line.rpartition("/")[2] for line in lines if not line.isdigit()} == {"1.hpcm#1"}
    kit.wait_until(lambda: kit.starter(node), "there is a starter again")
    assert (kit.starter(node) == before) is not stopped


def test_what_is_too_large_for_the_starter_starts(node: kit.Node, tmp_path: Path) -> None:
    value = kit.spec(
        [node], tmp_path, "exit ${#LONG}\n", attempt="1.hpcm#1", environment={"LONG": "x" * 100_011}
    )
    assert kit.Run([node], value).ended()["code"] == 100_011 % 256


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_directory_is_used_again_by_its_owner_only(tmp_path: Path) -> None:
    place = Path(tempfile.mkdtemp(prefix="hpcm-", dir="/tmp"))
    place.chmod(0o711)
    (place / "home").mkdir()
    os.chown(place / "home", pwd.getpwnam("nobody").pw_uid, -1)
    script = "ls -di $PBS_JOBDIR $TMPDIR; ls -A $PBS_JOBDIR $TMPDIR; stat -c %U:%a $PBS_JOBDIR $TMPDIR\n"
    try:
        with kit.cluster(place, ["node1"], True) as [node]:

            def listing(number: int, owner: str, more: str = "") -> list[str]:
                value = kit.spec(
                    [node], place / "home", script + more, attempt=f"{number}.hpcm#1", owner=owner
                )
                run = kit.Run([node], value)
                assert run.ended()["code"] == 0, run.tail("stderr")
                node.agent.send(op="forget", attempt=run.attempt)
                directory = node.state / "attempts" / run.attempt
                kit.wait_until(lambda: not directory.exists(), "it is forgotten")
                return [line.replace(run.attempt, "ID") for line in run.tail("stdout").splitlines()]

            first = listing(1, "nobody")
            assert listing(2, "nobody") == first
            other = listing(3, "root")
            assert other[0].split()[0] != first[0].split()[0]
            assert other[-2:] == ["root:700", "root:700"]
            listing(4, "nobody", "chmod 755 $PBS_JOBDIR; rmdir $TMPDIR; ln -s / $TMPDIR\n")
            assert listing(5, "nobody")[2:] == first[2:]
            elsewhere = place / "home" / "empty"
            listing(6, "nobody", f"rmdir $TMPDIR; mkdir {elsewhere}; ln -s {elsewhere} $TMPDIR\n")
            kept = [path for path in (node.state / "attempts").glob(".spare.*/tmp") if path.is_symlink()]
            assert kept == [], "nobody looks where its owner's link leads, and such a directory is not kept"
    finally:
        shutil.rmtree(place)


def test_an_attempt_whose_records_are_damaged_was_here_all_the_same(node: kit.Node, tmp_path: Path) -> None:
    run = begin(node, tmp_path, 1, "sleep 600\n")
    pid = run.started()["pid"]
    node.kill()
    for file in (node.state / "journal").glob("*.journal"):
        file.write_bytes(bytes(file.stat().st_size))
    node.start()
    ended = run.ended()
    assert (ended["cause"], ended["code"], ended["message"]) == ("NODE_LOST", None, "its journal is damaged")
    kit.wait_until(lambda: not kit.is_alive(pid), "what it left is killed")
    node.agent.send(op="forget", attempt=run.attempt)
    directory = node.state / "attempts" / run.attempt
    kit.wait_until(lambda: not directory.exists(), "it is forgotten")


@pytest.mark.parametrize("compiled", [True, False])
def test_open_files_are_limited_whoever_starts_a_process(tmp_path: Path, compiled: bool) -> None:
    more = {} if compiled else {"starter": ""}
    with kit.cluster(tmp_path, ["node1"], True, limits={"nofile": 300}, **more) as [node]:
        run = begin(node, tmp_path, 1, "ulimit -Sn; ulimit -Hn; hpcmesos run -n 1 sh -c 'ulimit -Hn'\n")
        assert run.ended()["code"] == 0, run.tail("stderr")
        assert run.tail("stdout").split() == ["300"] * 3
        node.agent.send(op="forget", attempt=run.attempt)


def test_the_start_of_a_short_script_is_not_told_to_who_waits_for_none(
    node: kit.Node, tmp_path: Path
) -> None:
    """An attempt that begins without a word between; whoever asks anew hears of its start at once."""

    def begin_at_once(number: int, script: str) -> str:
        value = kit.spec([node], tmp_path, script, attempt=f"{number}.hpcm#1", go=True)
        node.agent.send(op="prepare", spec=value)
        return str(value["attempt"])

    short = begin_at_once(1, "exit 3\n")
    ended = node.agent.wait("ended", short)
    assert (ended["code"], ended["started_at"] > 0) == (3, True)
    long = begin_at_once(2, "sleep 600\n")
    assert kit.is_alive(node.agent.wait("started", long)["pid"])
    told = [event["event"] for event in node.agent.events if event.get("attempt") == short]
    assert told in (["ended"], ["started", "ended"]), "the latter on a machine that is busy"
    node.agent.send(op="end", attempt=long, cause="DELETED", kill_delay=1.0, message="")
    node.agent.wait("ended", long)
    for attempt in (short, long):
        node.agent.send(op="forget", attempt=attempt)
