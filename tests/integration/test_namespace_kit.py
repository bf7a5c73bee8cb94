"""Hosts made of namespaces: apart from each other, joined by a network that can be cut, and gone without a trace."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.namespace_kit import NAMESPACES, Host, Hosts, inhabitants

ECHO = """
import socket, sys
with socket.create_server((sys.argv[1], 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    while True:
        talk = listener.accept()[0]
        while said := talk.recv(100):
            talk.sendall(said)
"""
TALK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])) as talk:
    for line in sys.stdin:
        seconds, _, word = line.strip().partition(" ")
        talk.settimeout(float(seconds))
        talk.sendall(word.encode())
        try:
            print(talk.recv(100).decode(), flush=True)
        except TimeoutError:
            print("silence", flush=True)
"""
WAIT = 20  # seconds until a packet must have come; TCP tries again after 0.2, 0.6, 1.4, 3, ...


@pytest.fixture(scope="module")
def three() -> Iterator[Hosts]:
    with Hosts(["mfa", "mfb", "mfc"]) as hosts:
        yield hosts


@pytest.fixture
def hosts(three: Hosts) -> Iterator[Hosts]:
    yield three
    three.mend()


def echo(host: Host) -> int:
    """The port of an echo server there."""
    server = host.popen([sys.executable, "-c", ECHO, host.address], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    return int(server.stdout.readline())


def talk(host: Host, name: str, port: int) -> subprocess.Popen[Any]:
    command = [sys.executable, "-c", TALK, name, str(port), str(WAIT)]
    return host.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer(client: subprocess.Popen[Any], word: str, seconds: float = WAIT) -> str:
    """What comes back within the seconds for a word, which may be empty: then nothing is sent."""
    assert client.stdin is not None and client.stdout is not None
    client.stdin.write(f"{seconds} {word}\n")
    client.stdin.flush()
    return str(client.stdout.readline().strip())


def connecting(host: Host, other: Host) -> str:
    """Says ``ok``, or how a new connection fails within a second."""
    port = echo(other)
    command = [sys.executable, "-c", TALK, other.address, str(port), "1"]
    result = host.run(command, stdin=subprocess.DEVNULL, check=False)
    return "ok" if result.returncode == 0 else str(result.stderr.strip().splitlines()[-1].partition(":")[0])


def established(host: Host) -> str:
    return str(host.run(["ss", "-Htn", "state", "established"]).stdout)


def test_each_host_has_its_own_name_network_and_memory(hosts: Hosts) -> None:
    assert [host.run(["hostname"]).stdout for host in hosts] == ["mfa\n", "mfb\n", "mfc\n"]
    networks = {
        os.readlink("/proc/self/ns/net"),
        *(host.run(["readlink", "/proc/self/ns/net"]).stdout for host in hosts),
    }
    assert len(networks) == 4
    hosts["mfa"].run(["touch", "/dev/shm/of-mfa"])
    assert hosts["mfa"].run(["ls", "/dev/shm"]).stdout == "of-mfa\n"
    assert hosts["mfb"].run(["ls", "/dev/shm"]).stdout == ""
    assert not Path("/dev/shm/of-mfa").exists()


def test_every_name_resolves_on_every_host(hosts: Hosts) -> None:
    expected = "127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in hosts)
    for host in hosts:
        assert host.run(["cat", "/etc/hosts"]).stdout == expected
    found = hosts["mfa"].run(["getent", "ahostsv4", "mfc"]).stdout
    assert found.split()[0] == hosts["mfc"].address
    assert "mfa" not in Path("/etc/hosts").read_text()


def test_programs_run_as_if_started_here(hosts: Hosts, tmp_path: Path) -> None:
    script = 'pwd; echo "$WORD"; exit 3'
    result = hosts["mfa"].run(["sh", "-c", script], cwd=tmp_path, env={"WORD": "a b"}, check=False)
    assert (result.stdout, result.returncode) == (f"{tmp_path}\na b\n", 3)
    with hosts["mfb"].popen(
        ["sh", "-c", "echo $$; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as cat:
        assert cat.stdout is not None
        assert int(cat.stdout.readline()) == cat.pid
        assert cat.pid in hosts["mfb"].processes()
        cat.terminate()
    assert cat.returncode == -15


def test_hosts_reach_each_other_by_name_and_nothing_else(hosts: Hosts) -> None:
    port = echo(hosts["mfb"])
    with talk(hosts["mfa"], "mfb", port) as client:
        assert answer(client, "hello") == "hello"
    routes = hosts["mfa"].run(["ip", "-o", "route"]).stdout.splitlines()
    assert len(routes) == 1 and routes[0].startswith(hosts["mfa"].address.rpartition(".")[0])


def test_a_cut_between_two_is_silent_and_a_mend_brings_the_data(hosts: Hosts) -> None:
    a, b, c = hosts
    with talk(a, "mfb", echo(b)) as client:
        assert answer(client, "one") == "one"
        hosts.cut("mfa", "mfb")
        assert answer(client, "two", 1) == "silence"
        assert b.address in established(a) and a.address in established(b)
        assert connecting(a, b) == connecting(b, a) == "TimeoutError"
        assert connecting(a, c) == connecting(c, b) == "ok"
        hosts.mend()
        assert answer(client, "") == "two"
        assert answer(client, "three") == "three"


def test_a_host_that_is_cut_off_reaches_nobody_and_the_others_do(hosts: Hosts) -> None:
    a, b, c = hosts
    with talk(b, "mfa", echo(a)) as client:
        assert answer(client, "one") == "one"
        hosts.cut("mfa")
        assert answer(client, "two", 1) == "silence"
        assert b.address in established(a) and a.address in established(b)
        assert connecting(a, b) == connecting(c, a) == "TimeoutError"
        assert connecting(b, c) == "ok"
        assert connecting(a, a) == "ok"
        hosts.mend()
        assert answer(client, "") == "two"


def test_two_networks_side_by_side_do_not_see_each_other(hosts: Hosts) -> None:
    with Hosts(["mfa", "mfb"]) as others:
        assert others["mfa"].address != hosts["mfa"].address
        assert not others["mfa"].namespaces & hosts["mfa"].namespaces
        others.cut("mfa", "mfb")
        assert connecting(hosts["mfa"], hosts["mfb"]) == "ok"
        assert connecting(others["mfb"], others["mfa"]) == "TimeoutError"
        assert connecting(others["mfb"], hosts["mfa"]) == "OSError"  # no route
    assert connecting(hosts["mfb"], hosts["mfa"]) == "ok"


def test_nothing_is_left_not_even_of_a_failed_test() -> None:
    with pytest.raises(ZeroDivisionError), Hosts(["mfa", "mfb"]) as hosts:
        namespaces = frozenset().union(*(host.namespaces for host in hosts))
        script = "setsid unshare --net sleep infinity >/dev/null 2>&1 & echo $!"
        daemon = int(hosts["mfa"].run(["sh", "-c", script]).stdout)
        assert daemon in hosts["mfa"].processes()
        raise ZeroDivisionError
    assert len(namespaces) == 2 * len(NAMESPACES)
    assert not inhabitants(namespaces)
    listed = subprocess.run(
        ["lsns", "-n", "-o", "NS"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {name.strip("netusipcm:[]") for name in namespaces} & set(listed)
    assert "hosts-" not in Path("/proc/self/mountinfo").read_text()
