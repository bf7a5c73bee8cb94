"""Every socket on which a cluster listens, PostgreSQL's too, asks who is there."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.cluster_kit import LiveCluster

STRANGER = "daemon"
_LISTENS = "0A"  # st of /proc/net/tcp
_ACCEPTS = 0x10000  # flags of /proc/net/unix
REQUESTS = (
    b"GET /v1/jobs HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n",
    b"POST /v1/commands/qsub HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\n\r\n{\"argv\":[]}",
    b"\x00\x00\x00\x0fJ{\"op\":\"hello\"}",
)  # fmt: skip


def inodes(cluster: LiveCluster) -> set[str]:
    """Sockets of the cluster's processes."""
    found = set()
    for line in cluster.processes():
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{line.split()[0]}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if match := re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink())):
                        found.add(match[1])
    return found


def listening(cluster: LiveCluster) -> tuple[list[tuple[str, int]], list[str], list[str]]:
    """TCP addresses, paths of unix sockets, and lines of UDP sockets."""
    ours = inodes(cluster)
    tcp, udp = [], []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[9] not in ours:
                continue
            if table.startswith("udp"):
                udp.append(line)
            elif words[3] == _LISTENS:
                assert table == "tcp", line
                host, port = words[1].split(":")
                tcp.append((socket.inet_ntoa(bytes.fromhex(host)[::-1]), int(port, 16)))
    unix = []
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split()
        if words[6] in ours and int(words[3], 16) & _ACCEPTS:
            unix.append(words[7])
    return tcp, unix, udp


def asked(address: tuple[str, int], request: bytes, tls: bool) -> bytes:
    """What comes back without a credential."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    answer = b""
    with (
        contextlib.suppress(OSError),
        socket.create_connection(address, timeout=3) as plain,
        context.wrap_socket(plain) if tls else plain as link,
    ):
        link.settimeout(1.0)
        link.sendall(request)
        while b"\r\n\r\n" not in answer and (data := link.recv(4096)):
            answer += data
    return answer


def test_every_tcp_port_asks_who_is_there(cluster: LiveCluster) -> None:
    tcp, _, udp = listening(cluster)
    assert udp == []
    assert len(tcp) >= 2 + 4, tcp  # the API's, the leader's, and one for each node
    for address in tcp:
        assert address[0].startswith("127."), f"by default the cluster serves this host alone: {address}"
        for request in REQUESTS:
            assert asked(address, request, tls=False)[:5] in (b"", b"\x15\x03\x01\x00\x02"[:5]), address
            answer = asked(address, request, tls=True)
            assert answer.startswith(b"HTTP/1.1 4") or answer == b"", (address, answer)
            if request.startswith((b"GET", b"POST")) and answer:
                assert answer.startswith(b"HTTP/1.1 401"), (address, answer)


PROBE = """
import socket, sys
link = socket.socket(socket.AF_UNIX)
link.settimeout(5)
link.connect(sys.argv[1])
sys.stdout.write(repr(link.recv(1000)))
"""
DATABASE = "import psycopg, sys; print(psycopg.connect(sys.argv[1], connect_timeout=5).execute('SELECT 1').fetchone())"


def as_stranger(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        user=STRANGER, extra_groups=[], cwd="/", env={"PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another real user")
def test_every_unix_socket_asks_who_is_there(cluster: LiveCluster) -> None:
    _, unix, _ = listening(cluster)
    kinds = dict.fromkeys(("api.sock", "control.sock", "ranks.sock", ".s.PGSQL.5432"), 0)
    for path in unix:
        name = Path(path).name
        assert name in kinds, f"nobody knows this door: {path}"
        kinds[name] += 1
        match name:
            case "control.sock":
                assert "PermissionError" in as_stranger("-c", PROBE, path).stderr
            case "ranks.sock":
                assert "belongs to no job" in as_stranger("-c", PROBE, path).stdout
            case ".s.PGSQL.5432":
                for role in ("hpcmesos_owner", "hpcmesos_leader", "hpcmesos_api", STRANGER, "postgres"):
                    url = f"postgresql://{role}@/hpcmesos?host={Path(path).parent}"
                    refused = as_stranger("-c", DATABASE, url)
                    assert refused.returncode != 0, refused.stdout
            case "api.sock":  # the kernel says who it is: a user, who may what users may
                refused = cluster.run("qmgr", "-c", "set server managers = daemon", user=STRANGER)
                assert refused.returncode != 0
                assert "only managers" in refused.stderr
    assert all(kinds.values()), kinds
