"""Certificates of nodes: renewed under a flow of jobs and a running gang, revoked at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from cryptography import x509

from hpcmesos import pidfile
from hpcmesos.master import pki
from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.e2e.conftest import running
from tests.e2e.test_authorities import check_each_ran_once
from tests.e2e.test_masters import Submitting

LIFETIME = timedelta(seconds=60)
WAIT = "#!/bin/sh\nuntil [ -e go ]; do sleep 0.1; done\n"
TWO = "#!/bin/sh\nmpiexec -n 2 sh -c 'echo $HPCMESOS_NODE'\n"


@pytest.fixture
def own() -> Iterator[LiveCluster]:
    with running(LiveCluster(agents=2, gpus=2)) as cluster:
        yield cluster


def short_lived(cluster: LiveCluster, node: str) -> None:
    """Gives the node a certificate that runs out soon, and its agent a new start with it."""
    state = cluster.state / "agents" / node
    key, csr = pki.create_csr(node, ["127.0.0.1"])
    ca = pki.ensure_ca(cluster.state / "master")
    certificate = pki.sign(ca, pki.read_csr(csr, node), "agent", LIFETIME)
    (state / "agent.key").write_text(key)
    (state / "agent.pem").write_text(certificate)
    start_again(cluster, node)


def start_again(cluster: LiveCluster, node: str) -> None:
    """The node's agent; its shepherd and its jobs run on."""
    pid = cluster.state / "agents" / node / "agent.pid"
    os.kill(cluster.pid(f"{node}/agent"), signal.SIGTERM)
    wait_until(lambda: pidfile.living(str(pid)) is None, f"the agent of {node} has stopped")
    cluster.up()


def join_again(cluster: LiveCluster, node: str) -> str:
    """By a new join token, which is answered."""
    state = cluster.state / "agents" / node
    token = cluster.run("hpcmesos", "token", "create", "--join", "--node", node, user="", check=True).stdout
    (state / "join-token").write_text(token)
    (state / "agent.pem").unlink()
    start_again(cluster, node)
    return token.strip()


def serial(cluster: LiveCluster, node: str) -> int:
    pem = (cluster.state / "agents" / node / "agent.pem").read_bytes()
    return x509.load_pem_x509_certificate(pem).serial_number


@pytest.mark.full
def test_no_job_is_lost_while_certificates_of_agents_are_replaced(own: LiveCluster) -> None:
    job = own.qsub(f"{WAIT}mpiexec -n 2 hostname\n", "-l", "nodes=2:ppn=1", "-d", ".")
    own.wait_state(job, "R")
    for node in ("node1", "node2"):
        short_lived(own, node)
    end = time.time() + LIFETIME.total_seconds()
    first = {node: serial(own, node) for node in ("node1", "node2")}
    # A second more than those certificates live: what works then works by the next ones.
    with Submitting(own) as flow:
        wait_until(lambda: time.time() > end + 1, "the first certificates have run out", timeout=120)
        flow.more(3)
    check_each_ran_once(own, flow.jobs)
    assert all(serial(own, node) != old for node, old in first.items())
    (own.work() / "go").touch()
    assert own.wait(job)["Exit_status"] == 0
    after = own.qsub(TWO, "-l", "nodes=2:ppn=1")
    assert own.wait(after)["Exit_status"] == 0
    assert len(set(own.output(after).split())) == 2


def test_a_revoked_node_loses_its_link_and_its_job_runs_on(own: LiveCluster) -> None:
    job = own.qsub(WAIT, "-l", "nodes=node2", "-d", ".")
    own.wait_state(job, "R")
    done = own.run("hpcmesos", "certificate", "revoke", "node2", user="")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    wait_until(lambda: "down" in own.run("pbsnodes", "node2").stdout, "node2 is down", timeout=60)
    assert "revoked" in own.run("hpcmesos", "certificate", "list", user="").stdout
    assert "certificate revoked" in own.run("hpcmesos", "audit", user="").stdout
    assert own.job(job)["job_state"] == "R"
    elsewhere = own.qsub("#!/bin/sh\ntrue\n")
    assert own.wait(elsewhere)["Exit_status"] == 0

    # With a new token it is back, and its job's end is known.
    join_again(own, "node2")
    (own.work() / "go").touch()
    assert own.wait(job)["Exit_status"] == 0
