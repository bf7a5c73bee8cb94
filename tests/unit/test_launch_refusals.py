"""Who is refused by the shepherd hears why, even when the shepherd had hung up before the question was sent."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator

import pytest

from hpcmesos.launch import protocol, remote_shell, ring_rank, run, shells
from hpcmesos.launch.settings import Refusal

REASON = "this process belongs to no job on this node"


@pytest.fixture
def hung_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A shepherd that has refused and hung up as soon as somebody connected."""
    ours, its = socket.socketpair()
    its.sendall(protocol.message(shells.answer(error=REASON)))
    its.close()
    monkeypatch.setenv("HPCMESOS_SOCKET", "/nowhere")
    monkeypatch.setenv("HPCMESOS_SHEPHERD", str(os.getppid()))  # a remote shell that is lost ends its parent
    monkeypatch.setattr(protocol, "connect", lambda path: ours)
    with ours:
        yield


@pytest.mark.usefixtures("hung_up")
def test_the_remote_shell_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    assert remote_shell.main(["-n", "node1", "id"]) == 255
    assert capfd.readouterr().err == f"pbs_tmrsh: node1: {REASON}\n"


@pytest.mark.usefixtures("hung_up")
def test_a_direct_launch_says_why() -> None:
    with pytest.raises(run.Refused, match=REASON):
        run.begin(["true"])


def test_a_refusal_names_the_file_that_is_not_there() -> None:
    missing = FileNotFoundError(2, "No such file or directory", "/sys/fs/cgroup/attempts")
    assert str(Refusal.of(missing)) == "cannot prepare: /sys/fs/cgroup/attempts: No such file or directory"
    assert str(Refusal.of(KeyError("owner"))) == "cannot prepare: KeyError('owner')"
    why = Refusal("no such user", "node2")
    assert Refusal.of(why) is why


def test_a_rank_of_the_ring_knocks_at_its_right_neighbours_host(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        doors = ["127.0.0.1:1", "127.0.0.1:1", f"127.0.0.1:{other.getsockname()[1]}"]
        ring_rank.knock(0, doors)  # of the same host: it is not asked
        ring_rank.knock(1, doors)
        assert capfd.readouterr().out == ""
    ring_rank.knock(2, doors)
    assert json.loads(capfd.readouterr().out) == {"stage": "init", "cut": "Connection refused"}
