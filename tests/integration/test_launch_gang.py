"""Two shepherds and one attempt: joining, the remote shell through TLS, the gang clock, reading logs."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcmesos.launch import protocol

from . import shepherd_kit as kit

RSH = '"$(dirname "$(command -v mpiexec)")/pbs_tmrsh"'


nodes = kit.both_ways(["node1", "node2"])
gang = kit.gang


def test_members_end_with_the_head(gang) -> None:
    attempt = gang(f"{RSH} -n node2 'sleep 600' & until {RSH} -n node2 'test -e up'; do :; done; exit 3\n")
    (Path(attempt.spec["workdir"]) / "up").touch()
    assert attempt.ended()["code"] == 3
    member = attempt.ended(1)
    assert (member["head"], member["code"], member["cause"]) == (False, None, "APP")


def test_exit_codes_quoting_and_environment(gang, tmp_path: Path) -> None:
    script = f"""
export WORD='a "b" $c;d'
{RSH} -n node2 'exit 7'; echo $?
{RSH} -n node2 'kill -9 $$'; echo $?
{RSH} -n -x -q -l somebody 127.0.9.2 'echo "$WORD|$HPCMESOS_NODE|$PBS_NODENUM|$PWD"'
{RSH} -n node2 echo one   two '"three   four"'
{RSH} -n node1 'echo here $HPCMESOS_NODE'
{RSH} -n node9 true; echo $?
echo from stdin | {RSH} node2 'cat; echo done >&2'
{RSH} -n node2 'exec sh -c "echo $TMPDIR"'
"""
    attempt = gang(script)
    assert attempt.ended()["code"] == 0
    lines = attempt.tail("stdout").splitlines()
    assert lines[:5] == ["7", "137", f'a "b" $c;d|node2|1|{tmp_path}', "one two three   four", "here node1"]
    assert lines[5:7] == ["255", "from stdin"]
    assert lines[7].endswith(f"node2/attempts/{attempt.attempt}/tmp")
    assert "node9 is no host of this job" in attempt.tail("stderr")
    assert attempt.tail("stderr").endswith("done\n")


def test_32_mib_both_ways(gang, tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 32
    (tmp_path / "data").write_bytes(data)
    attempt = gang(f"{RSH} node2 cat < data > copy\n")
    assert attempt.ended()["code"] == 0
    assert hashlib.sha256((tmp_path / "copy").read_bytes()).digest() == hashlib.sha256(data).digest()


def test_signals_reach_the_far_command(gang, tmp_path: Path) -> None:
    far = "trap 'exit 33' USR1; touch up; while :; do sleep 0.01; done"
    script = f'{RSH} -n node2 "{far}" & pid=$!\nuntil test -e up; do sleep 0.01; done; kill -USR1 $pid; wait $pid\n'
    assert gang(script).ended()["code"] == 33


def test_command_ends_when_its_caller_is_killed(gang, tmp_path: Path) -> None:
    script = (
        f"{RSH} -n node2 'echo $$ > pid; exec sleep 600' & sh=$!; until test -s pid; do sleep 0.01; done\n"
    )
    attempt = gang(script + "kill -9 $sh; until test -e stop; do sleep 0.01; done\n")
    kit.wait_until(
        lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the far command runs"
    )
    kit.wait_until(lambda: not kit.is_alive(int((tmp_path / "pid").read_text())), "the far command is ended")
    (tmp_path / "stop").touch()
    attempt.ended()


def test_end_reaches_the_members(gang, tmp_path: Path) -> None:
    attempt = gang(
        f"{RSH} -n node2 'trap \"touch term; exit\" TERM; touch up; while :; do sleep 0.01; done'\n"
    )
    kit.wait_until((tmp_path / "up").exists, "the far command runs")
    attempt.end(kill_delay=5)
    ended = attempt.ended()
    assert (ended["cause"], ended["forced"]) == ("DELETED", False)
    assert attempt.ended(1)["cause"] == "DELETED"
    assert (tmp_path / "term").exists()


def test_a_member_that_ends_takes_the_gang_along(gang) -> None:
    attempt = gang("sleep 600\n")
    attempt.started()
    attempt.nodes[1].agent.send(
        op="end", attempt=attempt.attempt, cause="GPU_LOST", kill_delay=0, message="GPU 3 fell off the bus"
    )
    ended = attempt.ended()
    assert (ended["cause"], ended["culprit"], ended["message"]) == (
        "GPU_LOST",
        "node2",
        "GPU 3 fell off the bus",
    )


def test_a_member_that_hears_of_the_end_first_is_not_to_blame(gang, tmp_path: Path) -> None:
    """And the head's script has the time that was ordered, not what is left for the end of a gang that lost a node."""
    attempt = gang("trap 'sleep 6; exit 0' TERM\ntouch up\nwhile :; do sleep 0.01; done\n")
    kit.wait_until((tmp_path / "up").exists, "its trap is set")
    attempt.nodes[1].agent.send(
        op="end", attempt=attempt.attempt, cause="PREEMPTED", kill_delay=30, message="at the wish of ann"
    )
    ended = attempt.ended()
    assert (ended["cause"], ended["culprit"], ended["message"], ended["forced"]) == (
        "PREEMPTED",
        None,
        "at the wish of ann",
        False,
    )


