"""Attacks on a node by other nodes, at its shepherd's door."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Any

import pytest

from hpcmesos.launch import protocol
from tests.integration import shepherd_kit as kit
from tests.security.cases import Case, Switch, Told, Try, check
from tests.security.node_stage import OWNER, NodeStage, without


def asks(organization: str, name: str, request: dict[str, Any], foreign: bool = False) -> Try[NodeStage]:
    """A peer asks something of a gang on node1 and node2."""

    def run(stage: NodeStage) -> Told:
        with stage.nodes(2) as nodes:
            script = f"echo inside; until test -e {stage.home}/stop; do sleep 0.02; done\n"
            value = kit.spec(nodes, stage.home, script, owner=OWNER)
            gang = kit.Run(nodes, value)
            gang.started()
            kit.wait_until(lambda: (stage.home / "out").read_text(), "the first line")
            authority = kit.Authority(stage.root / "private") if foreign else nodes[0].authority
            said = _ask(nodes[0], authority.issue(organization, name), {**request, "attempt": gang.attempt})
            for made in (stage.root / "private").glob("*.[pk]e[my]"):
                made.unlink()
            (stage.home / "stop").touch()
            gang.ended()
            return Told(b"inside" in said or b"joined" in said, "refused" if said else "")

    return run


LAST = (b'"exit"', b'"joined"', b'"refused"', b'"end"')
"""Words with which a shepherd ends its answer."""


def _ask(node: kit.Node, tls: dict[str, str], request: dict[str, Any]) -> bytes:
    context = ssl.create_default_context(cafile=node.authority.ca)
    context.check_hostname = False
    context.load_cert_chain(tls["certificate"], tls["key"])
    said = b""
    with (
        contextlib.suppress(OSError),
        socket.create_connection((node.address, node.agent.hello["peer_port"]), timeout=10) as plain,
        context.wrap_socket(plain) as connection,
    ):
        connection.sendall(protocol.message(request))
        while not any(word in said for word in LAST) and (data := connection.recv(65536)):
            said += data
    return said


SHELL = {"op": "shell", "command": "echo inside"}
LOG = {"op": "log", "stream": "stdout"}


def taken_for(organization: str, name: str, when: str, before: str = "") -> Switch:
    """Who asks for ``when`` (of ``request`` and ``identity``) is taken for the holder of that certificate."""
    return without(
        f"{before}\nfrom hpcmesos.launch import peers, shepherd\n"
        "real = shepherd.Shepherd._answer_peer\n"
        f"forged = peers.Identity(({organization!r}, {name!r}))\n"
        "shepherd.Shepherd._answer_peer = lambda self, channel, identity, request: real("
        f"self, channel, forged if {when} else identity, request)"
    )


NO_CERTIFICATES = """
import ssl
from hpcmesos.launch import peers
strict = peers.Peers._contexts
def lax(self):
    server, client = strict(self)
    server.verify_mode = ssl.CERT_NONE
    return server, client
peers.Peers._contexts = lax
"""

PEERS = [
    Case(
        "a shell by a node without a part",
        asks("agent", "node3", SHELL),
        asks("agent", "node2", SHELL),
        without("from hpcmesos.launch import shepherd; shepherd._is_member = lambda attempt, node: True"),
    ),
    Case(
        "a shell by a master",
        asks("master", "m1", SHELL),
        asks("agent", "node2", SHELL),
        taken_for("agent", "node2", "request['op'] == 'shell'"),
    ),
    Case(
        "a log by a node",
        asks("agent", "node2", LOG),
        asks("master", "m1", LOG),
        taken_for("master", "m1", "request['op'] == 'log'"),
    ),
    Case(
        "a join under another node's name",
        asks("agent", "node3", {"op": "join", "node": "node2"}),
        asks("agent", "node2", {"op": "join", "node": "node2"}),
        taken_for("agent", "node2", "identity == ('agent', 'node3')"),
    ),
    Case(
        "a shell with a certificate of another authority",
        asks("agent", "node2", SHELL, foreign=True),
        asks("agent", "node2", SHELL),
        taken_for("agent", "node2", "identity == ('', '')", NO_CERTIFICATES),
        silent=True,
    ),
]


@pytest.mark.parametrize("case", PEERS, ids=lambda case: case.name)
def test_peer(case: Case[NodeStage], node: NodeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, node, monkeypatch)
