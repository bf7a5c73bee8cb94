"""One shepherd, one node: how scripts start, how attempts end, what is told, what is left."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcmesos.launch.journal import Journal

from . import shepherd_kit as kit

nodes = kit.both_ways(["node1"])


@pytest.fixture(scope="module")
def node(nodes: list[kit.Node]) -> kit.Node:
    return nodes[0]


@pytest.fixture
def run(node: kit.Node, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[object]:
    """Starts an attempt; afterwards it is forgotten, and nothing of it is left on disk."""
    count = len(node.agent.events)
    runs: list[kit.Run] = []

    def start(script: str | None = None, **changes: object) -> kit.Run:
        attempt = f"{count + len(runs) + 1}.hpcm#1"
        runs.append(kit.Run([node], kit.spec([node], tmp_path, script, **{"attempt": attempt, **changes})))
        return runs[-1]

    yield start
    for one in runs:
        one.ended()
        node.agent.send(op="forget", attempt=one.attempt)
    directories = [node.state / "attempts" / one.attempt for one in runs]
    kit.wait_until(lambda: not any(d.exists() for d in directories), "the attempt's directory is removed")
    assert not Journal(str(node.state / "journal")).load()


def test_exit_codes(run) -> None:
    for code in (0, 37):
        attempt = run(f"echo hello; echo oops >&2; exit {code}\n")
        ended = attempt.ended()
        assert (ended["code"], ended["signal"], ended["forced"], ended["head"]) == (code, None, False, True)
        assert ended["cause"] == ("APP" if code else "OK")
        assert (attempt.tail("stdout"), attempt.tail("stderr")) == ("hello\n", "oops\n")
        assert ended["undelivered"] == ""
        assert Path(ended["stdout_path"]).read_text() == "hello\n"
        assert attempt.started()["stdout_path"] == ended["stdout_path"]


def test_program_without_shell(run, tmp_path: Path) -> None:
    assert run(argv=["sh", "-c", 'exit "$1"', "x", "9"]).ended()["code"] == 9
    missing = run(argv=["nosuch"])
    assert missing.ended()["code"] == 127
    assert "nosuch: No such file or directory" in missing.tail("stderr")
    (tmp_path / "data").write_text("text")
    forbidden = run(argv=[str(tmp_path / "data")])
    assert forbidden.ended()["code"] == 126
    plain = tmp_path / "plain"
    plain.write_text("exit 11\n")
    plain.chmod(0o755)
    assert run(argv=[str(plain)]).ended()["code"] == 11


def test_login_shell_counts_the_first_line_and_passes_arguments(run, tmp_path: Path) -> None:
    script = '#!/bin/sh -e\necho "$1|$2"; command -v mpiexec; false\necho never\n'
    attempt = run(script, shell=None, script_args=["a b", "c"], job_path=["/opt/site"])
    assert attempt.ended()["code"] == 1
    first, second = attempt.tail("stdout").splitlines()
    assert first == "a b|c"
    assert second.endswith("/bin/mpiexec")
    late = run("\n#!/bin/false\nreadlink /proc/$$/exe; exit 5\n", shell=None, script_args=["x"])
    assert late.ended()["code"] == 5
    assert Path(late.tail("stdout").strip()) == Path(pwd.getpwuid(os.getuid()).pw_shell).resolve()
    killed = run("kill -9 $$\n", shell=None).ended()
    assert (killed["code"], killed["signal"], killed["cause"]) == (None, 9, "SIGNAL")


def test_environment_and_place(run, tmp_path: Path, node: kit.Node) -> None:
    script = 'pwd; umask; echo "$PBS_JOBID|$FOO|$HPCMESOS_SHEPHERD|$HPCMESOS_SOCKET"\n'
    script += "wc -l < $PBS_NODEFILE; echo $HOME\n"
    attempt = run(script, environment={"FOO": "a'b"}, umask=0o027)
    attempt.ended()
    lines = attempt.tail("stdout").splitlines()
    assert lines[:2] == [str(tmp_path), "0027"]
    assert lines[2] == f"{attempt.attempt[:-2]}|a'b|{node.process.pid}|{node.sockets}/ranks.sock"
    assert lines[3:] == ["1", os.path.expanduser("~")]
    lost = run("pwd\n", workdir="/no/such/place")
    assert lost.ended()["code"] == 0
    assert lost.tail("stdout") == os.path.expanduser("~") + "\n"
    assert "/no/such/place: No such file or directory" in lost.tail("stderr")


def test_output_joined_spooled_and_appended(run, tmp_path: Path) -> None:
    both = run("echo out; echo err >&2\n", join="oe")
    assert both.ended()["stderr_path"] == ""
    assert (both.tail("stdout"), both.tail("stderr")) == ("out\nerr\n", "")
    other = run("echo out; echo err >&2\n", join="eo")
    other.ended()
    assert (other.tail("stdout"), other.tail("stderr")) == ("", "out\nerr\n")
    lost = run("echo out\n", stdout="/no/such/out")
    assert "/no/such/out: No such file or directory" in lost.ended()["undelivered"]
    assert lost.tail("stdout") == "out\n"
    spooled = run("echo out\n", stdout=None, stderr=None)
    assert spooled.ended()["undelivered"].startswith("kept on node1")
    (tmp_path / "out").write_text("first try\n")
    again = run("echo second\n", number=2)
    again.ended()
    assert (tmp_path / "out").read_text() == "first try\nsecond\n"


def test_tail_is_64_kib(run) -> None:
    attempt = run("head -c 100000 /dev/zero | tr '\\0' x; echo end\n")
    attempt.ended()
    text = attempt.tail("stdout")
    assert len(text) == 64 * 1024
    assert text.endswith("xend\n")


def test_term_is_enough_or_kill_comes(run, tmp_path: Path) -> None:
    polite = run("trap 'exit 3' TERM; touch up; while :; do sleep 0.01; done\n")
    kit.wait_until((tmp_path / "up").exists, "the script runs")
    polite.end(kill_delay=10)
    ended = polite.ended()
    assert (ended["cause"], ended["code"], ended["forced"]) == ("DELETED", 3, False)
    stubborn = run("trap '' TERM; touch deaf; while :; do sleep 0.01; done\n")
    kit.wait_until((tmp_path / "deaf").exists, "the script runs")
    stubborn.end(kill_delay=0.2)
    ended = stubborn.ended()
    assert (ended["cause"], ended["signal"], ended["forced"]) == ("DELETED", 9, True)


def test_second_end_hurries(run, tmp_path: Path) -> None:
    attempt = run("trap '' TERM; touch deaf; while :; do sleep 0.01; done\n")
    kit.wait_until((tmp_path / "deaf").exists, "the script runs")
    attempt.end(kill_delay=600)
    attempt.end(cause="PREEMPTED", kill_delay=0)
    ended = attempt.ended()
    assert (ended["cause"], ended["signal"], ended["forced"]) == ("DELETED", 9, True)


def test_walltime(run) -> None:
    ended = (attempt := run("sleep 600\n", walltime=0.3)).ended()
    assert (ended["cause"], ended["signal"], ended["forced"]) == ("WALLTIME", 15, False)
    assert attempt.tail("stderr").startswith("=>> hpcmesos: job killed: walltime 0 exceeded limit 0.3")
    assert ended["usage"]["walltime"] >= 0.3


def test_a_script_is_warned_before_its_walltime_ends(run) -> None:
    script = "trap 'echo saved; exit 5' USR1\nwhile :; do sleep 0.01; done\n"
    ended = (attempt := run(script, walltime=65, warning=[int(signal.SIGUSR1), 60])).ended()
    assert (ended["cause"], ended["code"], ended["forced"]) == ("APP", 5, False)
    assert attempt.tail("stdout") == "saved\n"
    assert attempt.tail("stderr").startswith("=>> hpcmesos: signal 10: the walltime of 65 s ends soon")
    assert ended["usage"]["walltime"] < 30


def test_who_does_not_heed_the_warning_is_ended_with_the_walltime(run) -> None:
    script = "trap 'echo warned' USR1\nwhile :; do sleep 0.01; done\n"
    ended = (attempt := run(script, walltime=9, warning=[int(signal.SIGUSR1), 4])).ended()
    assert (ended["cause"], ended["signal"], ended["forced"]) == ("WALLTIME", 15, False)
    assert attempt.tail("stdout") == "warned\n"


def test_a_later_end_is_warned_of_again(run, tmp_path: Path) -> None:
    script = "trap 'echo warned; touch warned' USR1\ntouch up\nwhile :; do sleep 0.01; done\n"
    attempt = run(script, walltime=600, warning=[int(signal.SIGUSR1), 60])
    kit.wait_until((tmp_path / "up").exists, "the script runs")
    for walltime in (60, 63):
        attempt.nodes[0].agent.send(
            op="alter", attempt=attempt.attempt, walltime=walltime, streams="", text=""
        )
        kit.wait_until((tmp_path / "warned").exists, f"a warning of {walltime} s")
        (tmp_path / "warned").unlink()
    attempt.end()
    attempt.ended()
    assert attempt.tail("stdout") == "warned\n" * 2


def test_the_log_says_who_ended_the_job(run, tmp_path: Path) -> None:
    attempt = run("touch up; exec sleep 600\n")
    kit.wait_until((tmp_path / "up").exists, "the script runs")
    attempt.nodes[0].agent.send(
        op="end", attempt=attempt.attempt, cause="DELETED", kill_delay=1, message="deleted by ann: too slow"
    )
    attempt.ended()
    assert attempt.tail("stderr").startswith("=>> hpcmesos: job killed: DELETED: deleted by ann: too slow\n")


_DAEMON = """
import os, signal, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1] + ".new", "w").write(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""


@pytest.mark.parametrize("environment", ["kept", "emptied"])
def test_daemons_are_gone_with_the_script(run, tmp_path: Path, environment: str) -> None:
    pid_file, program = tmp_path / "pid", tmp_path / "daemon.py"
    program.write_text(_DAEMON)
    clean = "env -i " if environment == "emptied" else ""
    python = f"{clean}/usr/bin/env python3"
    attempt = run(f"{python} {program} {pid_file}; until test -s {pid_file}; do sleep 0.01; done; exit 4\n")
    assert attempt.ended()["code"] == 4
    assert not kit.is_alive(int(pid_file.read_text()))


def test_usage(run) -> None:
    usage = run("i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done\n").ended()["usage"]
    assert usage["cput"] > 0.01
    assert usage["mem"] > 500_000
    assert usage["walltime"] > 0.01


def test_signal(run, tmp_path: Path) -> None:
    attempt = run("trap 'exit 21' USR1; touch up; while :; do sleep 0.01; done\n")
    kit.wait_until((tmp_path / "up").exists, "the script runs")
    attempt.nodes[0].agent.send(op="signal", attempt=attempt.attempt, signal=int(signal.SIGUSR1))
    assert attempt.ended()["code"] == 21


def test_a_port_that_somebody_has_is_named(node: kit.Node, tmp_path: Path) -> None:
    value = kit.spec([node], tmp_path, "true", attempt="905.hpcm#1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        value["members"][0]["ports"] = [port]
        node.agent.send(op="prepare", spec=value)
        refused = node.agent.wait("refused", "905.hpcm#1")
    assert refused["culprit"] == f"{node.member()['address']}:{port}"
    assert refused["reason"].startswith(f"port {port} of node1 cannot be had")
    node.agent.send(op="prepare", spec=value | {"attempt": "905.hpcm#2"})
    assert node.agent.wait("ready", "905.hpcm#2")
    node.agent.send(op="end", attempt="905.hpcm#2", cause="DELETED", kill_delay=0, message="")
    assert node.agent.wait("ended", "905.hpcm#2")
    for attempt in ("905.hpcm#1", "905.hpcm#2"):
        node.agent.send(op="forget", attempt=attempt)


def test_refusals_and_unknown(node: kit.Node, tmp_path: Path) -> None:
    value = kit.spec([node], tmp_path, "true", owner="nobody-at-all", attempt="900.hpcm#1")
    for _ in range(2):
        node.agent.send(op="prepare", spec=value)
    refused = node.agent.wait("refused", "900.hpcm#1")
    assert refused["culprit"] == "node1"
    assert "no user 'nobody-at-all'" in refused["reason"]
    node.agent.send(op="forget", attempt="900.hpcm#1")
    node.agent.send(op="end", attempt="901.hpcm#1", cause="DELETED", kill_delay=0, message="")
    assert node.agent.wait("unknown", "901.hpcm#1")
    node.agent.send(op="prepare", spec=value | {"attempt": "../evil", "owner": kit.ME})
    assert node.agent.wait("refused", "../evil")
    node.agent.send(op="forget", attempt="../evil")


def test_end_before_go(node: kit.Node, tmp_path: Path) -> None:
    node.agent.send(op="prepare", spec=kit.spec([node], tmp_path, "true", attempt="902.hpcm#1"))
    node.agent.wait("ready", "902.hpcm#1")
    node.agent.send(op="end", attempt="902.hpcm#1", cause="START_FAILED", kill_delay=5, message="no quorum")
    ended = node.agent.wait("ended", "902.hpcm#1")
    assert (ended["cause"], ended["code"], ended["message"]) == ("START_FAILED", None, "no quorum")
    node.agent.send(op="forget", attempt="902.hpcm#1")


def test_a_new_agent_hears_what_the_old_one_missed(run, tmp_path: Path, node: kit.Node) -> None:
    attempt = run("until test -e go; do sleep 0.01; done; exit 6\n")
    pid = attempt.started()["pid"]
    node.agent.close()
    (tmp_path / "go").touch()
    kit.wait_until(lambda: not kit.is_alive(pid), "the script ends without an agent")
    node.reconnect()
    assert attempt.ended()["code"] == 6
    summary = [a for a in node.reconnect().hello["attempts"] if a["attempt"] == attempt.attempt]
    assert [(a["phase"], a["head"]) for a in summary] == [("ended", True)]
    assert attempt.ended()["code"] == 6


@pytest.mark.parametrize("cgroups", [True, False])
def test_death_of_the_shepherd(tmp_path: Path, cgroups: bool) -> None:
    if cgroups and not kit.UNIFIED:
        pytest.skip("needs a writable cgroup v2 hierarchy")
    with kit.cluster(tmp_path, ["node1"], cgroups) as [node]:
        done = kit.Run([node], kit.spec([node], tmp_path, "exit 8\n", attempt="1.hpcm#1"))
        done.ended()
        lost = kit.Run([node], kit.spec([node], tmp_path, "echo begun; sleep 600\n", attempt="2.hpcm#1"))
        pid = lost.started()["pid"]
        kit.wait_until(lambda: (tmp_path / "out").read_text(), "the script writes")
        node.kill()
        node.start()
        assert done.ended()["code"] == 8
        ended = lost.ended()
        assert (ended["cause"], ended["code"], ended["culprit"]) == ("NODE_LOST", None, "node1")
        assert ended["message"] == "shepherd died"
        assert lost.tail("stdout") == "begun\n"
        kit.wait_until(lambda: not kit.is_alive(pid), "what it left is killed")
        for one in (done, lost):
            node.agent.send(op="forget", attempt=one.attempt)
        kit.wait_until(lambda: not Journal(str(node.state / "journal")).load(), "the journal is empty")


def test_only_one_shepherd_a_state(node: kit.Node) -> None:
    import subprocess
    import sys

    second = subprocess.run(
        [sys.executable, "-IS", str(kit.LAUNCH), "shepherd", str(node.state / "config.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 1
    assert "held by another shepherd" in second.stderr


def test_what_a_job_tells_of_its_ranks_can_be_read_by_all(run, node: kit.Node, tmp_path: Path) -> None:
    program = tmp_path / "liar.py"
    program.write_text(
        "import json, os, socket\n"
        "def tell(**message):\n"
        "    door = socket.socket(socket.AF_UNIX)\n"
        "    door.connect(os.environ['HPCMESOS_SOCKET'])\n"
        "    body = b'J' + json.dumps(message).encode()\n"
        "    door.sendall(len(body).to_bytes(4, 'big') + body)\n"
        "    door.recv(1000)\n"
        "for value in float('nan'), 10 ** 30, 'text', [1]:\n"
        "    tell(op='rank_end', step='0.1', rank=1, code=value, signal=None)\n"
        "    tell(op='rank_end', step='0.1', rank=value, code=1, signal=None)\n"
        "tell(op='step', command=['a', '\\udcff'])\n"
        "tell(op='rank_end', step='0.1', rank=5, code=4, signal=None)\n"
    )
    ended = run(f"{kit.sys.executable} {program}\n").ended()
    assert (ended["code"], ended["cause"]) == (0, "OK")
    assert [(rank["rank"], rank["code"]) for rank in ended["ranks"]] == [(5, 4)]
    assert [step["command"] for step in ended["steps"]] == [["a", "?"]]


def test_a_job_has_no_descriptor_of_another(run, tmp_path: Path) -> None:
    other = run("until test -e go; do sleep 0.01; done\n", stdout=str(tmp_path / "others"))
    other.started()
    mine = run("ls -l /proc/self/fd; ls -l /proc/$$/fd\n")
    assert mine.ended()["code"] == 0
    (tmp_path / "go").touch()
    assert "others" not in mine.tail("stdout")
    assert mine.tail("stdout").count(str(tmp_path / "out")) == 2


CONNECTIONS = """
import json, os, socket
def connect():
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(os.environ["HPCMESOS_SOCKET"])
    return connection
def ask(connection):
    body = b"J" + json.dumps({"op": "step", "command": ["x"]}).encode()
    connection.sendall(len(body).to_bytes(4, "big") + body)
    return json.loads(connection.recv(65536)[5:])
kept = []
while "step" in (answer := ask(connect_ := connect())):
    kept.append(connect_)
print(len(kept), answer["error"])
kept.pop().close()
while "step" not in ask(connect()):
    pass
print("again")
"""


def test_an_attempt_has_only_so_many_connections(run, node: kit.Node, tmp_path: Path) -> None:
    """A refusal says so; what other attempts have is not touched."""
    (tmp_path / "connections.py").write_text(CONNECTIONS)
    script = f"ulimit -n 1024; {sys.executable} connections.py\n"
    attempt = run(script)
    assert attempt.ended(timeout=60)["code"] == 0, attempt.tail("stderr")
    slots = attempt.spec["members"][0]["slots"]
    first, second = attempt.tail("stdout").splitlines()
    most = 256 + 8 * slots
    assert (
        first
        == f"{most} this job has {most} connections to the shepherd of {node.name}, the most that it may"
    )
    assert second == "again"
