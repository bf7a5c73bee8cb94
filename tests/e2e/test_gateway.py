"""A login host without a master: commands by its gateway's socket, and output that no node can write there itself."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import signal
import socket
import stat
from collections.abc import Iterator

import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.e2e.conftest import running
from tests.e2e.gateway_kit import LoginHost
from tests.e2e.terminal_kit import Terminal


@pytest.fixture(scope="module")
def apart() -> Iterator[LiveCluster]:
    """A cluster whose nodes share no directory with the hosts where people work."""
    settings = {"shared_paths": ["/nowhere"], "log_stream_mib": 1}
    with running(LiveCluster(agents=1, gpus=2, settings=settings)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def login(apart: LiveCluster) -> Iterator[LoginHost]:
    host = LoginHost(apart)
    host.start()
    yield host
    host.stop(signal.SIGTERM)


def lives_on(job: str) -> str:
    return job.split(".", maxsplit=1)[0]


def test_users_are_who_the_kernel_says_and_output_arrives_before_the_job_is_over(
    apart: LiveCluster, login: LoginHost
) -> None:
    job = login.qsub("#!/bin/sh\necho out\necho err >&2\n", "-N", "far", "-W", "umask=027")
    shown = apart.wait(job)
    out, err = (apart.work() / f"far.{letter}{lives_on(job)}" for letter in "oe")
    assert (out.read_text(), err.read_text()) == ("out\n", "err\n")
    status = out.stat()
    owner = apart.user or pwd.getpwuid(os.getuid()).pw_name
    assert (stat.S_IMODE(status.st_mode), pwd.getpwuid(status.st_uid).pw_name) == (0o640, owner)
    assert shown["Job_Owner"] == f"{owner}@login1"
    assert shown["Output_Path"] == f"login1:{out}"
    assert "comment" not in shown
    assert not list(apart.work().glob(".*delivery"))


def test_a_second_user_is_somebody_else(apart: LiveCluster, login: LoginHost, users: tuple[str, str]) -> None:
    job = login.qsub("#!/bin/sh\nsleep 100\n")
    done = login.run("qdel", job, user=users[1])
    assert done.returncode != 0
    assert "Unauthorized" in done.stderr
    assert login.run("qdel", job).returncode == 0
    apart.wait(job)


def test_output_for_a_named_host_goes_there(apart: LiveCluster, login: LoginHost) -> None:
    places = apart.work() / "places"
    places.mkdir(exist_ok=True)
    if apart.user:
        entry = pwd.getpwnam(apart.user)
        os.chown(places, entry.pw_uid, entry.pw_gid)
    job = apart.qsub("#!/bin/sh\necho there\n", "-j", "oe", "-N", "named", "-o", f"login1:{places}")
    apart.wait(job)
    assert (places / f"named.o{lives_on(job)}").read_text() == "there\n"


def test_a_link_at_the_place_is_replaced_not_followed(apart: LiveCluster, login: LoginHost) -> None:
    precious = apart.work() / "precious"
    apart.run("sh", "-c", f"echo mine >{precious}; ln -s {precious} {apart.work()}/linked.out", check=True)
    job = login.qsub("#!/bin/sh\necho new\n", "-j", "oe", "-o", "linked.out")
    apart.wait(job)
    assert precious.read_text() == "mine\n"
    assert (apart.work() / "linked.out").read_text() == "new\n"


def test_what_the_owner_may_not_write_is_said(apart: LiveCluster, login: LoginHost) -> None:
    job = login.qsub("#!/bin/sh\necho kept\n", "-j", "oe", "-o", "/no/such/place/out")
    assert "login1:/no/such/place/out: No such file or directory" in apart.wait(job)["comment"]
    assert apart.hpcmesos("logs", job).stdout == "kept\n"


def test_output_of_a_job_that_ended_while_the_gateway_was_dead_arrives_once(
    apart: LiveCluster, login: LoginHost
) -> None:
    go = apart.work() / "go"
    job = login.qsub(
        "#!/bin/sh\nuntil [ -e go ]; do sleep 0.05; done\necho late\n", "-d", ".", "-j", "oe", "-N", "late"
    )
    apart.wait_state(job, "R")
    login.stop(signal.SIGKILL)
    apart.run("touch", str(go))
    place = apart.work() / f"late.o{lives_on(job)}"
    shown = apart.wait(job)
    go.unlink()
    assert (shown["Exit_status"], place.exists()) == (0, False)
    assert "not written yet" in shown["comment"]
    assert apart.hpcmesos("logs", job).stdout == "late\n"
    login.start()
    wait_until(place.exists, "the output")
    assert place.read_text() == "late\n"
    place.unlink()
    login.stop(signal.SIGKILL)
    login.start()
    after = login.qsub("#!/bin/sh\ntrue\n", "-N", "after")
    apart.wait(after)
    assert (apart.work() / f"after.o{lives_on(after)}").exists()
    assert not place.exists()


def test_output_of_a_second_attempt_follows_the_first(apart: LiveCluster, login: LoginHost) -> None:
    job = login.qsub(
        "#!/bin/sh\necho try\n[ -e again ] && exit 0\ntouch again\nsleep 100\n",
        "-d",
        ".",
        "-j",
        "oe",
        "-N",
        "twice",
    )
    wait_until((apart.work() / "again").exists, "the first try")
    assert apart.run("qrerun", job, user="").returncode == 0
    apart.wait(job)
    (apart.work() / "again").unlink()
    why = "=>> hpcmesos: job killed: PREEMPTED: run again at the wish of root"
    assert (apart.work() / f"twice.o{lives_on(job)}").read_text() == f"try\n{why}\ntry\n"


@pytest.fixture(scope="module")
def forgotten(apart: LiveCluster) -> tuple[str, str]:
    """Jobs of whose output the node knows no more: one with much, one with more than the log store takes."""
    scripts = ("seq 1 50000", "head -c 1500000 /dev/zero | tr '\\0' x")
    much, more = (apart.qsub(f"#!/bin/sh\n{script}\n", "-o", "/no/such/directory/out") for script in scripts)
    spool = apart.state / "agents" / "node1" / "attempts"
    for job in (much, more):
        apart.wait(job)
        wait_until(
            lambda job=job: not any(spool.glob(f"{lives_on(job)}.*")),  # type: ignore[misc]  # no type of a default
            "the node has forgotten it",
            60,
        )
    return much, more


@pytest.mark.full  # an agent keeps output for 30 s
def test_logs_outlive_the_node(apart: LiveCluster, forgotten: tuple[str, str]) -> None:
    """More than the 64 KiB that the database keeps, of a job without a place for its output."""
    job, _ = forgotten
    assert apart.hpcmesos("logs", job).stdout == "".join(f"{n}\n" for n in range(1, 50001))


@pytest.mark.full
def test_what_the_log_store_has_no_room_for_is_said(apart: LiveCluster, forgotten: tuple[str, str]) -> None:
    _, job = forgotten
    text = apart.hpcmesos("logs", job).stdout
    left_out = re.search(r"\n=>> hpcmesos: (\d+) bytes left out: the job has written more than \d+\n", text)
    assert left_out
    assert len(text) <= 1 << 20
    assert text.replace(left_out[0], "") == "x" * (1500000 - int(left_out[1]))


def test_a_session_outlives_a_broken_network(apart: LiveCluster, login: LoginHost) -> None:
    """The gateway stands for the network: killed, nobody says good-bye to the master."""
    environ = {key: value for key, value in apart.environ.items() if key != "HPCMESOS_STATE"}
    environ |= {"HPCMESOS_SOCKET": str(login.socket), "PATH": f"{login.bin}/torque:{environ['PATH']}"}
    terminal = Terminal(["qsub", "-I"], environ, apart.work(), apart.user)
    try:
        terminal.expect("qsub: waiting for job ")
        job = terminal.expect(" to start")
        terminal.expect(f"qsub: job {job} ready")
        terminal.type("PS1=; stty -echo; x=kept; echo read''y\n")
        terminal.expect("ready\r\n")
        gone = apart.work() / "gone"
        terminal.type(
            f"echo go''ing; until [ -e {gone} ]; do sleep 0.1; done; seq 1 3000; echo me''anwhile\n"
        )
        terminal.expect("going\r\n")  # what is typed when the connection breaks is lost
        login.stop(signal.SIGKILL)
        apart.run("touch", str(gone))
        login.start()
        terminal.expect("\n3000\r\nmeanwhile", timeout=60)
        terminal.type("echo still $x; exit 4\n")
        terminal.expect("still kept")
        terminal.expect("completed")
        assert terminal.wait() == 4
    finally:
        terminal.close()
        (apart.work() / "gone").unlink(missing_ok=True)


# --- what a gateway's certificate is good for -------------------------------------------------------------------------


def test_a_connection_is_one_users_for_good(apart: LiveCluster, login: LoginHost) -> None:
    """Else a user of the login host could make himself anybody by the gateway's own word."""
    assert login.ask("PUT", "/v1/gateway/user/root", first="alice")[0] == 403
    assert login.ask("GET", "/v1/deliveries", first="alice")[0] == 403
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as local:
        local.connect(str(login.socket))
        local.sendall(b"PUT /v1/gateway/user/alice HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert local.recv(100).startswith(b"HTTP/1.1 403")


def test_agents_vouch_for_nobody_and_gateways_do_not_act_as_nodes(
    apart: LiveCluster, login: LoginHost
) -> None:
    node = apart.state / "agents" / "node1"
    assert login.ask("GET", "/v1/jobs", first="alice", place=node)[0] == 403
    assert login.ask("GET", "/v1/deliveries", place=node)[0] == 403
    assert login.ask("GET", "/v1/deliveries")[0] == 200
    job = apart.qsub("#!/bin/sh\necho kept\n", "-o", "/no/such/directory/out")
    apart.wait(job)
    path = f"/v1/outputs/{job}%231/stdout"
    assert login.ask("PUT", f"{path}?offset=0&total=0")[0] == 403
    assert login.ask("GET", path)[0] == 403


def test_a_join_token_of_an_agent_makes_no_gateway(apart: LiveCluster, login: LoginHost) -> None:
    other = LoginHost(apart, "login2")
    other.token.write_text(apart.hpcmesos("token", "create", "--join", "--node", "login2").stdout)
    done = apart.hpcmesos(
        *("gateway", "--node", "login2", "--master", other.master, "--state", str(other.state)),
        *("--socket", str(other.socket), "--join-token-file", str(other.token)),
        check=False,
    )
    assert done.returncode != 0
    assert "the join token is unknown" in done.stderr.splitlines()[-1]


def test_a_revoked_gateway_is_nobody(apart: LiveCluster, login: LoginHost) -> None:
    other = LoginHost(apart, "login3")
    other.start()
    try:
        assert other.run("qstat").returncode == 0
        apart.hpcmesos("certificate", "revoke", "login3")
        # Each API process looks at the list of the revoked once a second.
        wait_until(
            lambda: "revoked" in (done := other.run("qstat")).stderr and done.returncode, "refused", 10
        )
        shown = json.loads(login.run("qstat", "-F", "json", "-f").stdout)
        assert "pbs_server" in shown
    finally:
        other.stop(signal.SIGTERM)


# --- how it serves --------------------------------------------------------------------------------------------------


def test_a_socket_that_somebody_serves_is_left_alone(apart: LiveCluster, login: LoginHost) -> None:
    other = LoginHost(apart, "login4")
    done = apart.hpcmesos(
        *("gateway", "--node", "login4", "--master", other.master, "--state", str(other.state)),
        *("--socket", str(login.socket), "--join-token-file", str(other.token)),
        check=False,
    )
    assert done.returncode != 0
    assert f"another master listens on {login.socket}, or a gateway" in done.stderr.splitlines()[-1]
    assert login.run("qstat").returncode == 0


def test_a_gateway_that_is_told_to_stop_waits_for_no_connection(apart: LiveCluster) -> None:
    other = LoginHost(apart, "login5")
    other.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as idle:
        idle.connect(str(other.socket))
        assert other.run("qstat").returncode == 0  # so that one is served by now
        other.stop(signal.SIGTERM)
        assert idle.recv(1) == b""
    assert not other.socket.exists()


def test_one_user_does_not_take_all_connections_of_a_gateway(
    apart: LiveCluster, login: LoginHost, users: tuple[str, str]
) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(256):
            one = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            one.connect(str(login.socket))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as refused:
            refused.settimeout(30)
            refused.connect(str(login.socket))
            assert b"has 256 connections" in refused.recv(4096)
        assert login.run("qstat", user=users[1]).returncode == 0
