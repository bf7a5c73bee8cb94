"""A login host beside a cluster: a gateway with a name, a state and a socket of its own, on this machine."""

from __future__ import annotations

import http.client
import os
import signal
import ssl
import subprocess
from pathlib import Path

from hpcmesos import pidfile
from hpcmesos.cli import commands_dir
from tests.e2e.cluster_kit import HPCMESOS, LiveCluster, wait_until


class LoginHost:
    """``name``: as which the gateway joins."""

    def __init__(self, cluster: LiveCluster, name: str = "login1") -> None:
        self.cluster = cluster
        self.name = name
        self.state = cluster.root / name
        self.socket = cluster.described.sockets / f"{name}.sock"
        self.bin = cluster.root / f"{name}-bin"
        token = cluster.hpcmesos("token", "create", "--gateway", "--node", name).stdout
        self.token = cluster.root / f"{name}.token"
        self.token.write_text(token)
        commands_dir.write(self.bin, self.socket, submit_filter=Path("/nonexistent"))
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def master(self) -> str:
        return "https://" + (self.cluster.state / "master" / "listen").read_text().strip()

    def start(self) -> None:
        with (self.cluster.root / f"{self.name}.log").open("ab") as output:
            self._child = subprocess.Popen(
                [
                    *HPCMESOS,
                    *("gateway", "--node", self.name, "--master", self.master, "--state", str(self.state)),
                    *("--socket", str(self.socket), "--join-token-file", str(self.token)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.cluster.environ,
            )
        wait_until(
            lambda: pidfile.living(str(self.state / "gateway.pid")) and self.socket.exists(), "a gateway"
        )

    def stop(self, number: int = signal.SIGKILL) -> None:
        if self._child is not None:
            self._child.send_signal(number)
            self._child.wait(timeout=10)
            self._child = None
            if number == signal.SIGKILL:
                self.socket.unlink(missing_ok=True)

    def run(
        self, *command: str, stdin: str | None = None, user: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A q-command as a user types it on this host."""
        path = f"{self.bin / 'torque'}:{os.environ['PATH']}"
        return self.cluster.run(*command, stdin=stdin, user=user, environ={"PATH": path})

    def qsub(self, script: str, *words: str) -> str:
        done = self.run("qsub", *words, stdin=script)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout.strip()

    def ask(self, method: str, path: str, *, first: str = "", place: Path | None = None) -> tuple[int, str]:
        """As ask(), with the gateway's own certificate unless ``place`` has another."""
        return ask(self.master, place or self.state, method, path, first=first)


def ask(url: str, place: Path, method: str, path: str, *, first: str = "") -> tuple[int, str]:
    """Status and body of a request with the certificate of ``place``; ``first``: for whom the connection is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(place / "ca.pem")
    context.load_cert_chain(place / "agent.pem", place / "agent.key")
    address, _, port = url.removeprefix("https://").rpartition(":")
    connection = http.client.HTTPSConnection(address, int(port), context=context, timeout=10)
    try:
        if first:
            connection.request("PUT", f"/v1/gateway/user/{first}")
            answer = connection.getresponse()
            answer.read()
            if answer.status != 204:
                return answer.status, ""
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
