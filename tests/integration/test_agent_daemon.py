"""The agent as a process, between a scripted leader and a scripted shepherd: joining, links, and what it passes on."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import socket
import time
from pathlib import Path

import msgspec
import pytest

from hpcmesos import wire
from hpcmesos.launch.clock import boottime
from hpcmesos.master import pki

from . import daemon_kit as kit
from .daemon_kit import LIMIT, Leader, Node, ScriptedShepherd, connected, ended, spec
from .shepherd_kit import wait_until

directory = kit.directory
leader = kit.leader
node = kit.node
shepherd = kit.shepherd


def test_the_dead_man_timer_is_wound_with_what_the_leader_has_heard(
    node: Node, leader: Leader, shepherd: ScriptedShepherd
) -> None:
    began = boottime()
    shepherd.hello |= {"journal": "journal1", "operations": ["hello", "prepare", "end", "contact"]}
    assert connected(node, leader, shepherd).journal == "journal1"
    sent = []
    for nonce, heard in ((1, 0), (2, 0), (3, 2)):
        leader.say(wire.Ping(nonce=nonce, heard=heard))
        assert leader.expect(wire.Pong).nonce == nonce
        sent.append(boottime())
    leader.say(wire.End(attempt="7.hpcm#1", cause="DELETED", kill_delay=0.0))
    leader.expect(wire.Ended)
    leader.say(wire.Prepare(attempt="8.hpcm#1", spec=spec("8.hpcm#1", ())))
    assert shepherd.expect()["op"] == "prepare"  # by then all that came before it is here
    hello, second = shepherd.contacts
    assert began <= hello <= sent[0]
    assert sent[0] <= second <= sent[1]


def test_a_shepherd_of_the_release_before_is_asked_nothing_that_it_does_not_know(
    node: Node, leader: Leader, shepherd: ScriptedShepherd
) -> None:
    connected(node, leader, shepherd)
    for nonce in (1, 2, 3):
        leader.say(wire.Ping(nonce=nonce, heard=nonce - 1))
        leader.expect(wire.Pong)
    leader.say(wire.Prepare(attempt="8.hpcm#1", spec=spec("8.hpcm#1", ())))
    assert shepherd.expect()["op"] == "prepare"
    assert shepherd.contacts == []


def test_joins_says_hello_and_relays_an_attempt(
    node: Node, leader: Leader, shepherd: ScriptedShepherd
) -> None:
    hello = connected(node, leader, shepherd)
    assert (hello.node, hello.peer_port, hello.inventory.cpus, hello.inventory.declared) == (
        "node1",
        4711,
        4,
        True,
    )
    gpus = tuple(g.uuid for g in hello.inventory.gpus)
    assert len(gpus) == 2 and all(u.startswith("SIM-") for u in gpus)
    sent = spec("7.hpcm#1", gpus)
    leader.say(wire.Prepare(attempt="7.hpcm#1", spec=sent))
    assert shepherd.expect() == {"op": "prepare", "spec": sent}
    shepherd.say(event="ready", attempt="7.hpcm#1")
    assert leader.expect(wire.Ready).attempt == "7.hpcm#1"
    leader.say(wire.Go(attempt="7.hpcm#1"))
    assert shepherd.expect() == {"op": "go", "attempt": "7.hpcm#1"}
    shepherd.say(
        event="started", attempt="7.hpcm#1", pid=99, started_at=2.0, stdout_path="/o", stderr_path="/e"
    )
    assert leader.expect(wire.Started).pid == 99
    shepherd.say(**ended("7.hpcm#1", stdout_tail=base64.b64encode(b"\0hello").decode(), usage={"cput": 0.5}))
    report = leader.expect(wire.Ended)
    assert (report.code, report.stdout_tail, report.usage) == (0, b"\0hello", {"cput": 0.5})
    leader.say(wire.Acknowledged(attempt="7.hpcm#1"))
    assert shepherd.expect() == {"op": "forget", "attempt": "7.hpcm#1"}


def test_gpus_of_a_live_attempt_are_refused_to_another(
    node: Node, leader: Leader, shepherd: ScriptedShepherd
) -> None:
    gpus = tuple(g.uuid for g in connected(node, leader, shepherd).inventory.gpus)
    leader.say(wire.Prepare(attempt="7.hpcm#1", spec=spec("7.hpcm#1", gpus)))
    leader.say(wire.Prepare(attempt="8.hpcm#1", spec=spec("8.hpcm#1", gpus[1:])))
    refused = leader.expect(wire.Refused)
    assert refused.attempt == "8.hpcm#1" and refused.culprit == "node1"
    assert f"GPU 1 ({gpus[1]}) is allocated by 7.hpcm#1" in refused.reason


def test_end_is_repeated_on_every_new_link_until_acknowledged(
    node: Node, leader: Leader, shepherd: ScriptedShepherd
) -> None:
    connected(node, leader, shepherd)
    leader.say(wire.Prepare(attempt="7.hpcm#1", spec=spec("7.hpcm#1")))
    shepherd.expect()
    leader.part()
    shepherd.say(**ended("7.hpcm#1", code=3, cause="APP"))
    leader.expect(wire.Hello)
    assert leader.expect(wire.Ended).code == 3
    leader.part()
    hello = leader.expect(wire.Hello)
    assert [(a.attempt, a.phase) for a in hello.attempts] == [("7.hpcm#1", "ended")]
    assert leader.expect(wire.Ended).code == 3
    leader.say(wire.Acknowledged(attempt="7.hpcm#1"))
    assert shepherd.expect() == {"op": "forget", "attempt": "7.hpcm#1"}


def test_an_old_leader_is_refused_also_after_a_restart(
    node: Node, leader: Leader, shepherd: ScriptedShepherd
) -> None:
    connected(node, leader, shepherd)
    wait_until((node.settings.state / "term").exists, "the term on disk")
    assert node.stop() == 0
    leader.welcome = wire.Welcome(protocol=wire.PROTOCOL, cluster="c", timeline=1, term=4)
    node.start()
    shepherd.accept()
    assert leader.expect(wire.Hello).seen_term == 5
    wait_until(lambda: "an old leader: timeline 1 term 4" in node.output(), "the refusal in the log")


def test_what_cannot_be_written_down_now_is_written_later(
    node: Node, leader: Leader, shepherd: ScriptedShepherd
) -> None:
    """As on a full disk: the agent serves on, with one link, and the next one knows all the same."""
    node.settings.state.mkdir(exist_ok=True)
    obstacles = [node.settings.state / name for name in (".term.new", "gpu-faults.new")]
    for obstacle in obstacles:
        obstacle.mkdir()
    gpu = connected(node, leader, shepherd).inventory.gpus[0].uuid
    leader.say(wire.SetGpu(uuid=gpu, fault="fan"))
    assert leader.expect(wire.GpuReport).gpus[0].note == "fan"
    leader.say(wire.Prepare(attempt="8.hpcm#1", spec=spec("8.hpcm#1", ())))
    assert shepherd.expect()["op"] == "prepare"
    assert "link 2" not in node.output()
    for obstacle in obstacles:
        obstacle.rmdir()
    wait_until((node.settings.state / "term").exists, "the term on disk", timeout=10)
    wait_until((node.settings.state / "gpu-faults.json").exists, "the fault on disk", timeout=10)
    assert node.stop() == 0
    node.start()
    shepherd.accept()
    hello = leader.expect(wire.Hello)
    assert hello.seen_term == 5
    assert next(one for one in hello.inventory.gpus if one.uuid == gpu).state == "quarantined"


def test_a_silent_leader_is_left_as_soon_as_another_one_leads(
    node: Node, leader: Leader, shepherd: ScriptedShepherd
) -> None:
    leader.welcome = msgspec.structs.replace(leader.welcome, ping_interval=0.2)
    connected(node, leader, shepherd)
    leader.latest = 6
    leader.expect(wire.Hello)
    assert "term 5 is silent, 6 has begun" in node.output(), "not given up as dead, as a link is after 5 s"


def test_a_master_that_hangs_does_not_keep_the_agent_from_the_next_leader(
    node: Node, leader: Leader, shepherd: ScriptedShepherd, directory: Path
) -> None:
    hung = [directory / "hung1.sock", directory / "hung2.sock"]
    masters = ",".join([*(f"unix:{path}" for path in hung), node.settings.master])
    node.settings = dataclasses.replace(node.settings, master=masters)
    connected(node, leader, shepherd)
    with contextlib.ExitStack() as stack:
        for path in hung:
            listening = stack.enter_context(socket.socket(socket.AF_UNIX))
            listening.bind(str(path))
            listening.listen()
        leader.unsure = 2
        began = time.monotonic()
        leader.part()
        leader.expect(wire.Hello)
        assert time.monotonic() - began < 8.0, "two masters that do not answer are given 5 s each"


def test_an_end_says_how_long_ago_it_was(node: Node, leader: Leader, shepherd: ScriptedShepherd) -> None:
    connected(node, leader, shepherd)
    leader.say(wire.Prepare(attempt="7.hpcm#1", spec=spec("7.hpcm#1")))
    shepherd.expect()
    shepherd.say(**ended("7.hpcm#1", ended_boot=boottime() - 100.0))
    assert 100.0 <= leader.expect(wire.Ended).ago < 100.0 + LIMIT


def test_a_second_agent_for_the_same_state_is_refused(
    node: Node, leader: Leader, shepherd: ScriptedShepherd
) -> None:
    connected(node, leader, shepherd)
    second = Node(node.log.parent, leader)
    second.log = node.log.with_name("second.log")
    assert node.process
    second.start()
    assert second.process and second.process.wait(LIMIT) == 1
    pid = node.process.pid
    assert second.output().splitlines()[-1] == (
        f"hpcmesos agent: an agent already runs for {node.settings.state} (pid {pid})"
    )


def test_a_wrong_token_ends_the_agent_in_one_line(node: Node, leader: Leader) -> None:
    assert node.settings.join_token_file
    node.settings.join_token_file.write_text("0" * 64 + ".x")
    node.start()
    assert node.process and node.process.wait(LIMIT) == 2
    assert "hpcmesos agent: cannot join the cluster: the join token is not valid" in node.output()


def test_joins_over_https_only_where_the_fingerprint_agrees(
    directory: Path, leader: Leader, request: pytest.FixtureRequest
) -> None:
    node = Node(directory, leader, master=leader.url)
    shepherd = ScriptedShepherd(node.settings)
    try:
        assert node.settings.join_token_file
        node.settings.join_token_file.write_text("0" * 64 + "." + leader.secret)
        node.start()
        assert node.process and node.process.wait(LIMIT) == 2
        assert "is not of the cluster that the join token is for" in node.output()
        node.settings.join_token_file.write_text(leader.token)
        assert connected(node, leader, shepherd).node == "node1"
    finally:
        node.stop()
        shepherd.close()


def test_a_leader_without_a_masters_certificate_gets_no_hello(
    node: Node, leader: Leader, shepherd: ScriptedShepherd
) -> None:
    certificate, key = pki.ensure_certificate(
        leader.ca, node.log.parent / "x", "node9", "agent", ["127.0.0.1"]
    )
    leader.tls.load_cert_chain(certificate, key)
    node.start()
    shepherd.accept()
    wait_until(lambda: "is no master" in node.output(), "the refusal in the log")
    assert not any(isinstance(m, wire.Hello) for m in list(leader.received.queue))