def test_strangers_get_nothing(nodes: list[kit.Node], gang, tmp_path: Path) -> None:
    attempt = gang("echo secret; until test -e stop; do sleep 0.01; done\n")
    attempt.started()
    for organization, request in (
        ("agent", {"op": "shell", "attempt": attempt.attempt, "command": "true"}),
        ("agent", {"op": "log", "attempt": attempt.attempt, "stream": "stdout"}),
        ("agent", {"op": "join", "attempt": attempt.attempt, "node": "node2"}),
    ):
        frames = list(_ask(nodes[0], organization, "stranger", request))
        assert frames[-1][0] == "J"
        assert "refused" in str(frames[-1][1])
        assert "secret" not in str(frames)
    (tmp_path / "stop").touch()


def test_log_is_followed_until_the_end(nodes: list[kit.Node], gang, tmp_path: Path) -> None:
    attempt = gang("echo one; until test -e stop; do sleep 0.01; done; echo two\n")
    kit.wait_until(lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_text(), "the first line")
    request = {"op": "log", "attempt": attempt.attempt, "stream": "stdout", "offset": 1}
    assert list(_ask(nodes[0], "master", "m1", request)) == [("O", b"ne\n"), ("J", {"end": False})]
    frames = _ask(nodes[0], "master", "m1", request | {"follow": True})
    assert next(frames) == ("O", b"ne\n")
    (tmp_path / "stop").touch()
    assert next(frames) == ("O", b"two\n")
    assert next(frames) == ("J", {"end": True})


def _ask(
    node: kit.Node, organization: str, name: str, request: dict[str, object]
) -> Iterator[tuple[str, object]]:
    tls = node.authority.issue(organization, name)
    context = ssl.create_default_context(cafile=tls["ca"])
    context.check_hostname = False
    context.load_cert_chain(tls["certificate"], tls["key"])
    address = (node.address, node.agent.hello["peer_port"])
    with context.wrap_socket(socket.create_connection(address, timeout=10)) as connection:
        connection.sendall(protocol.message(request))
        parser = protocol.Parser()
        while data := connection.recv(65536):
            for kind, body in parser.feed(data):
                yield kind.decode(), protocol.decode(body) if kind == protocol.MESSAGE else body


def test_an_unreachable_head_is_the_culprit(nodes: list[kit.Node], tmp_path: Path) -> None:
    value = kit.spec(nodes, tmp_path, "true\n", attempt="990.hpcm#1", prepare_timeout=3.0, me=1)
    with socket.socket() as closed:
        closed.bind(("127.0.9.1", 0))
        value["members"][0]["peer_port"] = closed.getsockname()[1]
        nodes[1].agent.send(op="prepare", spec=value)
        refused = nodes[1].agent.wait("refused", "990.hpcm#1")
    assert refused["culprit"] == "node1"
    assert "cannot reach node1" in refused["reason"]
    assert not (nodes[1].state / "attempts" / "990.hpcm#1").exists()


@pytest.mark.parametrize("victim", [0, 1])
def test_silence_ends_both_sides(tmp_path: Path, victim: int) -> None:
    with kit.cluster(tmp_path, ["node1", "node2"], bool(kit.UNIFIED), **kit.CLOCK) as nodes:
        attempt = kit.Run(nodes, kit.spec(nodes, tmp_path, "sleep 600\n"))
        attempt.started()
        os.kill(nodes[victim].process.pid, signal.SIGSTOP)
        try:
            ended = attempt.ended(1 - victim)
            assert (ended["cause"], ended["culprit"]) == ("NODE_LOST", nodes[victim].name)
            assert "silent" in ended["message"]
        finally:
            os.kill(nodes[victim].process.pid, signal.SIGCONT)
        assert attempt.ended(victim)["cause"] == "NODE_LOST"


@pytest.mark.parametrize("code", [0, 255])
def test_the_clock_has_the_last_word_on_a_script_that_lost_a_member(tmp_path: Path, code: int) -> None:
    """Launchers return one or the other for a lost host; what they lost tells the shepherd."""
    with kit.cluster(tmp_path, ["node1", "node2"], bool(kit.UNIFIED), **kit.CLOCK) as nodes:
        far = nodes[1].address
        script = f"sh -c \"pbs_tmrsh {far} 'touch up; sleep 600'; true\"\n"  # whose parent it ends
        attempt = kit.Run(nodes, kit.spec(nodes, tmp_path, f"{script}exit {code}\n"))
        kit.wait_until((tmp_path / "up").exists, "the command on the other node")
        nodes[1].kill()
        ended = attempt.ended()
        assert (ended["cause"], ended["culprit"], ended["code"]) == ("NODE_LOST", "node2", code)
        nodes[1].start()
        attempt.ended(1)


