"""An agent that speaks the link over real TLS and runs nothing: it answers as a test wants it to."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

from hpcmesos import wire
from hpcmesos.master import peers, pki

Answer = Callable[["FakeAgent", wire.ToAgent], None]


def certificate(ca: pki.Ca, directory: Path, name: str, organization: str = "agent") -> ssl.SSLContext:
    """A client's TLS with a certificate of the authority."""
    paths = pki.ensure_certificate(ca, directory / f"{organization}-{name}", name, organization, [])
    return peers.client_context(ca.path, *paths)


class FakeAgent:
    """One link at a time. ``got`` holds all messages but pings; ``answer`` is called with each of them."""

    def __init__(self, tls: ssl.SSLContext, hello: wire.Hello, answer: Answer | None = None) -> None:
        self.tls = tls
        self.hello = hello
        self.answer = answer
        self.got: list[wire.ToAgent] = []
        self.closed = threading.Event()
        self._socket: ssl.SSLSocket | None = None
        self._lock = threading.Lock()

    def dial(self, address: str) -> None:
        """Connects, says hello, and listens in a thread until the link breaks."""
        host, _, port = address.rpartition(":")
        plain = socket.create_connection((host, int(port)), timeout=10)
        plain.settimeout(None)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = self.tls.wrap_socket(plain)
        self.closed = threading.Event()
        self.say(self.hello)
        threading.Thread(target=self._read, args=(self._socket, self.closed), daemon=True).start()

    def say(self, message: wire.ToLeader) -> None:
        assert self._socket is not None
        with self._lock:
            self._socket.sendall(wire.encode(message))

    def hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def of(self, kind: type[wire.Message]) -> list[wire.ToAgent]:
        """What came of one kind."""
        return [message for message in self.got if isinstance(message, kind)]

    def _read(self, link: ssl.SSLSocket, closed: threading.Event) -> None:
        try:
            while header := _exactly(link, 4):
                message = wire.decode_to_agent(_exactly(link, int.from_bytes(header, "big")))
                if isinstance(message, wire.Ping):
                    self.say(wire.Pong(nonce=message.nonce))
                    continue
                self.got.append(message)
                if self.answer is not None:
                    self.answer(self, message)
        except (OSError, ValueError):
            pass
        finally:
            link.close()
            closed.set()


def _exactly(link: ssl.SSLSocket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = link.recv(size - len(data))
        if not part:
            return b""
        data += part
    return data


def obedient(agent: FakeAgent, message: wire.ToAgent) -> None:
    """Gets ready, runs the script in no time, and ends with 7."""
    match message:
        case wire.Prepare(attempt=attempt):
            agent.say(wire.Ready(attempt=attempt))
        case wire.Go(attempt=attempt):
            agent.say(wire.Started(attempt=attempt, pid=1, started_at=1.0))
            agent.say(wire.Ended(attempt=attempt, head=True, cause="APP", code=7, ended_at=2.0))
