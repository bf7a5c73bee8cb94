"""Access lists with hosts: the gateway or the address that a job comes from decides, whatever its user says of that."""

from __future__ import annotations

import http.client
import json
import signal
import ssl
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.cluster_kit import LiveCluster
from tests.e2e.conftest import running
from tests.e2e.gateway_kit import LoginHost
from tests.e2e.remote_kit import Remote

TRUE = "#!/bin/sh\ntrue\n"
NEAR, FAR = "127.0.0.7", "127.0.0.8"
ASK = """
import http.client, socket, sys
path, body, host = sys.argv[1:]
connection = http.client.HTTPConnection(host)
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(path)
connection.request("POST", "/v1/commands/qsub", body, {
    "Content-Type": "application/json", "X-Forwarded-For": host, "Forwarded": f"for={host};host={host}",
})
print(connection.getresponse().read().decode())
"""
"""One request on a gateway's socket, whose sender says in all ways that it comes from ``host``."""


@pytest.fixture(scope="module")
def own() -> Iterator[LiveCluster]:
    """``near`` takes jobs from login1, ``hers`` those of the tests' user from there, ``address`` those from NEAR."""
    with running(LiveCluster(agents=1, gpus=0)) as cluster:
        me = Remote(cluster).name
        for queue, of, entries in (
            ("near", "host", "login1"),
            ("hers", "user", f"{me}@login1"),
            ("not_far", "user", f"-{me}@login2,*"),
            ("address", "host", NEAR),
        ):
            text = f"enabled=true,started=true,acl_{of}_enable=true,acl_{of}s='{entries}'"
            cluster.run("qmgr", "-c", f"create queue {queue} {text}", user="", check=True)
        yield cluster


@pytest.fixture(scope="module")
def hosts(own: LiveCluster) -> Iterator[tuple[LoginHost, LoginHost]]:
    """login1 and login2."""
    both = LoginHost(own), LoginHost(own, "login2")
    for host in both:
        host.start()
    yield both
    for host in both:
        host.stop(signal.SIGTERM)


def body(queue: str, claimed: str) -> str:
    """A submission whose fields say that it comes from ``claimed``."""
    environ = {"PBS_O_HOST": claimed, "HOSTNAME": claimed}
    words = ["-q", queue, "-v", f"PBS_O_HOST={claimed}"]
    script = "IyEvYmluL3NoCnRydWUK"  # TRUE
    return json.dumps({"argv": words, "script": script, "cwd": "/tmp", "host": claimed, "environ": environ})


def answered(text: str) -> tuple[str, str]:
    """The job's id and what is said, of which one is empty."""
    reply: dict[str, Any] = json.loads(text)
    if "code" in reply and "message" in reply:
        return "", reply["message"]
    return reply["stdout"].strip(), reply["stderr"]


@pytest.mark.parametrize("queue", ["near", "hers", "not_far"])
def test_a_list_judges_by_the_gateway(
    own: LiveCluster, hosts: tuple[LoginHost, LoginHost], queue: str
) -> None:
    near, far = hosts
    assert own.wait(near.qsub(TRUE, "-q", queue))["Exit_status"] == 0
    refused = far.run("qsub", "-q", queue, stdin=TRUE)
    assert (refused.returncode != 0, refused.stdout) == (True, "")
    assert f"@login2 is not allowed in queue {queue}" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("queue", ["near", "hers", "not_far"])
def test_what_the_request_says_changes_nothing(
    own: LiveCluster, hosts: tuple[LoginHost, LoginHost], queue: str
) -> None:
    near, far = hosts
    for host, claimed in ((far, "login1"), (near, "login2")):
        done = own.run(sys.executable, "-c", ASK, str(host.socket), body(queue, claimed), claimed, check=True)
        job, said = answered(done.stdout)
        if host is far:
            assert (job, f"@login2 is not allowed in queue {queue}" in said) == ("", True), said
        else:
            assert own.wait(job)["Exit_status"] == 0, said


def test_another_user_of_that_host_is_not_let_in(
    hosts: tuple[LoginHost, LoginHost], users: tuple[str, str]
) -> None:
    refused = hosts[0].run("qsub", "-q", "hers", stdin=TRUE, user=users[1])
    assert f"user {users[1]}@login1 is not allowed in queue hers" in refused.stderr


def test_over_tls_it_is_the_address(own: LiveCluster) -> None:
    remote = Remote(own)
    context = ssl.create_default_context(cafile=str(remote.ca))
    host, _, port = remote.url.removeprefix("https://").rpartition(":")

    def submit(source: str, claimed: str) -> tuple[str, str]:
        headers = {
            "Authorization": f"Bearer {remote.file.read_text()}",
            "Content-Type": "application/json",
            "Host": claimed,
            "X-Forwarded-For": claimed,
            "X-Real-IP": claimed,
            "Forwarded": f"for={claimed}",
        }
        connection = http.client.HTTPSConnection(
            host, int(port), context=context, timeout=30, source_address=(source, 0)
        )
        try:
            connection.request("POST", "/v1/commands/qsub", body("address", claimed), headers)
            return answered(connection.getresponse().read().decode())
        finally:
            connection.close()

    job, said = submit(FAR, NEAR)
    assert (job, f"@{FAR} is not allowed in queue address" in said) == ("", True), said
    job, said = submit(NEAR, FAR)
    assert own.wait(job)["Exit_status"] == 0, said
    assert own.job(job)["Job_Owner"].startswith(f"{remote.name}@")
