"""The certificate authority is replaced under a flow of jobs: nothing is restarted, and no job is lost."""

from __future__ import annotations

import datetime
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from hpcmesos.client import Client
from hpcmesos.master import peers, pki
from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.e2e.conftest import running
from tests.e2e.test_masters import Submitting

pytestmark = pytest.mark.full
LONG = "#!/bin/sh\nuntil [ -e go ]; do sleep 0.1; done\nmpiexec -n 2 sh -c 'echo $HPCMESOS_NODE'\n"
TWO = "#!/bin/sh\nmpiexec -n 2 sh -c 'echo $HPCMESOS_NODE'\n"
PATIENCE = 240.0  # s; each step takes as long as all need to read what is new


@pytest.fixture(scope="module")
def pair() -> Iterator[LiveCluster]:
    with running(LiveCluster(agents=2, gpus=2, extra=("--masters", "2"))) as cluster:
        yield cluster


@pytest.fixture
def own(pair: LiveCluster) -> LiveCluster:
    """The same for all tests: each leaves it with one authority."""
    pair.new_work()
    return pair


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def intermediate(place: Path) -> list[str]:
    """The site's own: below its root."""
    made: list[tuple[x509.Certificate, rsa.RSAPrivateKey]] = []
    for name in ("site root", "site hpcmesos"):
        key = rsa.generate_private_key(65537, 2048)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer, signer = (made[-1][0].subject, made[-1][1]) if made else (subject, key)
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1000))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(signer, hashes.SHA256())
        )
        made.append((certificate, key))
    certificate, key = made[-1]
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (place / "site.pem").write_text(pki.to_pem(certificate))
    (place / "site.key").write_bytes(pem)
    return ["--certificate", str(place / "site.pem"), "--key", str(place / "site.key")]


def dialled(cluster: LiveCluster, place: Path) -> str:
    """What a master says to who dials it with the certificate of ``place``; empty: it is taken."""
    host, _, port = (cluster.state / "master" / "listen").read_text().strip().rpartition(":")
    context = peers.client_context(place / "ca.pem", place / "agent.pem", place / "agent.key")
    try:
        with socket.create_connection((host, int(port)), 10) as plain, context.wrap_socket(plain) as tls:
            tls.sendall(b"GET /v1/leader HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return "" if tls.recv(4096) else "no answer"
    except ssl.SSLError as error:
        return str(error)


def kept(cluster: LiveCluster, node: str) -> Path:
    """A copy of what the node shows and trusts now."""
    place = cluster.work("") / "kept"
    place.mkdir(mode=0o700)
    for name in ("agent.pem", "agent.key", "ca.pem"):
        (place / name).write_bytes((cluster.state / "agents" / node / name).read_bytes())
    return place


def check_each_ran_once(cluster: LiveCluster, jobs: list[str]) -> None:
    assert len(set(jobs)) == len(jobs)
    seqs = [int(job.split(".")[0]) for job in jobs]
    well = """SELECT count(*) FROM (SELECT seq, state, exit_status, attempt FROM jobs
              UNION ALL SELECT seq, state, exit_status, attempt FROM jobs_history) j
              WHERE seq = ANY(%s) AND state = 'C' AND exit_status = 0 AND attempt = 1"""
    with psycopg.connect(cluster.database_url, autocommit=True) as connection:
        wait_until(
            lambda: connection.execute(well, [seqs]).fetchone() == (len(jobs),),
            "each job has ended well at its first try",
            PATIENCE,
        )


def daemons(cluster: LiveCluster) -> list[int]:
    nodes = [f"node{n}/{part}" for n in (1, 2) for part in ("agent", "shepherd")]
    return [cluster.pid(name) for name in (*cluster.described.master_names, *nodes)]


def rotate(cluster: LiveCluster, *options: str) -> str:
    done = cluster.run("hpcmesos", "certificate", "rotate-ca", *options, user="")
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_for_the_new_one_alone(cluster: LiveCluster, client: Client, old: Path) -> None:
    """Nobody trusts the old one any more, and all are past the last step."""
    wait_until(lambda: len(client.authorities()) == 1, "one is left", PATIENCE, 1.0)
    wait_until(lambda: dialled(cluster, old) != "", "the old one counts for nothing", PATIENCE, 1.0)
    alone = client.trusted_authorities()
    for node in ("node1", "node2"):
        place = cluster.state / "agents" / node / "ca.pem"
        wait_until(lambda p=place: p.read_text() == alone, "the node has the new one alone", PATIENCE, 1.0)  # type: ignore[misc]


def test_no_job_is_lost_while_the_authority_is_replaced(own: LiveCluster, stack: ExitStack) -> None:
    client = stack.enter_context(own.client())
    [before] = client.authorities()
    old, running_before = kept(own, "node1"), daemons(own)
    assert dialled(own, old) == ""
    long = own.qsub(LONG, "-l", "nodes=2:ppn=1", "-d", ".")
    own.wait_state(long, "R")
    with Submitting(own) as flow:
        assert "next" in rotate(own)
        again = own.run("hpcmesos", "certificate", "rotate-ca", user="")
        assert again.returncode != 0 and "being replaced" in again.stderr
        wait_for_the_new_one_alone(own, client, old)
        [after] = client.authorities()
        assert after.fingerprint != before.fingerprint
        flow.more(3)
    check_each_ran_once(own, flow.jobs)
    assert "authority made" in own.run("hpcmesos", "audit", user="").stdout
    # Between nodes, too: the job from before the first step begins its ranks now, and a new one.
    (own.work() / "go").touch()
    check_ranks_meet(own, long, own.qsub(TWO, "-l", "nodes=2:ppn=1"))
    assert daemons(own) == running_before


def check_ranks_meet(cluster: LiveCluster, *jobs: str) -> None:
    for job in jobs:
        ended = cluster.wait(job)
        assert (ended["Exit_status"], ended["run_count"]) == (0, 1)
        assert sorted(cluster.output(job).split()) == ["node1", "node2"]


def test_the_sites_own_waits_for_a_node_that_is_away_unless_one_forces_it(
    own: LiveCluster, stack: ExitStack
) -> None:
    """Of RSA, below a root that signs for others, too."""
    client = stack.enter_context(own.client())
    old, running_before = kept(own, "node1"), daemons(own)
    long = own.qsub(LONG, "-l", "nodes=2:ppn=1", "-d", ".")
    own.wait_state(long, "R")
    os.kill(own.pid("node2/agent"), signal.SIGSTOP)
    try:
        rotate(own, *intermediate(own.root))
        wait_until(
            lambda: [one.lacking for one in client.authorities() if one.state == "next"] == [["node2"]],
            "node2 alone is waited for",
            PATIENCE,
            1.0,
        )
        assert "waits for node2" in own.run("hpcmesos", "doctor", user="").stdout
        rotate(own, "--force")
        assert [one.state for one in client.authorities()] == ["signs", "old"]
    finally:
        os.kill(own.pid("node2/agent"), signal.SIGCONT)
    # It still trusts the old one, and that is not dropped before it is back.
    with Submitting(own) as flow:
        wait_for_the_new_one_alone(own, client, old)
        flow.more(3)
    check_each_ran_once(own, flow.jobs)
    (own.work() / "go").touch()
    check_ranks_meet(own, long, own.qsub(TWO, "-l", "nodes=2:ppn=1"))
    assert daemons(own) == running_before
