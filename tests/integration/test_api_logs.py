"""Reading what jobs write: live from a shepherd, then from the file or the stored tail."""

from __future__ import annotations

import json
import os
import pwd
import queue
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from hpcmesos.errors import InvalidValue, Unauthorized, UnknownJob
from hpcmesos.master import peers, pki
from hpcmesos.model import Cause
from hpcmesos.queue.records import AttemptKey, AttemptRecord, NodeRecord

if TYPE_CHECKING:
    from pathlib import Path

    from .api_kit import Api

pytest_plugins = ["tests.integration.database_kit", "tests.integration.api_kit"]


class FakeShepherd:
    """The peer port of node1: hands out what the test puts into ``frames``; None breaks the connection off."""

    def __init__(self, state: Path) -> None:
        ca = pki.ensure_ca(state)
        certificate, key = pki.ensure_certificate(ca, state / "node1", "node1", "agent", ["127.0.0.1"])
        self._tls = peers.server_context(certificate, key, ca.path, require_client=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.requests: queue.Queue[dict[str, object]] = queue.Queue()
        self.frames: queue.Queue[tuple[bytes, bytes] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=5)

    def say(self, text: bytes) -> None:
        self.frames.put((b"O", text))

    def end(self) -> None:
        self.frames.put((b"J", b'{"end": true}'))

    def _run(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            with self._tls.wrap_socket(plain, server_side=True) as connection:
                self._serve(connection)

    def _serve(self, connection: ssl.SSLSocket) -> None:
        assert peers.peer_name(connection.getpeercert()) == ("master", "master1")
        size = int.from_bytes(connection.recv(4), "big")
        self.requests.put(json.loads(connection.recv(size)[1:]))
        while frame := self.frames.get():
            kind, body = frame
            connection.sendall((1 + len(body)).to_bytes(4, "big") + kind + body)
            if kind == b"J":
                return


@pytest.fixture
def shepherd(api: Api) -> Iterator[FakeShepherd]:
    fake = FakeShepherd(api.state)
    with api.leader.transaction() as tx:
        tx.upsert_node(
            NodeRecord(name="node1", cpus=64, mem=1 << 34, address="127.0.0.1", peer_port=fake.port)
        )
    yield fake
    fake.close()


def ended(key: AttemptKey, **values: object) -> AttemptRecord:
    now = datetime.now(UTC)
    return AttemptRecord(key=key, started_at=now, ended_at=now, cause=Cause.OK, code=0, **values)  # type: ignore[arg-type]  # each as its field


def test_following_begins_before_the_start_and_ends_with_the_job(api: Api, shepherd: FakeShepherd) -> None:
    job = api.qsub()
    chunks: queue.Queue[bytes | None] = queue.Queue()

    def follow() -> None:
        with api.client() as client:
            for chunk in client.logs(str(job.seq), follow=True):
                chunks.put(chunk)
        chunks.put(None)

    follower = threading.Thread(target=follow)
    follower.start()
    key = api.start(job, "node1")
    asked = shepherd.requests.get(timeout=10)
    attempt = f"{job.seq}.hpcm#1"
    assert asked == {"op": "log", "attempt": attempt, "stream": "stdout", "offset": 0, "follow": True}
    shepherd.say(b"one\n")
    assert chunks.get(timeout=10) == b"one\n"
    shepherd.frames.put(None)  # the connection breaks: the rest is asked for from where it stopped
    assert shepherd.requests.get(timeout=10)["offset"] == 4
    shepherd.say(b"two\n")
    shepherd.end()
    assert chunks.get(timeout=10) == b"two\n"
    api.end(ended(key, stdout_tail=b"one\ntwo\n"), exit_status=0)
    assert chunks.get(timeout=10) is None
    follower.join(timeout=10)


def test_without_follow_what_is_there_is_all(api: Api, shepherd: FakeShepherd) -> None:
    job = api.qsub()
    api.start(job, "node1")
    shepherd.say(b"so far")
    shepherd.frames.put((b"J", b'{"end": false}'))
    with api.client() as client:
        assert b"".join(client.logs(str(job.seq))) == b"so far"
    assert shepherd.requests.get(timeout=10)["follow"] is False


def test_an_attempt_that_the_shepherd_does_not_know_yet_is_asked_for_again(
    api: Api, shepherd: FakeShepherd
) -> None:
    job = api.qsub()
    key = api.start(job, "node1")
    shepherd.frames.put((b"J", b'{"end": true, "error": "this node does not hold that attempt"}'))
    shepherd.say(b"late")
    shepherd.end()
    with api.client() as client:
        chunks = client.logs(str(job.seq), follow=True)
        assert next(chunks) == b"late"
        api.end(ended(key, stdout_tail=b"late"), exit_status=0)
        assert list(chunks) == []


def test_the_file_at_its_final_place_is_read_whole(api: Api) -> None:
    path = api.work / "train.o1"
    path.write_bytes(b"x" * 200_000)
    job = api.qsub()
    api.add_nodes(1, gpus=0)
    api.end(ended(api.start(job, "node1"), stdout_path=str(path), stdout_tail=b"tail"), exit_status=0)
    with api.client() as client:
        assert b"".join(client.logs(str(job.seq))) == b"x" * 200_000
        assert b"".join(client.logs(str(job.seq), offset=199_990, follow=True)) == b"x" * 10


@pytest.mark.parametrize("place", ["gone", "link", "foreign", "directory"])
def test_what_is_not_the_owners_file_gives_way_to_the_tail(api: Api, place: str) -> None:
    path = api.work / f"out-{place}"
    if place == "link":
        path.symlink_to("/etc/passwd")
    elif place == "directory":
        path.mkdir()
    elif place == "foreign":
        if os.getuid() != 0:
            path.symlink_to("/etc/passwd")
        else:
            path.write_bytes(b"secret")
            os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)
    job = api.qsub()
    api.add_nodes(1, gpus=0)
    attempt = ended(api.start(job, "node1"), stdout_path=str(path), stdout_tail=b"the tail")
    api.end(attempt, exit_status=0)
    with api.client() as client:
        assert b"".join(client.logs(str(job.seq))) == b"the tail"
        assert b"".join(client.logs(str(job.seq), offset=4)) == b"tail"
        assert b"".join(client.logs(str(job.seq), "stderr", follow=True)) == b""


def test_only_the_owner_and_operators_read(api: Api) -> None:
    job = api.qsub()
    with api.client(api.token_of("ann")) as other, pytest.raises(Unauthorized):
        list(other.logs(str(job.seq)))
    with api.client() as client:
        assert list(client.logs(str(job.seq))) == []
        with pytest.raises(InvalidValue):
            list(client.logs(str(job.seq), "stdin"))
        with pytest.raises(InvalidValue):
            list(client.logs(str(job.seq), offset=-1))
        with pytest.raises(UnknownJob):
            list(client.logs("999999"))
