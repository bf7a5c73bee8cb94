"""TLS: bearer tokens, one-time join tokens, certificates."""

from __future__ import annotations

import ssl
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from hpcmesos.errors import InvalidValue, MasterUnreachable, RootRefused, Unauthenticated, Unauthorized
from hpcmesos.master import peers, pki

if TYPE_CHECKING:
    from pathlib import Path

    from .api_kit import Api

pytest_plugins = ["tests.integration.database_kit", "tests.integration.api_kit"]


@pytest.fixture(scope="module")
def api_settings() -> dict[str, object]:
    import os
    import pwd

    return {"managers": (pwd.getpwuid(os.getuid()).pw_name,), "root_jobs": False}


def test_a_token_names_its_user(api: Api) -> None:
    with api.client() as manager:
        token = manager.create_token("user", user="ann").token
    with api.client(token) as ann:
        reply = ann.command("qsub", [], script=b"true\n", environ={})
        assert ann.job(reply.stdout.strip()).owner == "ann"
        own = ann.create_token("user")
        with pytest.raises(Unauthorized):
            ann.create_token("user", user="bob")
        with pytest.raises(Unauthorized):
            ann.create_token("join")
    with api.client(own.token) as again:
        assert again.job(reply.stdout.strip()).owner == "ann"


@pytest.mark.parametrize("token", ["wrong", "", "\u20ac".encode().decode("latin-1")])
def test_a_wrong_token_is_refused_in_one_line(api: Api, token: str) -> None:
    before = api.counts()
    with api.client(token) as client, pytest.raises(Unauthenticated) as refused:
        client.command("qsub", [], script=b"true\n", environ={})
    assert len(str(refused.value).splitlines()) == 1
    assert api.counts() == before


