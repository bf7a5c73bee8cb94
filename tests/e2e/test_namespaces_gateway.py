"""A login host with a network and a name of its own: its gateway, and a link that breaks under what it delivers."""

from __future__ import annotations

import hashlib
import os
import pwd
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster_kit import HPCMESOS, wait_until
from tests.e2e.conftest import check_clean
from tests.e2e.gateway_kit import LoginHost
from tests.e2e.namespace_cluster import NamespaceCluster
from tests.e2e.namespace_kit import Host

pytestmark = [pytest.mark.hosts, pytest.mark.root, pytest.mark.full]
PATIENCE = 120.0
"""Seconds until a healed link is seen: what TCP has in flight, it sends again in ever longer steps."""
LARGE = 24_000_000


class FarLogin(LoginHost):
    """Everything of it runs on that host."""

    def __init__(self, cluster: NamespaceCluster, host: Host) -> None:
        super().__init__(cluster, host.name)
        self.host = host
        self.urls = cluster.api_urls()

    def start(self) -> None:
        words = [
            *HPCMESOS,
            *("gateway", "--node", self.name, "--master", self.urls, "--state", self.state),
            *("--socket", self.socket, "--join-token-file", self.token),
        ]
        with (self.cluster.root / f"{self.name}.log").open("ab") as log:
            self._child = self.host.popen(
                words, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.cluster.environ
            )
        wait_until(self.socket.exists, "a gateway")

    def run(
        self, *command: str, stdin: str | None = None, user: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        entry = pwd.getpwnam(user or self.cluster.user or "root")
        identity = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
        environ = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("HPCMESOS_", "PBS_"))
            },
            "PATH": f"{self.bin / 'torque'}:{os.environ['PATH']}",
            "HOME": entry.pw_dir,
            "USER": entry.pw_name,
            "LOGNAME": entry.pw_name,
            "SHELL": entry.pw_shell,
        }
        work = self.cluster.work()
        return self.host.run([*identity, *command], cwd=work, check=False, input=stdin or "", env=environ)


@pytest.fixture(scope="module")
def cluster() -> Iterator[NamespaceCluster]:
    """One node, and a login host that shares no directory with it, as far as the masters know."""
    with NamespaceCluster(["node1"], others=["login1"], site={"shared_paths": ("/nowhere",)}) as one:
        yield one
        check_clean(one)


@pytest.fixture(scope="module")
def login(cluster: NamespaceCluster) -> Iterator[FarLogin]:
    host = FarLogin(cluster, cluster.hosts["login1"])
    host.start()
    yield host
    host.stop(signal.SIGTERM)


def place_of(cluster: NamespaceCluster, name: str, job: str) -> Path:
    return cluster.work() / f"{name}.o{job.partition('.')[0]}"


def test_a_job_from_there_and_its_output_back(cluster: NamespaceCluster, login: FarLogin) -> None:
    job = login.qsub("#!/bin/sh\nhostname\n", "-N", "plain", "-j", "oe", "-W", "umask=027")
    status = cluster.api.wait(job, PATIENCE)
    assert (status.state, status.exit_status, status.nodes) == ("C", 0, ["node1"])
    place = place_of(cluster, "plain", job)
    assert place.read_text() == "node1\n"
    found = place.stat()
    assert pwd.getpwuid(found.st_uid).pw_name == cluster.user
    assert stat.S_IMODE(found.st_mode) == 0o640
    assert f"Job_Owner = {cluster.user}@login1" in login.run("qstat", "-f", job).stdout
    assert login.run("hostname").stdout == "login1\n"


def test_a_link_that_breaks_under_a_delivery(cluster: NamespaceCluster, login: FarLogin) -> None:
    """The output is large enough to be under way when the host is cut off; healed, it is there once and whole."""
    with cluster.hosts.slowed("login1", "16mbit"):  # it takes 12 s
        job = login.qsub(f"#!/bin/sh\nseq 1 10000000 | head -c {LARGE}\n", "-N", "large", "-j", "oe")
        place = place_of(cluster, "large", job)
        incoming = login.state / "incoming"
        wait_until(lambda: place.exists() or any(incoming.iterdir()), "it is on its way", PATIENCE, 0.001)
        cluster.hosts.cut("login1")
        half_way = not place.exists()
    assert cluster.api.wait(job, PATIENCE).state == "C", "nobody waits for that host"
    assert not place.exists()
    cluster.hosts.mend("login1")
    wait_until(place.exists, "its output", PATIENCE)
    expected = "".join(f"{n}\n" for n in range(1, 3_200_000)).encode()[:LARGE]
    assert len(expected) == LARGE
    assert hashlib.sha256(place.read_bytes()).digest() == hashlib.sha256(expected).digest()
    assert not list(cluster.work().glob(".*delivery"))
    assert half_way, "else this has shown nothing"


def test_a_job_that_ends_while_the_host_is_cut_off(cluster: NamespaceCluster, login: FarLogin) -> None:
    """The node waits for nobody, and whoever asks elsewhere sees it all; the owner gets it when the link is back."""
    go = cluster.work() / "go"
    job = login.qsub(
        f"#!/bin/sh\nuntil [ -e {go} ]; do sleep 0.05; done\necho late\n", "-N", "late", "-j", "oe"
    )
    place = place_of(cluster, "late", job)
    wait_until(lambda: cluster.api.job(job).state == "R", "it runs", PATIENCE)
    cluster.hosts.cut("login1")
    go.touch()
    status = cluster.api.wait(job, PATIENCE)
    assert (status.state, status.exit_status) == ("C", 0)
    assert not place.exists()
    assert cluster.hpcmesos("logs", job).stdout == "late\n"
    cluster.hosts.mend("login1")
    wait_until(place.exists, "its output", PATIENCE)
    assert place.read_text() == "late\n"
    assert pwd.getpwuid(place.stat().st_uid).pw_name == cluster.user
    again = login.qsub("#!/bin/sh\necho again\n", "-N", "again", "-j", "oe")
    cluster.api.wait(again, PATIENCE)
    wait_until(place_of(cluster, "again", again).exists, "the next one's output", PATIENCE)
    assert place.read_text() == "late\n", "once"
