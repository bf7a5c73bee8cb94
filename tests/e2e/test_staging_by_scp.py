"""Files on a host that nodes do not see come and go by scp, over a real ssh server, as the job's owner."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until

ADDRESS = "127.0.22.1"
"""Where nothing else takes a port between its choice and its use."""
SFTP = Path("/usr/lib/openssh/sftp-server")
pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="needs root"),  # whose ~/.ssh is a test user's
    pytest.mark.skipif(
        not (shutil.which("dropbear") and shutil.which("scp") and SFTP.exists()), reason="no ssh server"
    ),
]


@pytest.fixture
def farhost(cluster: LiveCluster) -> Iterator[str]:
    """A host that the user reaches by ssh with a key of his; its files are this machine's."""
    assert cluster.user
    home = Path(pwd.getpwnam(cluster.user).pw_dir)
    cluster.run("mkdir", "-m", "700", "-p", str(home / ".ssh"), check=True)
    key, host_key = home / ".ssh" / "id_farhost", home / ".ssh" / "host_key"
    cluster.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key), check=True)
    cluster.run("dropbearkey", "-t", "ed25519", "-f", str(host_key), check=True)
    cluster.run("cp", f"{key}.pub", str(home / ".ssh" / "authorized_keys"), check=True)
    with socket.create_server((ADDRESS, 0)) as free:
        port = free.getsockname()[1]
    config = (
        f"Host farhost\n HostName {ADDRESS}\n Port {port}\n IdentityFile {key}\n"
        " StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n"
    )
    cluster.run("sh", "-c", f"cat >{home}/.ssh/config", stdin=config, check=True)
    server = subprocess.Popen(
        [
            "dropbear",
            "-F",
            "-E",
            "-s",
            "-r",
            host_key,
            "-p",
            f"{ADDRESS}:{port}",
            "-P",
            home / ".ssh" / "pid",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        user=cluster.user,
        group=pwd.getpwnam(cluster.user).pw_gid,
        extra_groups=[],
    )
    try:
        wait_until(
            lambda: cluster.run("ssh", "-o", "BatchMode=yes", "farhost", "true").returncode == 0, "ssh", 30
        )
        yield "farhost"
    finally:
        server.terminate()
        server.wait(timeout=10)
        shutil.rmtree(home / ".ssh")


def test_files_come_and_go_by_scp(cluster: LiveCluster, farhost: str) -> None:
    work, home = cluster.work(), Path(pwd.getpwnam(cluster.user or "").pw_dir)
    (work / "far.in").write_text("42\n")
    name = f"scp.{os.getpid()}"
    job = cluster.qsub(
        f"#!/bin/sh\nsed s/4/5/ {name}.in >{name}.out\n",
        *("-W", f"stagein={name}.in@{farhost}:{work}/far.in"),
        *("-W", f"stageout={name}.out@{farhost}:{work}/far.out"),
    )
    try:
        ended = cluster.wait(job, 120)
        assert (ended["Exit_status"], ended.get("comment", "")) == (0, "")
        assert (work / "far.out").read_text() == "52\n"
        assert (work / "far.out").owner() == cluster.user
    finally:
        for letter in ("in", "out"):
            (home / f"{name}.{letter}").unlink(missing_ok=True)


def test_a_host_that_scp_does_not_reach_is_said(cluster: LiveCluster, farhost: str) -> None:
    job = cluster.qsub("#!/bin/sh\ntouch ran\n", "-W", f"stagein=x@{farhost}:/nonexistent/x")
    held = wait_until(lambda: (seen := cluster.job(job))["job_state"] == "H" and seen, "held", 120)
    assert f"stagein of {farhost}:/nonexistent/x: exit code" in held["comment"]
    cluster.run("qdel", job)