def test_the_command_line_says_a_wrong_token_in_one_line(api: Api, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("wrong\n")
    environ = {
        "PATH": "/usr/bin:/bin",
        "HPCMESOS_URL": api.url,
        "HPCMESOS_TOKEN_FILE": str(token),
        "HPCMESOS_CA_FILE": str(api.ca),
    }
    done = subprocess.run(
        [sys.executable, "-m", "hpcmesos.cli", "qstat"],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (159, "", 1), done.stderr
    assert done.stderr.startswith("qstat: ")


def test_no_credential_and_a_foreign_server_are_told_apart(api: Api, tmp_path: Path) -> None:
    from hpcmesos.client import Client

    with Client(url=api.url, ca=api.ca) as client, pytest.raises(Unauthenticated, match="no credential"):
        client.jobs()
    other = pki.ensure_ca(tmp_path)
    with (
        Client(url=api.url, token="x", ca=other.path) as client,
        pytest.raises(Unauthenticated, match="cluster"),
    ):
        client.jobs()
    with (
        Client(socket=tmp_path / "none", patience=0.1) as client,
        pytest.raises(MasterUnreachable, match="cannot connect to server"),
    ):
        client.jobs()


def test_a_node_is_no_server(tmp_path: Path) -> None:
    """Every node has a certificate of the cluster's authority; none may collect the tokens of users."""
    import socket
    import threading

    from hpcmesos.client import Client

    ca = pki.ensure_ca(tmp_path)
    certificate, key = pki.ensure_certificate(ca, tmp_path / "node", "node7", "agent", ["127.0.0.1"])
    context = peers.server_context(certificate, key, ca.path, require_client=False)
    heard: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as plain, context.wrap_socket(plain, server_side=True) as tls:
            heard.append(tls.recv(1000))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with (
            Client(url=url, token="secret", ca=ca.path, patience=0.0) as client,
            pytest.raises(Unauthenticated, match="not a master's"),
        ):
            client.jobs()
        thread.join()
    assert heard == [b""]


def test_root_has_no_jobs_here(api: Api) -> None:
    with api.client(api.token_of("root")) as root, pytest.raises(RootRefused):
        root.command("qsub", [], script=b"true\n", environ={})


def test_an_agent_joins_once(api: Api) -> None:
    from hpcmesos.client import Client

    with api.client() as manager:
        token = manager.create_token("join", node="node7").token
    assert token.partition(".")[0] == pki.fingerprint(pki.ensure_ca(api.state))
    key, csr = pki.create_csr("node7", ["127.0.0.7"])
    with Client(url=api.url) as agent:
        with pytest.raises(InvalidValue):
            agent.join(token, "node7", "no request")
        with pytest.raises(InvalidValue, match="node7"):
            agent.join(token, "node8", csr)
        with pytest.raises(InvalidValue):
            agent.join(token, "node 7\n", csr)
        joined = agent.join(token, "node7", csr)
        with pytest.raises(Unauthenticated):
            agent.join(token, "node7", csr)
        with pytest.raises(Unauthenticated, match="not of the cluster"):
            agent.join(f"{'0' * 64}.x", "node7", csr)
    certificate = x509.load_pem_x509_certificate(joined.certificate.encode())
    assert pki.common_name_of(certificate.subject) == "node7"
    assert joined.ca == api.ca.read_text()
    context = peers.client_context(api.ca)
    certificate_file, key_file = api.work / "node7.pem", api.work / "node7.key"
    certificate_file.write_text(joined.certificate)
    key_file.write_text(key)
    context.load_cert_chain(certificate_file, key_file)
    _as_agent(api, context)


def _as_agent(api: Api, context: ssl.SSLContext) -> None:
    """With its certificate an agent may look, but not submit."""
    import http.client
    import json

    port = int(api.url.rpartition(":")[2])
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context)
    connection.request("GET", "/v1/leader")
    assert json.loads(connection.getresponse().read())["address"] == "127.0.0.1:1"
    body = json.dumps({"argv": [], "script": "dHJ1ZQo="})
    connection.request("POST", "/v1/commands/qsub", body)
    refused = connection.getresponse()
    assert (refused.status, json.loads(refused.read())["code"]) == (403, "unauthorized")
    connection.close()


def enrolled(api: Api, node: str) -> tuple[Path, Path]:
    """Certificate and key of a node that has joined."""
    from hpcmesos.client import Client

    with api.client() as manager:
        token = manager.create_token("join", node=node).token
    key, csr = pki.create_csr(node, ["127.0.0.9"])
    with Client(url=api.url) as agent:
        joined = agent.join(token, node, csr)
    certificate_file, key_file = api.work / f"{node}.pem", api.work / f"{node}.key"
    certificate_file.write_text(joined.certificate)
    key_file.write_text(key)
    return certificate_file, key_file


def test_a_node_renews_its_own_certificate_until_it_is_revoked(api: Api) -> None:
    from hpcmesos.agent import api as agent_api

    mine, other = enrolled(api, "node11"), enrolled(api, "node12")

    def renew(files: tuple[Path, Path], node: str) -> x509.Certificate:
        _, csr = pki.create_csr(node, ["127.0.0.9"])
        context = peers.client_context(api.ca, *files)
        body = {"csr": csr, "node": node}
        answer = agent_api.call(api.url, "POST", "/v1/certificates/renew", body, context)
        return x509.load_pem_x509_certificate(answer["certificate"].encode())

    renewed = renew(mine, "node11")
    assert pki.common_name_of(renewed.subject) == "node11"
    with pytest.raises(InvalidValue, match="node12"):
        renew(mine, "node12")
    with pytest.raises(Unauthorized), api.client(api.token_of("ann")) as ann:
        ann._call("POST", "/v1/certificates/renew", dict, {"csr": "x", "node": "node11"})
    with api.client(api.token_of("ann")) as ann:
        for forbidden in (ann.certificates, lambda: ann.revoke_certificates("node11")):
            with pytest.raises(Unauthorized):
                forbidden()
    with api.client() as manager:
        assert [one.node for one in manager.certificates()].count("node11") == 2
        assert all(one.revoked_at for one in manager.revoke_certificates("node11"))
        with pytest.raises(InvalidValue):
            manager.revoke_certificates("node11")
        assert [change.action for change in manager.audit()].count("certificate revoked") == 1
    with pytest.raises(Unauthenticated, match="revoked"):
        renew(mine, "node11")
    renew(other, "node12")
    renew(enrolled(api, "node11"), "node11")