def test_death_of_a_members_shepherd(tmp_path: Path) -> None:
    with kit.cluster(tmp_path, ["node1", "node2"], bool(kit.UNIFIED), **kit.CLOCK) as nodes:
        attempt = kit.Run(nodes, kit.spec(nodes, tmp_path, "sleep 600\n"))
        attempt.started()
        nodes[1].kill()
        ended = attempt.ended()
        assert (ended["cause"], ended["culprit"]) == ("NODE_LOST", "node2")
        nodes[1].start()
        assert attempt.ended(1)["message"] == "shepherd died"


def test_a_member_that_has_refused_stays_out(tmp_path: Path) -> None:
    """Its head comes too late for it, and must not find it ready, nor end what was never begun."""
    with kit.cluster(tmp_path, ["node1", "node2"], bool(kit.UNIFIED)) as nodes:
        late = kit.spec(nodes, tmp_path, "true\n", attempt="7.hpcm#1", prepare_timeout=0.3)
        nodes[1].agent.send(op="prepare", spec=late | {"me": 1})
        nodes[1].agent.wait("refused", "7.hpcm#1")
        nodes[0].agent.send(op="prepare", spec=late)
        nodes[0].agent.wait("ready", "7.hpcm#1")
        nodes[0].agent.send(op="end", attempt="7.hpcm#1", cause="START_FAILED", kill_delay=0.0, message="")
        nodes[0].agent.wait("ended", "7.hpcm#1")
        for number in range(8, 11):  # time in which a member that tries again would have joined
            run = kit.Run(nodes, kit.spec(nodes, tmp_path, "true\n", attempt=f"{number}.hpcm#1"))
            assert run.ended()["code"] == 0
            assert run.ended(1)["cause"] == "OK"
        events = [event["event"] for event in nodes[1].agent.events if event.get("attempt") == "7.hpcm#1"]
        assert events == ["refused"]
        assert nodes[1].log() == ""


def test_a_script_whose_member_is_lost_does_not_end_with_a_code_of_its_own(tmp_path: Path) -> None:
    with kit.cluster(tmp_path, ["node1", "node2"], bool(kit.UNIFIED), **kit.CLOCK) as nodes:
        script = f"{RSH} -n node2 'touch up; sleep 600'; exit 9\n"
        attempt = kit.Run(nodes, kit.spec(nodes, tmp_path, script))
        attempt.started()
        kit.wait_until((tmp_path / "up").exists, "the command on node2")
        nodes[1].kill()
        ended = attempt.ended()
        assert (ended["cause"], ended["culprit"]) == ("NODE_LOST", "node2")
        nodes[1].start()
        assert attempt.ended(1)["cause"] == "NODE_LOST"


def test_a_script_that_ends_while_its_member_is_only_late_keeps_its_code(tmp_path: Path) -> None:
    with kit.cluster(
        tmp_path, ["node1", "node2"], bool(kit.UNIFIED), gang_silence=8.0, gang_ping=0.1
    ) as nodes:
        attempt = kit.Run(nodes, kit.spec(nodes, tmp_path, "until [ -e go ]; do sleep 0.05; done; exit 9\n"))
        attempt.started()
        os.kill(nodes[1].process.pid, signal.SIGSTOP)
        try:
            (tmp_path / "go").touch()
            with pytest.raises(AssertionError):
                attempt.ended(timeout=1.5)  # it is not known yet whether node2 is lost
        finally:
            os.kill(nodes[1].process.pid, signal.SIGCONT)
        ended = attempt.ended(timeout=10)
        assert (ended["cause"], ended["code"]) == ("APP", 9)
        attempt.ended(1)


def test_a_shepherd_comes_back_on_its_fixed_port(tmp_path: Path) -> None:
    """Though the script it started lives, and its connections from before are not forgotten yet."""
    with socket.create_server(("127.0.9.1", 0)) as free:
        port = free.getsockname()[1]
    with kit.cluster(tmp_path, ["node1", "node2"], bool(kit.UNIFIED), peer_port=port, **kit.CLOCK) as nodes:
        script = f"{RSH} -n node2 'touch up; sleep 600'\n"
        attempt = kit.Run(nodes, kit.spec(nodes, tmp_path, script))
        kit.wait_until((tmp_path / "up").exists, "the command on node2")
        nodes[0].kill()
        nodes[0].start()
        assert nodes[0].agent.hello["peer_port"] == port
        assert attempt.ended(0)["message"] == "shepherd died"
        assert attempt.ended(1)["cause"] == "NODE_LOST"
        again = kit.Run(
            nodes, kit.spec(nodes, tmp_path, f"{RSH} -n node2 true; exit 6\n", attempt="13.hpcm#1")
        )
        assert again.ended()["code"] == 6
        assert again.ended(1)["cause"] == "APP"
